"""Our map asked what is enough, what is needed, or both, beside other attributions.

    python -m benchmarks.questions --net=squeezenet1_1 --half=reported --number=30
    python -m benchmarks.questions --half=all            # all 112 photographs
    python -m benchmarks.questions --figure=stability    # two keys, other rounding
    python -m benchmarks.questions --figure=grid         # its own cell of a mosaic
    python -m benchmarks.questions --figure=cost         # processor seconds of a map

Settings of the map were chosen on photographs of one half (every other one of those that
`benchmarks.quality.reportable` lists, `--half=chosen`); tables are of the other. Targets are the
network's own answers. Maps and measurements lie under `--out`, a file a photograph, and are not
made twice: a run that was stopped, or asked for more photographs, goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

import perturb
from benchmarks import quality
from perturb import attribution, statistics
from perturb.metrics import cell_share, mosaics, suite

METHODS = (
    *("nested:both", "nested:enough", "nested:needed", "nested"),
    *("grad_cam", "occlusion", "guided_backprop", "smoothgrad", "gradient", "centre", "random"),
)
METRICS = ("insertion", "deletion", "sufficient_area", "destroying_area")
# Photographs side by side, each in a thread of its own.
BESIDE = 2
TOGETHER = 4
KEY = jax.random.key(0)


class Bench(NamedTuple):
    """A network, the photographs it is asked about, and where its maps lie."""

    model: perturb.Model
    paths: list[pathlib.Path]
    images: np.ndarray
    targets: np.ndarray
    out: pathlib.Path

    def parts(self) -> Iterator[Bench]:
        """Yields a few photographs after the other, so that a run that is stopped has whole
        ones.
        """
        for at in range(0, len(self.paths), TOGETHER):
            few = slice(at, at + TOGETHER)
            yield self._replace(
                paths=self.paths[few], images=self.images[few], targets=self.targets[few]
            )

    def each(self, work: Callable[[int], np.ndarray]) -> np.ndarray:
        """Returns what `work` makes of every photograph."""
        with ThreadPoolExecutor(BESIDE) as threads:
            return np.stack(list(threads.map(work, range(len(self.paths)))))


def photographs(half: str, number: int | None) -> list[pathlib.Path]:
    """Returns `number` photographs of a half, spread over its list; fewer are the first of more."""
    left, _ = quality.reportable(pathlib.Path(os.environ["PERTURB_DATA"]))
    some = {"chosen": left[0::2], "reported": left[1::2], "all": left}[half]
    # Multiples of the golden ratio: whatever the number, they lie evenly over the classes.
    order = np.argsort(np.arange(len(some)) * (np.sqrt(5) - 1) / 2 % 1)
    return [some[p] for p in order[:number]]


def opened(net: str, paths: list[pathlib.Path], out: pathlib.Path) -> Bench:
    """Reads network and photographs."""
    model = quality.network(pathlib.Path(os.environ["PERTURB_DATA"]), net)
    images = np.stack([quality.picture(path) for path in paths])
    return Bench(model, paths, images, quality.answers(model, images), out / net)


def maps(bench: Bench, name: str, *, key: int = 0, shaken: float = 0.0) -> np.ndarray:
    """Returns the maps `[N, H, W]` of an attribution, from the disk where they lie there.

    Args:
      bench: see there.
      name: of `perturb.attribution`.
      key: seed, where the method has one.
      shaken: deviation of noise on the pixels, which stands for another machine's rounding.
    """
    call = attribution.get(name)
    folder = bench.out / f"{name}{f'-key{key}' * bool(key)}{'-shaken' * bool(shaken)}"
    folder.mkdir(parents=True, exist_ok=True)

    def one(i: int) -> np.ndarray:
        file = folder / f"{bench.paths[i].stem}.npy"
        if file.is_file():
            return np.load(file)
        image = bench.images[i : i + 1]
        rng = np.random.default_rng(i)
        image = image + (shaken * rng.standard_normal(image.shape)).astype(np.float32)
        options = {}
        if name in attribution.KEYED:
            # By the photograph's name, so that its map is that of any other list.
            own = jax.random.fold_in(jax.random.key(key), sum(bench.paths[i].stem.encode()))
            options["key"] = own[None]
        found = np.asarray(call(bench.model, image, bench.targets[i : i + 1], **options))[0]
        unfinished = file.with_suffix(".part.npy")
        np.save(unfinished, found)
        unfinished.rename(file)
        return found

    return bench.each(one)


def measured(bench: Bench, name: str, metrics: Sequence[str]) -> np.ndarray:
    """Returns `[N, M]` values of an attribution's maps, from the disk where they lie there."""
    found = maps(bench, name)

    def one(i: int) -> np.ndarray:
        file = bench.out / name / f"{bench.paths[i].stem}.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        for metric in metrics:
            if metric not in known:
                given = bench.images[i : i + 1], bench.targets[i : i + 1], found[i : i + 1]
                value = suite.get(metric).call(bench.model, *given, None, None, KEY[None])
                known[metric] = float(value[0])
        file.write_text(json.dumps(known))
        return np.array([known[metric] for metric in metrics])

    return bench.each(one)


def table(bench: Bench, methods: Sequence[str], metrics: Sequence[str]) -> str:
    """Returns the means, and by how much the first method is ahead of each other, as Markdown."""
    for n, part in enumerate(bench.parts()):
        for name in methods:
            measured(part, name, metrics)
        print(f"{min(TOGETHER * (n + 1), len(bench.paths))} photographs", flush=True)
    values = {name: measured(bench, name, metrics) for name in methods}
    signs = [1 if suite.get(metric).higher else -1 for metric in metrics]
    heads = [f"{m}, {'more' if s > 0 else 'less'}" for m, s in zip(metrics, signs, strict=True)]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(metrics) + 1) + "|"]
    for name, found in values.items():
        cells = [shown(statistics.mean_interval(column)) for column in found.T]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    best = methods[0]
    lines += ["", f"| {best} ahead of | {' | '.join(metrics)} |"]
    lines.append("|---" * (len(metrics) + 1) + "|")
    for name, found in values.items():
        if name != best:
            ahead = [
                shown(statistics.paired(s * a, s * b), sign="+")
                for s, a, b in zip(signs, values[best].T, found.T, strict=True)
            ]
            lines.append(f"| {name} | {' | '.join(ahead)} |")
    return "\n".join(lines)


def shown(found: statistics.Interval, sign: str = "") -> str:
    """Writes an interval as `value (low to high)`."""
    value, low, high = (f"{number:{sign}.3f}" for number in found[:3])
    return f"{value} ({low} to {high})"


def grid(bench: Bench, methods: Sequence[str]) -> str:
    """Returns the share of a map in its own cell of mosaics of four, as Markdown.

    Half as many mosaics as photographs, and of each a map for every cell: their mean counts once.
    """
    side = bench.images.shape[1]
    made = mosaics(bench.images, bench.targets, n=2, number=len(bench.images) // 2, size=side)
    number = made.targets.size
    cells = np.arange(number) % made.targets.shape[1]
    first = bench.paths[0].stem
    asked = bench._replace(
        paths=[pathlib.Path(f"mosaic-{first}-{len(bench.paths)}-{n}") for n in range(number)],
        images=np.repeat(made.images, made.targets.shape[1], 0),
        targets=made.targets.reshape(-1),
    )
    values = {}
    for name in methods:
        share = cell_share(maps(asked, name), made.n, cells)
        values[name] = share.reshape(made.targets.shape).mean(1)
    best = methods[0]
    lines = [f"| | own cell, more | {best} ahead |", "|---|---|---|"]
    for name, found in values.items():
        ahead = shown(statistics.paired(values[best], found), "+") if name != best else ""
        lines.append(f"| {name} | {shown(statistics.mean_interval(found))} | {ahead} |")
    return "\n".join(lines)


def stability(bench: Bench, methods: Sequence[str]) -> str:
    """Returns rank correlations with the map of another key, and of pixels shaken by 1e-6."""
    lines = ["| | two keys: median, least | other rounding: median, least |", "|---|---|---|"]
    for name in methods:
        first = maps(bench, name)
        cells = []
        for other in (maps(bench, name, key=1), maps(bench, name, shaken=1e-6)):
            found = perturb.metrics.spearman(first, other)
            cells.append(f"{np.median(found):.3f}, {found.min():.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(bench: Bench, methods: Sequence[str], rounds: int = 3) -> str:
    """Returns processor seconds of one map, the methods in turn, and the share of the last's."""
    spent: dict[str, list[float]] = {name: [] for name in methods}
    # The first round compiles.
    for n in range(rounds + 1):
        for name in methods:
            begin = time.process_time()
            attribution.get(name)(bench.model, bench.images[:1], bench.targets[:1])
            if n:
                spent[name].append(time.process_time() - begin)
    last = float(np.median(spent[methods[-1]]))
    lines = [f"| | processor seconds a map | of {methods[-1]} |", "|---|---|---|"]
    for name, seconds in spent.items():
        lines.append(f"| {name} | {np.median(seconds):.2f} | {np.median(seconds) / last:.2f} |")
    return "\n".join(lines)


FIGURES = {"grid": grid, "stability": stability, "cost": cost}


def main() -> None:
    """Prints one figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", default="table", choices=["table", *FIGURES])
    parser.add_argument("--net", default=quality.NET)
    parser.add_argument("--half", default="reported", choices=["chosen", "reported", "all"])
    parser.add_argument("--number", type=int, help="of photographs; all of the half by default")
    parser.add_argument("--skip", type=int, default=0, help="so many of them, the first")
    parser.add_argument("--methods", help="names of attributions, the one to compare with first")
    parser.add_argument("--metrics", default=",".join(METRICS))
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/questions"))
    asked = parser.parse_args()
    number = 1 if asked.figure == "cost" else asked.number
    bench = opened(asked.net, photographs(asked.half, number)[asked.skip :], asked.out)
    ours = METHODS[:4]
    if asked.figure == "table":
        methods = asked.methods.split(",") if asked.methods else METHODS
        text = table(bench, methods, asked.metrics.split(","))
    else:
        methods = asked.methods.split(",") if asked.methods else ours
        text = FIGURES[asked.figure](bench, methods)
    text = f"{asked.net}, {len(bench.paths)} photographs ({asked.half})\n\n{text}\n"
    bench.out.mkdir(parents=True, exist_ok=True)
    (bench.out / f"{asked.figure}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
