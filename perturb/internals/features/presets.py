"""Published recipes by name: parametrisation, transforms, step rule and number of steps.

>>> preset("lucid").steps
512
>>> import dataclasses
>>> dataclasses.replace(preset("maco"), steps=64, views=4).rule.nesterov
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from perturb.internals.features import images
from perturb.internals.features.rules import Adam, Ascent, Rule
from perturb.internals.features.transforms import Crop, Jitter, Noise, Roll, Transform
from perturb.types import PyTree

__all__ = ["PRESETS", "Preset", "preset"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """How a picture is optimised.

    Attributes:
      parametrisation: see `perturb.internals.features.images`.
      transforms: tuple of transforms, applied one after the other to each view.
      rule: the step rule.
      steps: how many.
      views: views of each picture a step, each with its own draws; their objectives are averaged.
      redirect: steps in which the slopes of silent ReLUs are redirected.
      octaves: number of sizes at which the picture is made, smallest first.
      octave_scale: factor from each size to the next, above 1.
      penalty: weight of `sum x^2` around the centre, in the picture's own units (Simonyan 2013).
    """

    parametrisation: PyTree = dataclasses.field(default_factory=images.Fourier)
    transforms: tuple[Transform, ...] = ()
    rule: Rule = dataclasses.field(default_factory=Adam)
    steps: int = 512
    views: int = 1
    redirect: int = 16
    octaves: int = 1
    octave_scale: float = 1.4
    penalty: float = 0.0


# Lucid's standard list: jitter 8, scales .9 to 1.1, -10 to 10 degrees with five zeros more, jitter
# 4.
_ROBUST = Jitter(
    first=4,
    last=2,
    scales=tuple(1 + (i - 5) / 50 for i in range(11)),
    degrees=tuple(float(d) for d in (*range(-10, 11), 0, 0, 0, 0, 0)),
)


def _lucid() -> Preset:
    return Preset(transforms=(_ROBUST,))


def _jitter() -> Preset:
    return Preset(transforms=(Jitter(first=4, last=0),))


def _maco() -> Preset:
    return Preset(
        parametrisation=images.Maco(),
        transforms=(Crop(), Noise()),
        rule=Adam(rate=1.0, nesterov=True),
        steps=256,
        views=32,
    )


def _maco_whole() -> Preset:
    return dataclasses.replace(_maco(), transforms=(_ROBUST,), views=1)


def _deepdream() -> Preset:
    return Preset(
        parametrisation=images.Raw(),
        transforms=(Roll(pixels=32),),
        rule=Ascent(rate=1.5 / 255, per="size"),
        steps=10,
        redirect=0,
        octaves=4,
    )


def _erhan() -> Preset:
    return Preset(
        parametrisation=images.Raw(deviation=1.0, norm=10.0),
        rule=Ascent(rate=1.0, per="size"),
        steps=200,
        redirect=0,
    )


def _simonyan() -> Preset:
    # From the mean picture along the plain gradient of the score. One level of noise on it: a flat
    # picture has no slope where relus are off or contrast is divided out. The weight was never
    # published: 1e-5 takes small networks' pictures back to flat, 1e-7 holds them at a tenth.
    return Preset(
        parametrisation=images.Raw(levels=255.0, deviation=1.0),
        rule=Ascent(rate=1e6, per="progress"),
        steps=200,
        redirect=0,
        penalty=1e-7,
    )


def _yosinski(row: int) -> Callable[[], Preset]:
    rows = {
        1: (Ascent(rate=100, per="progress", blur=0.5, small_norm=0.5), 500),
        2: (Ascent(rate=100, decay=0.3, small_norm=0.2), 750),
        3: (Ascent(rate=100, decay=1e-4, blur=1.0), 1000),
        4: (Ascent(rate=1e8, per="progress", blur=0.5, small_effect=0.9), 1000),
    }
    rule, steps = rows[row]
    start = images.Raw(levels=255.0, deviation=10.0)
    return lambda: Preset(parametrisation=start, rule=rule, steps=steps, redirect=0)


# Name of each recipe, and where it is from.
PRESETS: dict[str, Callable[[], Preset]] = {
    "lucid": _lucid,  # Olah et al. 2017; Lucid 0.3.10
    # Lucid with shifts alone: for networks that read things of one size and way up
    "jitter": _jitter,
    "maco": _maco_whole,  # Fel et al. 2023, with Lucid's transforms in place of 32 crops
    "maco_crops": _maco,  # as published: 32 crops a step, Xplique 1.6
    "deepdream": _deepdream,  # Mordvintsev et al. 2015
    "simonyan2013": _simonyan,  # Simonyan et al. 2013: from nearly zeros, the score less squares
    "erhan2009": _erhan,  # Erhan et al. 2009: gradient ascent under a norm
    "yosinski2015": _yosinski(3),  # Yosinski et al. 2015, table 1; most of their figures
    "yosinski2015_1": _yosinski(1),
    "yosinski2015_2": _yosinski(2),
    "yosinski2015_3": _yosinski(3),
    "yosinski2015_4": _yosinski(4),
}


def preset(name: str | Preset) -> Preset:
    """Returns the recipe of this name; change it with `dataclasses.replace`.

    Args:
      name: a name of `PRESETS`, or a `Preset`, which is returned as it is.
    Raises:
      ValueError: if the name is unknown.
    """
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]()
