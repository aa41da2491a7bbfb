"""The part of the demo's page in which concepts are painted into samples: strips of pictures, and
where an insertion takes.
"""

from __future__ import annotations

import jax
import numpy as np

import gan_dissect
from launch import demo
from launch.demo import latents
from launch.report import pictures
from launch.report.html import text
from launch.report.parts import figure, table
from perturb.types import Record

__all__ = ["STYLE", "measured", "part"]

PAINTED = ("object", "stripes", "grass")
SHOWN = 8
STYLE = ".samples+.lead{margin-top:1.4rem}.brush td{white-space:nowrap}.brush{max-width:66rem}"


def measured(
    layer: str, sets: dict[str, list[int]], levels: np.ndarray, samples: int
) -> tuple[dict[str, Record], dict[str, np.ndarray]]:
    """Returns by concept what a brush changes under it, by what was there, and a few samples by
    title, `[8, 64, 64, 3]`: as drawn, then with each concept.

    Args:
      layer: its name.
      sets: units of each concept.
      levels: `[units]`, what they are switched on at.
      samples: how many latents are painted on.
    """
    generator, segments = demo.load_generator(), demo.segments()
    # Other samples than those that the units were chosen on.
    key = jax.random.key(977)
    z = gan_dissect.sample(generator, key, SHOWN)
    side = gan_dissect.layers(generator)[layer][0]
    # A disc in the lower left of every sample shown.
    line = np.arange(side)
    apart = np.hypot(line[:, None] - 0.7 * side, line[None, :] - 0.3 * side)
    disc = (apart < 0.22 * side).astype(np.float32)
    found: dict[str, Record] = {}
    shown = {"as drawn": np.asarray(generator(z)["image"])}
    for concept in PAINTED:
        if concept not in sets:
            continue
        units = sets[concept]
        one = gan_dissect.context_effects(
            generator,
            layer=layer,
            concept=concept,
            units=units,
            value=levels,
            concepts=segments,
            samples=samples,
            key=key,
            batch_size=50,
        )
        found[concept] = {
            "before": one.before,
            "after": one.after,
            "change": [one.change, one.change_low, one.change_high],
            "beside": float(np.abs(one.outside).max()),
            "on": {
                name: [float(change), float(low), float(high), int(n)]
                for name, n, change, low, high in zip(
                    one.contexts,
                    one.context_samples,
                    one.context_change,
                    one.context_low,
                    one.context_high,
                    strict=True,
                )
                if n
            },
        }
        edits = {layer: {unit: float(levels[unit]) for unit in units}}
        after = gan_dissect.set_units(generator, z, edits, where=disc)
        shown[f"with {concept} brushed in"] = np.asarray(after["image"])
    return found, shown


def part(found: dict[str, Record], shown: dict[str, np.ndarray]) -> str:
    """Returns what `measured` found, as a part of a page (safe HTML)."""
    if not found:
        return ""
    rows = [figure_of(title, images) for title, images in shown.items()]
    contexts = [n for n in (*latents.SEGMENTS, "none of them") if _any(found, n)]
    cells = [
        [text(f"on {context}"), *(_cell(found[concept]["on"].get(context)) for concept in found)]
        for context in contexts
    ]
    cells.append(["all places", *(_cell(found[c]["change"]) for c in found)])
    beside = max(one["beside"] for one in found.values())
    return (
        "<h2 class=section>Painted with a brush</h2><p class=lead>The same units switched on at "
        "one place only: a disc in the lower left of each sample. What they stand for appears "
        "there and nowhere else.</p>"
        f'<div class="samples">{"".join(rows)}</div>'
        "<p class=lead>Does it take everywhere? A brush of 4 × 4 places was laid at a random place "
        "of other samples. The table says by how many percentage points the concept's share of the "
        "place rose, by what stood there before (95 % interval; number of samples). Beside the "
        f"brush no concept changed by more than {100 * beside:.1f} points.</p>"
        f'<div class="brush">{table(["brushed in", *found], cells)}</div>'
    )


def figure_of(title: str, images: np.ndarray) -> str:
    """Returns a row of samples with its title."""
    tiles = [pictures.enlarge(tile, 128) for tile in pictures.levels(images)]
    return figure("shown", pictures.beside(tiles), title, title, "")


def _any(found: dict[str, Record], context: str) -> bool:
    return any(context in one["on"] for one in found.values())


def _cell(given: list[float] | None) -> str:
    if given is None:
        return "\N{EN DASH}"
    change, low, high, *number = given
    count = "".join(f"; {n:.0f}" for n in number)
    return f"{100 * change:+.0f} ({100 * low:+.0f} to {100 * high:+.0f}{count})".replace(
        "-", "\N{MINUS SIGN}"
    )
