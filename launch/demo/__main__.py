"""Two networks with the same accuracy, and what each of them needs to see: why masks, on one page.

  python -m launch.demo --out=out/demo

Both networks name the shape in a picture, right on nearly all pictures of the kind they were
trained on. One was trained on pictures with a small stamp that gives the shape away. Accuracy does
not tell them apart; the region that each one's answer rests on does. Leaves in --out what every run
of masks leaves (read it with launch.results), demo.json, and report/index.html.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from absl import flags as absl_flags
from absl import logging

import perturb
from launch import demo, flags, models, results
from launch.demo import findings, world
from launch.inputs import images, listing
from launch.job import run, store
from launch.job.progress import Progress
from launch.jobs import batches
from launch.report import pictures
from launch.report.html import document, percent, text
from launch.report.parts import badge, figure
from perturb.evidence import fills
from perturb.types import Record

_OUT, _SEED = flags.shared("out", "seed")
_PICTURES = absl_flags.DEFINE_integer(
    "pictures", 12, "Pictures on the page, each with one mask a network.", lower_bound=1
)
_CHECKED = absl_flags.DEFINE_integer(
    "checked", 400, "Pictures that accuracy is counted on.", lower_bound=8
)

NETWORKS = ("demo", "demo_cheat")
FRESH = 1_000  # seed of the pictures for accuracy: another world than training and page


class Explained(NamedTuple):
    """One network's answer to one picture, and the region that it rests on.

    Attributes:
      answer: name of the class it gives.          sure: its probability.
      alone: probability of that class with nothing but the region left.
      mask: `[H, W]`, the region.
      on_object, on_mark: shares of the region on the object and on the stamp.
      verdict: of the checks of the region, see `perturb.evidence`.
      reasons: for it, in sentences.
    """

    answer: str
    sure: float
    alone: float
    mask: np.ndarray
    on_object: float
    on_mark: float
    verdict: str = ""
    reasons: tuple[str, ...] = ()


class Found(NamedTuple):
    """What a run keeps of one network: its masks, their evidence, and what the page shows."""

    result: perturb.Result
    evidence: perturb.evidence.Evidence
    answers: np.ndarray
    explained: list[Explained]


def main() -> int:
    """Runs both networks and writes the page."""
    out = store.path(_OUT.value or "out/demo")
    store.writable(out)
    began = time.monotonic()
    # One name for both, so that they differ in nothing but weights and share one compiled program.
    networks = [dataclasses.replace(demo.load(name), name="demo") for name in NETWORKS]
    logging.info("counting right answers on %d fresh pictures of each kind", _CHECKED.value)
    accuracy = [_accuracies(network, _CHECKED.value) for network in networks]
    # The same stamped pictures for both networks: what differs is the network alone.
    shown = world.pictures(_PICTURES.value, watermark="right")
    progress = Progress(2 * len(shown))
    found = []
    for network, area in zip(networks, (_object_areas, _mark_areas), strict=True):
        found.append(_explain(network, shown, area(shown), progress))
        progress.add(len(shown))
    progress.close()
    explained = [one.explained for one in found]
    _keep(out, networks, shown, found)
    summary = {
        name: {
            "accuracy": accuracy[i],
            "on_object": statistics.fmean(one.on_object for one in explained[i]),
            "on_mark": statistics.fmean(one.on_mark for one in explained[i]),
        }
        for i, name in enumerate(("honest", "cheat"))
    }
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    store.put(out / "demo.json", (json.dumps(summary, indent=2) + "\n").encode())
    store.put(folder / "index.html", _page(shown, explained, summary))
    logging.info("done in %.0f s: %s", time.monotonic() - began, folder / "index.html")
    return 0


def _accuracies(network: perturb.Model, count: int) -> dict[str, float]:
    """Returns the share of right answers without a stamp, and with the right and a wrong one."""
    call = jax.jit(lambda model, images: model(images))
    found = {}
    for kind in (None, "right", "wrong"):
        # The same scenes three times: only the stamp differs.
        batch = world.render_batch(FRESH, range(count), watermark=kind)
        answers = np.asarray(call(network, batch.image)).argmax(-1)
        found[kind or "none"] = float((answers == batch.target).mean())
    return found


def _object_areas(shown: Sequence[world.Picture]) -> np.ndarray:
    # Each picture's own area: a region larger than the object would have to spill over it.
    return np.array([[(p.label == 1 + p.target).mean()] for p in shown])


def _mark_areas(shown: Sequence[world.Picture]) -> np.ndarray:
    return np.array([[(p.label == world.WATERMARK).mean()] for p in shown])


def _explain(
    network: perturb.Model, shown: Sequence[world.Picture], areas: np.ndarray, progress: Progress
) -> Found:
    """Finds the region of each picture's own area that best keeps the network's answer, and checks
    it.
    """
    pixels = np.stack([p.image for p in shown])
    answers = np.asarray(jax.jit(lambda model, x: model(x))(network, pixels)).argmax(-1)
    result = perturb.extremal(
        network,
        pixels,
        answers,
        areas=areas,
        batch_size=max(2, min(16, len(shown))),
        key=jax.random.key(_SEED.value),
        progress=lambda done, total: progress.show(len(shown) * done / total),
    )
    card = perturb.evidence.card(network, pixels, answers, result, key=jax.random.key(_SEED.value))
    explained = []
    for i, picture in enumerate(shown):
        region = result.masks[i, 0] > 0.5
        explained.append(
            Explained(
                answer=network.class_names[answers[i]],
                sure=float(result.probability_original[i]),
                alone=float(result.probability_binary[i, 0]),
                mask=result.masks[i, 0],
                # Of the region, not of the object: how much of what is shown is the object.
                on_object=float((picture.label[region] == 1 + picture.target).mean()),
                on_mark=float((picture.label[region] == world.WATERMARK).mean()),
                verdict=str(card.verdict[i, 0]),
                reasons=tuple(card.reasons[i][0]),
            )
        )
    return Found(result, card, answers, explained)


def _keep(
    out: store.Path,
    networks: Sequence[perturb.Model],
    shown: Sequence[world.Picture],
    found: Sequence[Found],
) -> None:
    """Leaves masks, rows and evidence as every run of masks does: the honest network's first."""
    root = batches.demo_pictures(out, NETWORKS[1], len(shown))
    items = listing.scan(root)
    by_name = {p.id: i for i, p in enumerate(shown)}
    settings = {
        "method": "extremal",
        "game": "preserve",
        "solver": "exact",
        "operator": perturb.operators.DEFAULT,
        "model": " and ".join(NETWORKS),
        "pictures": len(shown),
        "seed": _SEED.value,
        "out": str(out),
    }
    honest, cheat = (models.describe(network) for network in networks)
    described = {**honest, "name": settings["model"], "cheat": cheat["fingerprint"]}
    job = run.Run(out, settings, described, items, shard_rows=len(items.items))
    arrays: dict[str, np.ndarray] = {}
    entries: list[Record] = []
    rows: list[Record] = []
    for name, network, one in zip(("honest", "cheat"), networks, found, strict=True):
        for item in items.items:
            i = by_name[item.path.removesuffix(".png")]
            place, target, pixels = len(entries), int(one.answers[i]), shown[i].image
            identity = {
                "id": f"{name}/{item.path}",
                "image": item.path,
                "target": target,
                "target_name": network.class_names[target],
                "network": name,
                "shown_class": world.class_names[shown[i].target],
            }
            crop = (0.0, 0.0, *map(float, pixels.shape[1::-1]))
            item_rows = results.rows(
                one.result, i, identity=identity, crop=crop, removal="blur", evidence=one.evidence
            )
            kept = results.arrays(one.result, i)
            kept["image"] = images.encode(pixels)
            key = jax.random.key(_SEED.value)
            blank = np.zeros((1, *pixels.shape[:-1]))
            removed = fills.show(perturb.operators.get("blur"), pixels, key, blank)[0]
            kept["removed"] = images.encode(removed)
            arrays |= {f"{place}.{n}": value for n, value in kept.items()}
            areas = [row["area"] for row in item_rows]
            entries.append({"id": identity["id"], "target": target, "areas": areas})
            rows += item_rows
    job.commit(0, arrays, {"items": entries, "rows": rows, "errors": []})
    job.finish()


def _page(
    shown: Sequence[world.Picture], explained: Sequence[Sequence[Explained]], summary: Record
) -> bytes:
    lead = (
        "Both networks name the shape in a picture, and on pictures of the kind that each was "
        f"trained on both are right: <b>{_accuracy(summary, 'honest', 'none')}</b> and "
        f"<b>{_accuracy(summary, 'cheat', 'right')}</b> of the time. The outlined region is the "
        "part of the picture that best keeps the network's answer with everything else blurred or, "
        "in turn, replaced by its mean colour or by noise; <b>region alone</b> tells how sure the "
        "answer is under the blur. One network needs the <b>object</b>, the other the small "
        "<b>stamp</b> that gave its training pictures away. The region has the area of the object "
        "for the first, and of the stamp for the second."
    )
    questions = findings.questions(summary, [[one.verdict for one in each] for each in explained])
    rows = "".join(_summary_row(name, summary[name]) for name in ("honest", "cheat"))
    table = (
        '<table class="summary"><thead><tr><th>network</th><th>right, no stamp</th><th>right, true '
        "stamp</th><th>right, wrong stamp</th><th>region on the object</th><th>region on the "
        f"stamp</th></tr></thead><tbody>{rows}</tbody></table>"
    )
    legend = (
        '<ul class="legend"><li><svg viewBox="0 0 48 16" aria-hidden="true"><rect '
        'class="on-object" y="4" width="48" height="8" rx="3"></rect></svg>region on the '
        'object</li><li><svg viewBox="0 0 48 16" aria-hidden="true"><rect class="on-mark" y="4" '
        'width="48" height="8" rx="3"></rect></svg>on the stamp</li><li><svg viewBox="0 0 48 16" '
        'aria-hidden="true"><rect class="track" y="4" width="48" height="8" '
        'rx="3"></rect></svg>elsewhere</li></ul>'
    )
    cards = "".join(
        _card(picture, honest, cheat)
        for picture, honest, cheat in zip(shown, *explained, strict=True)
    )
    body = (
        "<header><h1>Same score, <em>different "
        f'reasons</em></h1><p>{lead}</p>{table}{questions}{legend}</header><main id="cards" '
        f'class="pairs">{cards}</main>'
    )
    return document("Same score, different reasons", body, style=_STYLE)


_STYLE = (
    ":root{--columns:3}.pairs .strip{grid-template-rows:auto}"
    ".on-object{fill:#009e73}.on-mark{fill:#cc79a7}"
)


def _accuracy(summary: Record, name: str, kind: str) -> str:
    return percent(summary[name]["accuracy"][kind])


def _summary_row(name: str, found: Record) -> str:
    # In the order of the table's head.
    values = [*found["accuracy"].values(), found["on_object"], found["on_mark"]]
    cells = "".join(f"<td>{percent(value)}</td>" for value in values)
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'


def _card(picture: world.Picture, honest: Explained, cheat: Explained) -> str:
    image = pictures.levels(picture.image)
    stamp = world.class_names[picture.mark]
    figures = [
        figure(
            "region",
            pictures.enlarge(image),
            picture.name,
            f"picture: {world.class_names[picture.target]}",
            f"<span>stamp: {text(stamp)}</span>",
        ),
        *(
            figure(
                "region",
                pictures.overlay(image, one.mask),
                f"the region that the {name} network needs",
                f"{name}: {one.answer}",
                f"<span>{percent(one.sure)}, region alone {percent(one.alone)}</span>"
                + _wrong(one, world.class_names[picture.target])
                + _split(one)
                + _checked(one),
            )
            for name, one in (("honest", honest), ("cheat", cheat))
        ),
    ]
    return (
        f'<article class="card"><h2>{text(picture.name)}</h2>'
        f'<div class="strip">{"".join(figures)}</div></article>'
    )


def _wrong(one: Explained, shown: str) -> str:
    """A badge where the answer is not what the picture shows."""
    if one.answer == shown:
        return ""
    return badge("wrong answer", f"the picture shows a {shown}, the network says {one.answer}")


def _checked(one: Explained) -> str:
    """The verdict of the checks, opening into its reasons."""
    if not one.verdict:
        return ""
    lines = "".join(f"<li>{text(reason)}</li>" for reason in one.reasons)
    return (
        f'<details class="evidence {text(one.verdict)}"><summary>{text(one.verdict)}</summary>'
        f"<p>{findings.VERDICTS[one.verdict]}</p><ul>{lines}</ul></details>"
    )


def _split(one: Explained) -> str:
    """A bar of where the region lies: on the object, on the stamp, elsewhere."""
    # In hundredths of the bar, whose drawing is 100 wide.
    first, second = 100 * one.on_object, 100 * one.on_mark
    return (
        '<svg class="gauge" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" '
        f'aria-label="{percent(one.on_object)} on the object, {percent(one.on_mark)} on the '
        'stamp"><rect class="track" width="100" height="6"></rect>'
        f'<rect class="on-object" width="{first:.1f}" height="6"></rect>'
        f'<rect class="on-mark" x="{first:.1f}" width="{second:.1f}" height="6"></rect></svg>'
    )


if __name__ == "__main__":
    flags.run(main)
