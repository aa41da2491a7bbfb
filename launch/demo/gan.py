"""What a generator's units draw, what goes when they are off, and where a direction leads, on one
page.

  python -m launch.demo.gan --out=out/demo-gan

The generator draws the embedded picture world. A network trained on the world's exact labels says
what every pixel of a sample shows; units are compared with that, the best are switched off and on,
and a walk follows an attribute. What each latent ought to give is known, so the generator and the
walk are measured against the truth. Leaves demo-gan.json, dissect/, walk/ and report/index.html in
--out.
"""

from __future__ import annotations

import io
import json
import time

import jax
import numpy as np
from absl import logging

import gan_dissect
from gan_dissect import directions
from launch import demo, flags, results
from launch.demo import brushed, latents, strokes, train_reader, world
from launch.job import store
from launch.jobs.dissect import page as units
from launch.jobs.dissect import work as dissect
from launch.jobs.walk import page as walks
from launch.jobs.walk import work as walk
from launch.report import pictures
from launch.report.html import document, number, percent, text
from launch.report.parts import figure
from perturb.types import Record

_OUT, _SEED, _SMALL = flags.shared("out", "seed", "small")

LAYER, ATTRIBUTE = "layer1", "background lightness"
# A unit is active on its strongest tenth: the concepts of this world cover a tenth to a quarter of
# it.
QUANTILE, CONTROLS = 0.9, 40
# Switched on at twice that: at about the level that units have by themselves what is drawn is a
# matter of which concept is stronger.
ON_LEVEL = 2.0
SHOWN = 8  # samples beside their segmentation


def main() -> int:
    """Runs both jobs, measures against the truth and writes the page."""
    out = store.path(_OUT.value or "out/demo-gan")
    began = time.monotonic()
    store.writable(out)
    common = {"generator": "demo", "weights": None, "concepts": None, "seed": _SEED.value}
    small = _SMALL.value
    samples = 64 if small else 1500
    dissect.run(
        out / "dissect",
        {
            **common,
            "layer": LAYER,
            "samples": samples,
            "effect_samples": 16 if small else 128,
            "quantile": QUANTILE,
            "units": 8,
            "controls": 2 if small else CONTROLS,
            "on_level": ON_LEVEL,
            "batch_size": 32,
            "out": str(out / "dissect"),
        },
    )
    walk.run(
        out / "walk",
        {
            **common,
            "direction": f"attribute:{ATTRIBUTE}",
            "layer": None,
            "from": -3.0,
            "to": 3.0,
            "frames": 5 if small else 11,
            "walks": 3 if small else 8,
            "fit_samples": 100 if small else 1500,
            "controls": 2 if small else 6,
            "animation": "webp",
            "batch_size": 50,
            "out": str(out / "walk"),
        },
    )
    logging.info("comparing %d samples with what their latents ought to give", 16 if small else 200)
    summary, shown = _truth(16 if small else 200, out / "walk" / "direction.npy")
    record, arrays = units.last(out / "dissect")
    summary["units_off"] = {
        row["concept"]: row["effect"]
        for row in record["rows"]
        if row["kind"] == "effect" and row["state"] == "off"
    }
    sets = {item["concept"]: item["units"] for item in record["items"]}
    levels = ON_LEVEL * np.maximum(arrays["table.thresholds"], 0)
    painted, strips = brushed.measured(LAYER, sets, levels, 16 if small else 200)
    summary["painted_under_a_brush"] = painted
    chosen = _clearest(record)
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    store.put(out / "demo-gan.json", (json.dumps(summary, indent=2) + "\n").encode())
    store.put(folder / "index.html", _page(out, summary, shown, record, arrays, chosen, strips))
    logging.info("done in %.0f s: %s", time.monotonic() - began, folder / "index.html")
    return 0


def _truth(count: int, direction: store.Path) -> tuple[Record, dict[str, np.ndarray]]:
    """Returns how near samples, segmentation and direction come to what is known, and a few
    samples.
    """
    generator, segments = demo.load_generator(), demo.segments()
    # Other samples than those that units and direction were found on.
    z = np.asarray(gan_dissect.sample(generator, jax.random.key(977), count))
    images, masks = jax.device_get(jax.jit(_seen)(generator, segments, z))
    # The picture that belongs to a latent is known exactly, for the generator learned from
    # such pairs.
    drawn = [world.draw(latents.scene(one)) for one in z]
    meant = np.stack([p.image for p in drawn])
    # All objects are one label here, behind the four backgrounds.
    labels = strokes.merged(np.stack([latents.segments(p) for p in drawn]))
    found = strokes.seen(masks)
    normal = np.load(io.BytesIO(direction.read_bytes()), allow_pickle=False)[0]
    # The direction in which the world itself changes this factor.
    truth = latents.TURN[latents.FACTORS.index(ATTRIBUTE)]
    # On the world's own pictures: how far the reader itself can be trusted.
    read = np.asarray(jax.jit(lambda c, x: c({"image": x}))(segments, meant)).argmax(-1)
    error = ((images - meant) ** 2).mean((1, 2, 3))
    target = np.array([p.target for p in drawn])
    named = jax.jit(lambda model, x: model(x))
    right = {
        title: round(float((np.asarray(named(model, x)).argmax(-1) == target).mean()), 4)
        for model in [demo.load("demo")]
        for title, x in (("world", meant), ("samples", images))
    }
    summary = {
        "samples": count,
        "psnr_db": round(float(-10 * np.log10(error).mean()), 2),
        "shapes_named_by_the_honest_classifier": right,
        "iou_of_the_reader_on_the_world": train_reader.ious(read, labels, latents.SEGMENTS),
        "iou_of_samples_with_what_was_meant": train_reader.ious(found, labels, latents.SEGMENTS),
        "pixels_as_meant": round(float((found == labels).mean()), 4),
        "cosine_of_direction_and_truth": round(
            float(directions.cosines(np.stack([normal, truth]))[0, 1]), 4
        ),
    }
    few = slice(0, min(SHOWN, count))
    return summary, {"images": images[few], "meant": meant[few], "found": found[few]}


def _seen(
    generator: gan_dissect.Generator, segments: gan_dissect.Concepts, z: jax.Array
) -> tuple[jax.Array, jax.Array]:
    outputs = generator(z)
    return outputs["image"], segments(outputs)


def _clearest(record: Record) -> tuple[str, ...]:
    """Returns the two concepts of which switching off their units takes the largest share."""
    rows = [r for r in record["rows"] if r["kind"] == "effect" and r["state"] == "off"]
    # A concept in a handful of samples has a ratio that says nothing.
    known = [r for r in rows if r["effect"]["ratio"] is not None and r["images"] >= 10] or rows
    known.sort(key=lambda r: r["effect"]["ratio"] or 0.0)
    return tuple(r["concept"] for r in known[:2])


# One colour a label, told apart by lightness too: four backgrounds, the object, the bare canvas.
_PALETTE = np.array(
    [
        (122, 156, 98),
        (158, 190, 216),
        (216, 196, 166),
        (190, 178, 204),
        (150, 44, 40),
        (255, 255, 255),
    ],
    np.uint8,
)


def _page(
    out: store.Path,
    summary: Record,
    shown: dict[str, np.ndarray],
    record: Record,
    arrays: dict[str, np.ndarray],
    shown_concepts: tuple[str, ...],
    strips: dict[str, np.ndarray],
) -> bytes:
    settings = results.settings(out / "walk")
    found = settings["model"]["direction"]
    names, walked = walks.read(out / "walk")
    flags_ = settings["flags"]
    positions = np.linspace(flags_["from"], flags_["to"], flags_["frames"])
    rows = [
        ("what the latent should give", pictures.levels(shown["meant"]), ""),
        (
            "what the generator draws",
            pictures.levels(shown["images"]),
            f"<span>{number(summary['psnr_db'])}\N{NO-BREAK SPACE}dB from it; the honest "
            "classifier names "
            f"{percent(summary['shapes_named_by_the_honest_classifier']['samples'])} of the "
            "shapes</span>",
        ),
        (
            "what the segmentation network sees",
            _PALETTE[shown["found"]],
            f"<span>{percent(summary['pixels_as_meant'])} of the pixels as meant</span>",
        ),
    ]
    sheets = "".join(
        figure(
            "shown", pictures.beside([pictures.enlarge(t, 128) for t in tiles]), title, title, below
        )
        for title, tiles, below in rows
    )
    key = "".join(
        f'<li><svg viewBox="0 0 16 16" aria-hidden="true"><rect class="label{i}" width="16" '
        'height="16" rx="4">'
        f"</rect></svg>{text(name)}</li>"
        for i, name in enumerate(latents.SEGMENTS)
    )
    others = [i["concept"] for i in record["items"] if i["concept"] not in shown_concepts]
    rest = (
        f"<details><summary>The other concepts: {text(', '.join(others))}</summary>"
        f"{units.body(record, arrays, others)}</details>"
        if others
        else ""
    )
    count, side = len(arrays["table.best"]), arrays["top.active"].shape[-1]
    cosine = number(summary["cosine_of_direction_and_truth"])
    body = (
        "<header><h1>What units draw, and <em>where a direction leads</em></h1><p>A small "
        "generator turns 20 random numbers into pictures of a simple world: one object on one of "
        "four backgrounds. It was trained on pairs of numbers and pictures, so what it should draw "
        "is known, and a second network that was trained on the world's exact labels says what "
        "every pixel of its pictures shows (mean IoU "
        f"<b>{number(summary['iou_of_the_reader_on_the_world']['mean'])}</b> on the world's own "
        f'pictures).</p></header><section class="samples">{sheets}<ul class="legend '
        f'key">{key}</ul></section>'
        f"<main><h2 class=section>Units of {text(LAYER)}, and what goes with them</h2>"
        f"<p class=lead>The picture is made in three layers. {text(LAYER)} consists of {count} "
        f"maps of {side} × {side} places; each map is a unit, and what follows asks what each of "
        f"them is for.</p><p class=lead>{units.lead(results.settings(out / 'dissect'))}</p>"
        f"{units.questions(record, results.settings(out / 'dissect'))}{units.summary(record)}"
        f"<h3>The clearest of them</h3>{units.LEGEND}"
        f"{units.body(record, arrays, shown_concepts)}{rest}"
        f"{brushed.part(summary['painted_under_a_brush'], strips)}"
        f"<h2 class=section>A walk along <em>{text(ATTRIBUTE)}</em></h2>"
        f"<p class=lead>{walks.found(found)} The cosine between it and the direction that the "
        f"world itself follows is <b>{cosine}</b>.</p><p class=lead>The curves show what the "
        "second network reads from the pictures of the walk. Each row of pictures below them is "
        "one latent: <b>0</b> is where it stands, and from column to column it moves along the "
        f"direction, by the distances written above.</p>{walks.LEGEND}"
        f"{walks.curve(names, walked, positions, meant=ATTRIBUTE, most=4)}"
        f"{walks.strips(walked, positions, 4)}</main>"
    )
    style = units.STYLE + walks.STYLE + brushed.STYLE + _STYLE
    return document("What units draw, and where a direction leads", body, style=style)


_STYLE = (
    ".samples{display:grid;gap:.6rem;max-width:66rem}h2.section{font-size:1.45rem;margin:2.4rem 0 "
    ".5rem}h2.section em{font-style:normal;color:var(--accent)}.key "
    "svg{width:1rem;margin-right:.35rem}details{margin:1.2rem "
    "0}summary{cursor:pointer;color:var(--accent);font-weight:600;margin-bottom:.7rem}"
    + "".join(
        f".label{i}{{fill:#{r:02x}{g:02x}{b:02x}}}" for i, (r, g, b) in enumerate(_PALETTE.tolist())
    )
)


if __name__ == "__main__":
    flags.run(main)
