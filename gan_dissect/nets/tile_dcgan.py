"""Generators of tile maps: a DCGAN whose channels score the kinds of tile that a cell may be.

The arg-max channel is the label of the cell, so their segmentation is exact and needs no segmenter.
Layout of the WGAN code's `DCGAN_G` (`Arjovsky et al. 2017 <https://arxiv.org/abs/1701.07875>`_)
with a ReLU at the end, as used for game levels
(`Volz et al. 2018 <https://arxiv.org/abs/1805.00728>`_).
"""

from __future__ import annotations

import colorsys
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gan_dissect.generator import Canvas, Generator, Uniform
from gan_dissect.nets._layers import Deconvolutions, Stage, variables_of
from perturb import weights as weights_lib
from perturb.types import PyTree, Record, Variables, Weights

__all__ = ["tile_dcgan"]

# Sizes of random weights: latent, widths from 4x4 on, kinds of tile.
_DEFAULT = (5, (256, 128, 64), 12)
_FIRST = re.compile(r"main[.]initial([:.])(\d+)-(\d+)[:.]convt[.]weight")


@dataclasses.dataclass(frozen=True)
class _Apply:
    """Scores of the whole canvas to the outputs, cropped."""

    module: Deconvolutions
    crop: tuple[int, int, int, int]
    colours: tuple[tuple[float, float, float], ...]

    def __call__(self, variables: Variables, latents: jax.Array) -> dict[str, jax.Array]:
        top, left, height, width = self.crop
        scores: PyTree = self.module.apply(variables, latents)
        scores = scores[:, top : top + height, left : left + width]
        # The lowest label wins a tie: also where all scores are 0.
        labels = jnp.argmax(scores, -1)
        image = jnp.asarray(self.colours, jnp.float32)[labels]
        return {"image": image, "labels": labels, "scores": scores}


def tile_dcgan(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    crop: Sequence[int] | None = None,
    latent_range: tuple[float, float] = (-1.0, 1.0),
    label_names: Sequence[str] = (),
    colours: Sequence[Sequence[float]] | None = None,
    name: str = "tile_dcgan",
) -> Generator:
    """Returns a tile generator: outputs `image`, `labels` and the tiles' `scores`
    `[B, H, W, tiles]`, >= 0.

    Latent size, widths, number of tiles and the names of the layers (`main.pyramid:128:relu`, or
    with dots) are read from the file.

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones; consumed.
      crop: `(height, width)` or `(top, left, height, width)` of the part that is a level; None
        keeps the whole canvas. Outside, these generators draw what their training filled in.
      latent_range: `z` is uniform in it.
      label_names: one a kind of tile; without them they are "tile 0", "tile 1", ....
      colours: RGB in [0, 1] for each kind of tile; None gives each its own hue. One pixel a tile.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, the crop leaves the canvas, or names or colours are not
        one a tile.
    """
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    size, widths, tiles, sign = _sizes(tensors or {})
    stages = _stages(size, widths, tiles, sign)
    module = Deconvolutions(stages)
    batch = jax.ShapeDtypeStruct((2, size), jnp.float32)
    variables = variables_of(name, module, batch, tensors, key)

    side = 4 * 2 ** len(widths)
    box = (0, 0, side, side) if crop is None else tuple(map(int, crop))
    box = (0, 0, *box) if len(box) == 2 else box
    if len(box) != 4 or min(box) < 0 or box[0] + box[2] > side or box[1] + box[3] > side:
        raise ValueError(
            f"crop must be (height, width) or (top, left, height, width) within {side} x {side}, "
            f"got {crop}"
        )
    if colours is None:
        # Steps of the golden ratio: neighbours in the list, often neighbours on the map, look
        # unlike.
        colours = [
            colorsys.hsv_to_rgb(0.618 * k % 1, 0.45 + 0.2 * (k % 3), 0.95 - 0.25 * (k % 2))
            for k in range(tiles)
        ]
    palette = np.asarray(colours, np.float64)
    if palette.shape != (tiles, 3) or palette.min() < 0 or palette.max() > 1:
        raise ValueError(
            f"colours must be RGB in [0, 1] for each of the {tiles} tiles, got shape "
            f"{palette.shape} in [{palette.min():g}, {palette.max():g}]"
        )
    if label_names and len(label_names) != tiles:
        raise ValueError(
            f"label_names must name the {tiles} tiles of {name}, got {len(label_names)}"
        )
    return Generator(
        _Apply(module, box, tuple(map(tuple, palette.tolist()))),
        variables,
        latent=Uniform((size,), *latent_range),
        label_names=tuple(label_names) or tuple(f"tile {k}" for k in range(tiles)),
        # Layers draw the whole canvas: a cell of theirs lies where it does on it, not on the crop.
        canvas=Canvas(side, side, box[0], box[1]),
        name=name,
    )


def _sizes(tensors: weights_lib.Tensors) -> tuple[int, tuple[int, ...], int, str]:
    """Latent size, widths, tiles and the sign between the parts of a name, from the names."""
    if not tensors:
        return *_DEFAULT, ":"
    first = next(filter(None, map(_FIRST.fullmatch, tensors)), None)
    if first is None:
        raise ValueError(
            "weights do not fit tile_dcgan: no tensor is called main.initial:Z-WIDTH:convt.weight "
            f"(or with dots); the file has {', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    sign, size, width = first[1], int(first[2]), int(first[3])
    widths = [width]
    prefix = f"main.pyramid{sign}"
    # A width that leads nowhere ends the chain; what then is missing, `fill` says.
    while True:
        ahead = [n for n in tensors if n.startswith(f"{prefix}{widths[-1]}-")]
        if len(ahead) != 1 or len(widths) > 12:
            break
        widths.append(int(re.split("[-:.]", ahead[0][len(prefix) :])[1]))
    last = f"main.final{sign}{widths[-1]}-"
    tiles = [n[len(last) :].split(sign)[0] for n in tensors if n.startswith(last)]
    return size, tuple(widths), int(tiles[0]) if tiles else _DEFAULT[2], sign


def _stages(size: int, widths: tuple[int, ...], tiles: int, sign: str) -> tuple[Stage, ...]:
    def stage(part: str, into: int, features: int, **options: Any) -> Stage:
        return Stage(
            conv=sign.join((f"main.{part}", f"{into}-{features}", "convt")),
            features=features,
            kernel=4,
            **options,
        )

    def named(part: str, width: int) -> dict[str, str]:
        return {
            kind: sign.join((f"main.{part}", str(width), what))
            for kind, what in (("norm", "batchnorm"), ("out", "relu"))
        }

    half: Record = {"stride": 2, "crop": (1, 1, 1, 1)}
    return (
        stage("initial", size, widths[0], stride=1, **named("initial", widths[0])),
        *(
            stage("pyramid", a, b, **half, **named("pyramid", b))
            for a, b in itertools.pairwise(widths)
        ),
        stage("final", widths[-1], tiles, **half, out="tile_logits"),
    )
