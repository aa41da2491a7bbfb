"""What the default regions and their verdicts are worth, under other keys, areas and mirrors.

`PERTURB_DATA=... python -m benchmarks.verdicts TABLE [--net=NAME] [--number=16] [--half=1]` prints
a table of `docs/results/verdicts.md` with date, machine and command. Photographs are those that the
net answers with p > .6; choices were made on half 0, figures are of half 1. Masks are kept in
`--cache`, so every table reads the same ones and a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import os
import pathlib
import pickle
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from benchmarks import quality
from benchmarks.causes import planted, share
from perturb import evidence, metrics, operators
from perturb.evidence import cards, fills

# What a region is shown under. Noise is drawn by keys that no search is given.
SHOWN = {
    "blur": operators.Blur(),
    "mean": operators.Fade(),
    "noise": operators.Noise(),
    "grey": operators.Fade(colour=0.5),
    "black": operators.Fade(colour=0.0),
}
UNSEEN = 0xFEE1
# Of noise, for regions that hold: what one draw says of a region may be chance.
DRAWS = 16
CIFAR = "cifar_resnet20"
# What may be changed of the default search, to see whether it should be.
TRIED = ("soft", "blob", "draws", "restarts", "singly")
# Photographs of one call: several keep all cores busy, and few are lost where a run ends.
BESIDE = 4
# The overlap from which two regions count as one reason, and that of the library's `alternatives`.
ALIKE, SAME_REASON = 0.5, 0.3
# What is tried where the region of the area asked is not answered.
FALL_BACK = (0.1, 0.2, 0.3, 0.5)


class Pictures(NamedTuple):
    """`[N, *size, 3]` images that the model answers with p > .6, and the answers `[N]`."""

    images: np.ndarray
    targets: np.ndarray


class Bench:
    """A net, its photographs of one half, and the masks found so far."""

    def __init__(
        self,
        net: str,
        number: int,
        half: int,
        cache: pathlib.Path,
        steps: int,
        tried: dict[str, float] | None = None,
        alternatives: int = 0,
    ) -> None:
        self.data = pathlib.Path(os.environ["PERTURB_DATA"])
        self.net, self.number, self.half, self.steps = net, number, half, steps
        file = {CIFAR: "cifar10_resnet20"}.get(net, quality.FILES.get(net, net))
        weights = self.data / "weights" / f"{file}.safetensors"
        self.model = perturb.load_model(net, weights=weights)
        # What of the default is changed, of `TRIED`.
        self.tried = {n: v for n, v in (tried or {}).items() if v is not None}
        # Of `keys` and `neighbours`: how many other regions each search is to list.
        self.listed = {"alternatives": alternatives} if alternatives else {}
        self.cache = cache
        cache.mkdir(parents=True, exist_ok=True)
        self.pictures = self._answered()

    def _answered(self) -> Pictures:
        def read() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            if self.net == CIFAR:
                file = np.load(self.data / "cifar10" / "test_1000.npz")
                images = (file["images"][:200] / 255).astype(np.float32)
            else:
                # Neither the photographs of torchray's masks nor those our map was chosen on.
                left, known = quality.reportable(self.data)
                images = np.stack([quality.picture(p) for p in left if p not in known])
            chance = np.asarray(jax.nn.softmax(_outputs(self.model, images)))
            return images, chance.argmax(1), chance.max(1)

        images, targets, chance = self._once(f"{self.net} pictures", read)
        # Every other one is a half: neighbours in the list show the like.
        some = np.flatnonzero(chance > 0.6)[self.half :: 2]
        some = some[np.linspace(0, len(some) - 1, min(self.number, len(some))).round().astype(int)]
        return Pictures(images[some], targets[some])

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.cache / f"{name}.pickle"
        if not path.exists():
            found = make()
            path.write_bytes(pickle.dumps(found))
        return pickle.loads(path.read_bytes())

    def found(
        self,
        area: float,
        key: int = 0,
        *,
        mirror: bool = False,
        shaken: bool = False,
        **options: Any,
    ) -> Any:
        """The `Result` of a search at one area, picture by picture, so that none is lost."""
        what = (area, key, int(mirror) + 2 * int(shaken), self.steps)
        search = functools.partial(self._search, perturb.extremal, key, areas=area, **options)
        rows = self._parts(what, search, mirror=mirror, shaken=shaken, **options)
        return perturb.Result(**{n: _joined(n, [row[n] for row in rows]) for n in rows[0]})

    def smallest(self, areas: tuple[float, ...]) -> dict[str, np.ndarray]:
        """`{field: [N, ...]}` of `perturb.sufficient_region`, with the keys of `found`."""
        search = functools.partial(self._search, perturb.sufficient_region, 0, areas=areas)
        rows = self._parts(("smallest", *areas, self.steps), search)
        fields = ("area", "answered", "masks")
        return {n: np.concatenate([row[n] for row in rows]) for n in fields}

    def _parts(
        self,
        what: tuple[Any, ...],
        search: Callable[..., Any],
        *,
        mirror: bool = False,
        shaken: bool = False,
        **named: Any,
    ) -> list[Any]:
        rows = []
        for at in range(0, len(self.pictures.images), BESIDE):
            images, targets = (v[at : at + BESIDE] for v in self.pictures)
            shown = images[:, :, ::-1] if mirror else images
            if shaken:
                noise = np.random.default_rng(at).standard_normal(shown.shape)
                shown = (shown + cards.ROUNDING * noise).astype(np.float32)
            given = sorted({**self.tried, **named}.items())
            name = (self.net, self.half, self.number, at, *what, *(f"{n}={v}" for n, v in given))
            make = functools.partial(search, shown, targets)
            rows.append(self._once(" ".join(map(str, name)), make))
        return rows

    def _search(
        self,
        method: Callable[..., Any],
        key: int,
        images: np.ndarray,
        targets: np.ndarray,
        **options: Any,
    ) -> Any:
        found = method(
            self.model,
            images,
            targets,
            key=jax.random.key(key),
            steps=self.steps,
            **_changed(self.tried),
            **options,
        )
        # A search that Ctrl-C or a time limit cut short returns what it has: that is not kept.
        if (found.status == "interrupted").any():
            raise KeyboardInterrupt
        return found._asdict()

    def regions(self, area: float, key: int = 0, **options: Any) -> np.ndarray:
        """`[N, *size]` bool, mirrored back where they were sought in the mirror."""
        regions = np.asarray(self.found(area, key, **options).masks)[:, 0] > 0.5
        return regions[:, :, ::-1] if options.get("mirror") else regions

    def reasons(self, area: float, key: int = 0, **options: Any) -> list[np.ndarray]:
        """`[1 or more, *size]` bool of every picture: the region, then the others listed."""
        result = self.found(area, key, **self.listed, **options)
        turned = slice(None, None, -1 if options.get("mirror") else 1)
        others = result.alternatives or [[[]]] * len(result.masks)
        return [
            np.stack([np.asarray(mask) > 0.5 for mask in (best[0], *(o.mask for o in more[0]))])[
                :, :, turned
            ]
            for best, more in zip(result.masks, others, strict=True)
        ]

    def kept(self, regions: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`{fill: (probability [N], class first [N])}` of regions `[N, *size]`."""
        images, targets = self.pictures
        out = {}
        for name, operator in SHOWN.items():
            keys = [jax.random.fold_in(jax.random.key(UNSEEN), i) for i in range(len(images))]
            views = [
                np.asarray(
                    fills.views(
                        fills.sharp(operator),
                        jnp.asarray(image),
                        key,
                        jnp.asarray(region[None] * 1.0),
                    )
                )
                for image, key, region in zip(images, keys, regions, strict=True)
            ]
            outputs = _outputs(self.model, np.concatenate(views))
            chance = np.asarray(jax.nn.softmax(outputs))[np.arange(len(targets)), targets]
            out[name] = (chance, outputs.argmax(1) == targets)
        return out

    def under_noise(self, regions: np.ndarray, some: np.ndarray) -> np.ndarray:
        """`[N]` shares of `DRAWS` draws of noise under which the class is first, of `some` `[N]`
        bool of regions `[N, *size]`; NaN of the others.
        """
        found = np.full(len(regions), np.nan)
        for i in np.flatnonzero(some):
            image, target = (v[i] for v in self.pictures)
            region = jnp.asarray(regions[i][None] * 1.0)
            keys = jax.random.split(jax.random.fold_in(jax.random.key(UNSEEN), DRAWS + i), DRAWS)
            views = [fills.views(SHOWN["noise"], jnp.asarray(image), key, region) for key in keys]
            found[i] = (_outputs(self.model, np.concatenate(views)).argmax(1) == target).mean()
        return found

    def card(
        self, regions: np.ndarray, some: np.ndarray, status: np.ndarray | None = None, key: int = 0
    ) -> Any:
        """Evidence of `some` `[N]` bool of regions `[N, *size]`, with the keys of the search."""
        keys = jnp.stack(
            [jax.random.fold_in(jax.random.key(key), i % BESIDE) for i in np.flatnonzero(some)]
        )
        status = np.full((len(regions), 1), "ok") if status is None else status
        shown = _Shown(regions[some][:, None].astype(np.float32), np.asarray(status)[some])
        images, targets = self.pictures
        return evidence.card(self.model, images[some], targets[some], shown, keys=keys)


def _changed(tried: dict[str, float]) -> dict[str, Any]:
    """Arguments of `extremal` for what of the default is changed."""
    found: dict[str, Any] = {}
    if "singly" in tried:
        # A mask of one's own is sought view by view, as the default was before.
        found["mask"] = perturb.masks.Blobs()
    blobs = {n: tried[n] for n in ("soft", "blob") if n in tried}
    if blobs:
        found["mask"] = perturb.masks.Blobs(**blobs)
    if "draws" in tried:
        noise = operators.Noise(draws=int(tried["draws"]))
        turns = (operators.Blur(), operators.Fade(), noise)
        found["operator"] = operators.Alternate(operators=turns)
    if "restarts" in tried:
        found["restarts"] = int(tried["restarts"])
    return found


def _joined(field: str, parts: list[Any]) -> Any:
    if field == "areas" or parts[0] is None:
        return parts[0]
    if isinstance(parts[0], list):
        return [*itertools.chain.from_iterable(parts)]
    return np.concatenate(parts)


class _Shown(NamedTuple):
    masks: np.ndarray
    status: np.ndarray


def _outputs(model: perturb.Model, views: np.ndarray) -> np.ndarray:
    # Eight at a time, which bounds the memory.
    parts = np.array_split(views, -(-len(views) // 8))
    return np.concatenate([np.asarray(model(jnp.asarray(part))) for part in parts])


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[N]` intersection over union of regions `[N, *size]`."""
    return evidence.fills.iou(a[:, None], b[:, None])[:, 0]


def _compared(bench: Bench, ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict[str, str]:
    """How far regions agree, and whether those that do not are both reasons.

    Args:
      ours, theirs: of every picture the region and the others listed, `[1 or more, *size]`.
    """
    a, b = (np.stack([regions[0] for regions in listed]) for listed in (ours, theirs))
    same = overlap(a, b)
    far = same < ALIKE
    one, two = (bench.kept(regions) for regions in (a, b))
    sought = ("blur", "mean", "noise")
    p, q = (np.mean([shown[n][0] for n in sought], 0) for shown in (one, two))
    # What `alternatives` asks of another region, of either.
    good = one["blur"][1] & two["blur"][1] & (np.abs(p - q) <= 0.1)
    counted = {}
    if bench.listed:
        # The nearest of the other's list, for the region that is nearest to none.
        near = np.array(
            [min(_nearest(x[0], y), _nearest(y[0], x)) for x, y in zip(ours, theirs, strict=True)]
        )
        counted = {
            f"each among the other's, overlap of {least}": share(near[far] >= least)
            if far.any()
            else "none"
            for least in (ALIKE, SAME_REASON)
        }
        counted["regions listed"] = f"{np.mean([len(x) for x in [*ours, *theirs]]):.1f}"
    return counted | {
        "median IoU": f"{np.median(same):.2f}",
        "IoU": " ".join(f"{v:.2f}" for v in np.sort(same)),
        "below .5": share(far),
        "of those, both answered and within a tenth": share(good[far]) if far.any() else "none",
    }


def _nearest(region: np.ndarray, listed: np.ndarray) -> float:
    return float(overlap(np.broadcast_to(region, listed.shape), listed).max())


def kept(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields how often the region alone is still answered, and what larger area is where not."""
    for area in (0.1, 0.2):
        result = bench.found(area)
        shown = bench.kept(np.asarray(result.masks)[:, 0] > 0.5)
        row: dict[str, Any] = {"area": area}
        for name, (chance, first) in shown.items():
            row[name] = f"{share(first)}, p {chance.mean():.2f}"
        # Larger regions of the same scores: "needs 30 %" is an answer too.
        enough = np.full(len(result.masks), np.inf)
        for larger in (0.5, 0.4, 0.3, 0.2, 0.15, 0.1):
            if larger >= area:
                cut = bench.kept(_cut(np.asarray(result.scores)[:, 0], larger))
                enough = np.where(cut["blur"][1] & cut["mean"][1], larger, enough)
        row["blur and mean"] = share(shown["blur"][1] & shown["mean"][1])
        row["smallest area that is: " + ", ".join(map(str, (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)))] = (
            " ".join(
                str(int((enough == larger).sum())) for larger in (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
            )
        )
        row["none of them"] = share(np.isinf(enough))
        yield row


def smallest(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields how often the region of the area asked is answered under blur and mean, and how often
    that of a larger area, sought by itself, is where it is not.
    """
    for start in (0.1, 0.2):
        areas = FALL_BACK[FALL_BACK.index(start) :]
        found = bench.smallest(areas)
        own = found["answered"] & (found["area"] == start)
        shown = bench.kept(found["masks"] > 0.5)
        first = shown["noise"][1]
        yield {
            "area": start,
            "answered at it": share(own),
            "at a larger one": ", ".join(
                f"{a:g}: {(found['answered'] & (found['area'] == a)).sum()}" for a in areas[1:]
            ),
            "at one of them": share(found["answered"]),
            **{f"p, {n}": f"{shown[n][0].mean():.2f}" for n in ("blur", "mean", "noise")},
            "new noise too, at it": share(own & first),
            "new noise too, at one of them": share(found["answered"] & first),
        }


def keys(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields how far two keys agree: regions and verdicts."""
    for area in (0.1, 0.2):
        reasons = [bench.reasons(area, key) for key in (0, 1)]
        every = np.ones(len(reasons[0]), bool)
        verdicts = []
        for key, listed in enumerate(reasons):
            regions = np.stack([one[0] for one in listed])
            status = bench.found(area, key, **bench.listed).status
            verdicts.append(bench.card(regions, every, status, key).verdict[:, 0])
        yield {
            "area": area,
            **_compared(bench, *reasons),
            "same verdict": share(verdicts[0] == verdicts[1]),
        }


def neighbours(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields how far regions agree with those of a mirror image, other rounding and near areas."""
    middle = bench.reasons(0.1)
    for what, other in {
        "mirrored picture": functools.partial(bench.reasons, 0.1, mirror=True),
        "pixels that differ by 1e-6": functools.partial(bench.reasons, 0.1, shaken=True),
        "area .09": functools.partial(bench.reasons, 0.09),
        "area .11": functools.partial(bench.reasons, 0.11),
        "another key": functools.partial(bench.reasons, 0.1, 1),
    }.items():
        yield {"area .1 against": what, **_compared(bench, middle, other())}


def verdicts(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields the verdicts of regions that are none."""
    images = bench.pictures.images
    number, size = len(images), images.shape[1:-1]
    rng = np.random.default_rng(0)
    y, x = (np.arange(n) + 0.5 - n / 2 for n in size)
    outputs = _outputs(bench.model, images)
    # The strongest class but the answer.
    second = np.argsort(outputs, 1)[:, -2]
    noise = jax.image.resize(rng.normal(size=(number, 7, 7)), (number, *size), "cubic")
    tries = {
        "centre discs": np.broadcast_to(-np.hypot(y[:, None], x), (number, *size)),
        "random blobs": np.asarray(noise),
        "Grad-CAM of the second class": np.concatenate(
            [
                np.asarray(perturb.attribution.grad_cam(bench.model, i[None], [t]))
                for i, t in zip(images, second, strict=True)
            ]
        ),
    }
    for name, area in itertools.product(tries, (0.05, 0.1, 0.2)):
        yield _judged(bench, name, area, _cut(tries[name], area))


def found(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields the verdicts of the regions that the search finds."""
    for area in (0.05, 0.1, 0.2):
        yield _judged(bench, "found", area, bench.regions(area), bench.found(area))


def _cut(scores: np.ndarray, area: float) -> np.ndarray:
    count = round(area * scores[0].size)
    cut = jax.jit(lambda s: perturb.masks.binarise(s, count) > 0.5)
    return np.stack([np.asarray(cut(s)) for s in scores])


def _judged(
    bench: Bench, name: str, area: float, regions: np.ndarray, result: Any = None
) -> dict[str, Any]:
    """Verdicts where they are in question: a region that is not answered under a fill without
    noise, which are those of the card, is no "holds" and may well fail.
    """
    first = {n: good for n, (_, good) in bench.kept(regions).items()}
    sure = np.stack([good for n, good in first.items() if n != "noise"]).all(0)
    verdict = np.full(len(regions), "not asked")
    if sure.any():
        status = None if result is None else result.status
        verdict[sure] = bench.card(regions, sure, status).verdict[:, 0]
    holds = verdict == "holds"
    shares = bench.under_noise(regions, holds)[holds]
    return {
        "regions": name,
        "area": area,
        "first under all fills without noise": share(sure),
        "first under noise too": share(sure & first["noise"]),
        "holds": share(holds),
        "holds, not first under new noise": share(holds & ~first["noise"]),
        f"holds, first in less than half of {DRAWS} draws": share(shares < 0.5),
        "shares of draws": " ".join(f"{part:.0%}" for part in np.sort(shares)),
        "first under all, yet fails": share(sure & first["noise"] & (verdict == "fails")),
    }


def cost(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields processor seconds of a card and of a search of 100 steps, in turn."""
    images, targets = bench.pictures
    given = {"key": jax.random.key(0)}
    search = functools.partial(
        perturb.extremal,
        bench.model,
        images[:1],
        targets[:1],
        areas=0.1,
        steps=bench.steps,
        **given,
    )
    result = search()
    card = functools.partial(evidence.card, bench.model, images[:1], targets[:1], result, **given)
    card()
    spent: dict[str, list[float]] = {"search": [], "card": []}
    for _ in range(3):
        for name, work in (("search", search), ("card", card)):
            begin = time.process_time()
            work()
            spent[name].append(time.process_time() - begin)
    row = {f"{n}, processor s": f"{min(v):.2f}" for n, v in spent.items()}
    yield row | {"share": f"{min(spent['card']) / min(spent['search']):.0%}"}


def against(bench: Bench) -> Iterator[dict[str, Any]]:
    """Yields probabilities ahead of torchray's own masks of 800 steps, on the photographs of those.

    Scored under a blur, a mean colour and noise that neither search was given.
    """
    photographs = quality.load(bench.data, bench.number)
    bench.pictures = Pictures(photographs.images, photographs.targets)
    bench.net += " torchray"
    for area in (0.1, 0.2):
        theirs = quality.binary(photographs.masks[:, [quality.AREAS.index(area)]], (area,))[:, 0]
        ours = bench.regions(area)
        a, b = bench.kept(ours), bench.kept(theirs > 0.5)
        yield {
            "area": area,
            **{n: _ahead(a[n][0], b[n][0]) for n in ("blur", "mean", "noise")},
            **{
                f"first, {n}": f"{a[n][1].mean():.0%} / {b[n][1].mean():.0%}"
                for n in ("blur", "mean")
            },
        }


def _ahead(ours: np.ndarray, theirs: np.ndarray) -> str:
    value, low, high = metrics.paired(ours, theirs)[:3]
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


TABLES = {
    f.__name__: f
    for f in (kept, smallest, keys, neighbours, verdicts, found, cost, against, planted)
}


def main() -> None:
    """Prints a table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("--net", default=quality.NET)
    parser.add_argument("--number", type=int, default=16, help="of photographs")
    parser.add_argument("--half", type=int, default=1, choices=(0, 1))
    parser.add_argument("--steps", type=int, default=100, help="of each mask")
    parser.add_argument("--alternatives", type=int, default=0, help="of keys and neighbours")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path("/tmp/verdicts"))
    for name in TRIED:
        parser.add_argument(f"--{name}", type=float, help="of the search, in place of the default")
    asked = parser.parse_args()
    tried = {name: getattr(asked, name) for name in TRIED}
    given = asked.net, asked.number, asked.half, asked.cache, asked.steps, tried
    bench = Bench(*given, asked.alternatives)
    command = " ".join(["python -m benchmarks.verdicts", *sys.argv[1:]])
    print(f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores: `{command}`\n")
    head: list[str] = []
    for row in TABLES[asked.table](bench):
        if not head:
            head = list(row)
            print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
        print(f"| {' | '.join(str(row[n]) for n in head)} |", flush=True)


if __name__ == "__main__":
    main()
