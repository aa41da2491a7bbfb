"""What the last bits of a result depend on besides the program: processor, instruction set, kind of
device.
"""

from __future__ import annotations

import functools
import os
import platform
import re

import jax

__all__ = ["fix_threads", "here", "instructions"]

# As XLA names them, widest first, with what /proc/cpuinfo calls them.
SETS = {"AVX512": "avx512f", "AVX2": "avx2", "AVX": "avx", "SSE4_2": "sse4_2"}


def instructions(present: str, flags: str) -> str:
    """Returns the widest instruction set that XLA uses, or "" where it is not known.

    Args:
      present: what the processor has, as /proc/cpuinfo lists it.
      flags: XLA_FLAGS, which may allow less.

    >>> present = "sse4_2 avx avx2"
    >>> instructions(present, ""), instructions(present, "--xla_cpu_max_isa=AVX")
    ('AVX2', 'AVX')
    """
    names = list(SETS)
    asked = re.findall(r"--xla_cpu_max_isa=(\w+)", flags)
    first = 0
    if asked:
        # AVX512_VNNI and what else begins with a name here is of its kind.
        allowed = [n for n in names if asked[-1].upper().startswith(n)]
        first = names.index(allowed[0]) if allowed else 0
    return next((n for n in names[first:] if SETS[n] in present.split()), "")


THREADS = 2


def fix_threads() -> None:
    """Gives XLA the same number of threads on every machine; a number that the user has set stays.

    A program of one mask is compiled for one thread, but its long matrix products are not: Eigen
    cuts their inner sums by the size of XLA's pool, which is that of the machine. To be called
    before the first computation of the process, when XLA makes its pool.
    """
    # Two: one thread makes two processors wait for each other, four cost a single one half as much
    # again.
    os.environ.setdefault("PJRT_NPROC", str(THREADS))


@functools.cache
def here() -> dict[str, str]:
    """Returns `processor`, `instructions`, `devices` and, where set, `threads` of this process."""
    model, present = platform.processor() or platform.machine(), ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            pairs = (line.partition(":") for line in file)
            lines = {name.strip(): value.strip() for name, _, value in pairs}
        model, present = lines.get("model name", model), lines.get("flags", "")
    except OSError:  # not Linux
        pass
    return {
        "processor": model,
        "instructions": instructions(present, os.environ.get("XLA_FLAGS", "")),
        "devices": jax.local_devices()[0].device_kind,
        **({"threads": threads} if (threads := os.environ.get("PJRT_NPROC")) else {}),
    }
