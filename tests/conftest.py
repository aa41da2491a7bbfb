"""Shared fixtures: where the real networks and photographs lie; compiled programs that are let go;
skips counted.
"""

import collections
import ctypes
import gc
import os
import pathlib
import sys

import jax
import numpy as np
import pytest

# What one process may hold of compiled programs before they are let go. Linux gives it 65,530 maps
# of memory, of which every program takes some, and XLA's compiler ends the process where one more
# is refused; and `make test` runs two processes.
MOST_MAPS = 20_000
MOST_MEMORY = 1.5e9

# How to get the tests that skip, by a word of the reason.
WAYS = {
    "PERTURB_DATA": "PERTURB_DATA=/path/to/the/data make test",
    "chromium": "apt-get install chromium",
    "axe-core": "pip install axe-playwright-python",
    "torch": "make oracles, make adapters",
}


# States of the generators of random numbers as they were when their module had been imported.
_STATES = {}

# Examples of docstrings that take as long as slow tests, because they compile a solver or a
# generator.
SLOW_EXAMPLES = {
    "gan_dissect.nets",
    "gan_dissect.nets.stylegan.stylegan",
    "launch.demo.mixing",
    "perturb.internals.features",
    "perturb.internals.features.loop.visualise",
    "perturb.internals.features.restoring.restore",
    "perturb.methods._run.stream",
    "perturb.methods.channels.channels",
    "perturb.methods.extremal.extremal",
    "perturb.methods.meaningful.meaningful",
    "perturb.solver.loop",
    "perturb.solver.own_loop",
    "perturb.attribution.rise.rise",
    "perturb.units.pictures",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks slow examples, and every case but the first of the tests that are marked
    `slow_cases`.
    """
    seen = set()
    for item in items:
        test = item.nodeid.split("[")[0]
        if item.name in SLOW_EXAMPLES or (item.get_closest_marker("slow_cases") and test in seen):
            item.add_marker("slow")
        seen.add(test)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Sets the generators of random numbers of a test's module back, so that what ran before it
    does not matter.
    """
    for name, value in vars(getattr(item, "module", None) or object).items():
        if isinstance(value, np.random.Generator):
            state = _STATES.setdefault((item.module.__name__, name), value.bit_generator.state)
            value.bit_generator.state = state


def held() -> tuple[int, int]:
    """Returns the maps and the bytes of memory of this process; zeros where that is not known."""
    try:
        with open("/proc/self/maps", "rb") as file:
            maps = sum(1 for _ in file)
        with open("/proc/self/statm") as file:
            return maps, int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0, 0


@pytest.fixture(scope="module", autouse=True)
def _let_go():
    """Lets compiled programs go after a module, where there are many: the next one needs few of
    them.
    """
    yield
    maps, memory = held()
    if maps < MOST_MAPS and memory < MOST_MEMORY:
        return
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        # What is freed in small pieces stays with the process otherwise.
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)


def pytest_terminal_summary(terminalreporter):
    """Counts what was skipped, a line a reason, with the way to get it."""
    reasons = collections.Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    )
    for reason, count in reasons.most_common():
        ways = [f" ({way})" for word, way in WAYS.items() if word.lower() in reason.lower()]
        terminalreporter.write_line(f"{count} skipped: {reason}{ways[0] if ways else ''}")


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real networks, photographs and goldens; tests that need it skip without it.

    Once `PERTURB_DATA` is set a missing file is a failure, never a skip.
    """
    root = os.environ.get("PERTURB_DATA")
    if not root:
        pytest.skip("PERTURB_DATA is not set: no real networks and photographs to test on")
    path = pathlib.Path(root)
    if not (path / "README.md").is_file():
        pytest.fail(f"PERTURB_DATA={root} is not the data folder: it has no README.md")
    return path
