"""Is the embedded generator sharp, and can it be painted with?

`python -m benchmarks.painting_figures [samples] [units] [brush] [--samples=200] [--controls=250]
[--brushes=60]` prints its three tables: samples beside the pictures that their latents should give;
the best eight units of each concept switched off and on everywhere, among random sets of as many;
and the same under a brush of 4 x 4 places at a random place of every sample, by what was there.
Units are chosen on other latents than all of this is measured on.
"""

from __future__ import annotations

import argparse
import functools
import time

import jax
import numpy as np

import gan_dissect
from launch import demo
from launch.demo import latents, strokes, train_reader, world
from perturb import statistics

LAYER, UNITS, QUANTILE, DISSECTED = "layer1", 8, 0.9, 1500
# What units are switched on at, in times the value above which they count as active.
LEVEL = 2.0
# Latents of the dissection and of what is measured.
CHOICE, HELD_OUT = jax.random.key(0), jax.random.key(977)


def samples(count: int) -> None:
    """Samples beside what their latents should give."""
    generator, segments = demo.load_generator(), demo.segments()
    z = np.asarray(gan_dissect.sample(generator, HELD_OUT, count))
    drawn = [world.draw(latents.scene(one)) for one in z]
    meant, target = np.stack([p.image for p in drawn]), np.array([p.target for p in drawn])
    outputs = jax.jit(lambda g, z: g(z))(generator, z)
    images = np.asarray(outputs["image"])
    error = statistics.mean_interval(-10 * np.log10(((images - meant) ** 2).mean((1, 2, 3))))
    print(f"PSNR to the picture meant: {_interval(error, 1)} dB")
    for name, of in (("neighbours", _steps), ("edges", _edges)):
        print(f"sharpness, {name}: {of(images) / of(meant):.3f} of the world's own")
    labels = strokes.merged(np.stack([latents.segments(p) for p in drawn]))
    for title, shown in (("the world's own pictures", {"image": meant}), ("samples", outputs)):
        found = strokes.seen(np.asarray(jax.jit(lambda c, o: c(o))(segments, shown)))
        print(f"IoU of {title}: {train_reader.ious(found, labels, latents.SEGMENTS)}")
        print(f"pixels as meant: {(found == labels).mean():.4f}")
    model = demo.load("demo")
    for title, shown in (("the world's own pictures", meant), ("samples", images)):
        right = np.asarray(jax.jit(lambda m, x: m(x))(model, shown)).argmax(-1) == target
        each = ", ".join(
            f"{name} {right[target == world.class_names.index(name)].mean():.3f}"
            for name in latents.OBJECTS
        )
        share = statistics.mean_interval(right.astype(float))
        print(f"shapes named by the honest classifier, {title}: {_interval(share, 3)} ({each})")


@functools.cache
def chosen() -> tuple[list[list[int]], np.ndarray]:
    """The best units of every concept, and the levels that they are switched on at."""
    table = gan_dissect.dissect(
        demo.load_generator(),
        layer=LAYER,
        concepts=demo.segments(),
        samples=DISSECTED,
        key=CHOICE,
        quantile=QUANTILE,
        replicates=0,
    )
    sets = [gan_dissect.ranked(table, name, UNITS).tolist() for name in table.concepts]
    for name, units in zip(table.concepts, sets, strict=True):
        column = table.concepts.index(name)
        print(f"{name}: units {units}, IoU {table.iou[units, column].round(2).tolist()}")
    return sets, (LEVEL * table.on_levels).astype(np.float32)


def units(count: int, controls: int) -> None:
    """Units off and on everywhere."""
    sets, levels = chosen()
    for state, value in (("off", 0.0), ("on", levels)):
        found = gan_dissect.unit_effects(
            demo.load_generator(),
            layer=LAYER,
            units=sets,
            concepts=demo.segments(),
            samples=count,
            key=HELD_OUT,
            value=value,
            controls=controls,
            replicates=1000,
        )
        own = np.arange(len(sets))
        p = found.p_value[own, own]
        believed = gan_dissect.discoveries(p)
        for s, name in enumerate(found.concepts):
            change = found.change[s]
            others = ", ".join(
                f"{n} {c:+.3f}" for n, c in zip(found.concepts, change, strict=True) if n != name
            )
            low, high = np.quantile(found.control_change[0][:, s], [0, 1])
            print(
                f"{state} {name}: area {found.before[s]:.3f}, change {change[s]:+.3f} "
                f"({found.change_low[s, s]:+.3f} to {found.change_high[s, s]:+.3f}), left "
                f"{found.ratio[s, s]:.3f} ({found.ratio_low[s, s]:.3f} to "
                f"{found.ratio_high[s, s]:.3f}); random {low:+.3f} to {high:+.3f}, p {p[s]:.3f}, "
                f"{'believed' if believed[s] else 'not believed'}; others {others}"
            )


def brush(count: int, controls: int) -> None:
    """Units off and on under a brush, by what was there."""
    sets, levels = chosen()
    for state, value in (("off", 0.0), ("on", levels)):
        found = []
        for name, mine in zip(latents.SEGMENTS, sets, strict=True):
            began = time.monotonic()
            one = gan_dissect.context_effects(
                demo.load_generator(),
                layer=LAYER,
                concept=name,
                units=mine,
                value=value,
                concepts=demo.segments(),
                samples=count,
                key=HELD_OUT,
                controls=controls,
            )
            found.append(one)
            there = ", ".join(
                f"{context} {change:+.2f} ({low:+.2f} to {high:+.2f}, {number})"
                for context, change, low, high, number in zip(
                    one.contexts,
                    one.context_change,
                    one.context_low,
                    one.context_high,
                    one.context_samples,
                    strict=True,
                )
                if number
            )
            leak = np.delete(np.abs(one.outside), one.concepts.index(name)).max()
            print(
                f"{state} {name}: under the brush {one.before:.3f} to {one.after:.3f}, change "
                f"{one.change:+.3f} ({one.change_low:+.3f} to {one.change_high:+.3f}); random "
                f"{one.control_change.min():+.3f} to {one.control_change.max():+.3f}, p "
                f"{one.p_value:.3f}; beside the brush at most {leak:.4f} of another concept; on "
                f"{there} [{time.monotonic() - began:.0f} s]",
                flush=True,
            )
        believed = gan_dissect.discoveries([one.p_value for one in found])
        print(f"{state}, believed: {dict(zip(strokes.NAMES, believed.tolist(), strict=True))}")


def _interval(found: statistics.Interval, digits: int) -> str:
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def _steps(images: np.ndarray) -> float:
    """Mean difference of neighbouring pixels."""
    return float(np.abs(np.diff(images, axis=1)).mean() + np.abs(np.diff(images, axis=2)).mean())


def _edges(images: np.ndarray) -> float:
    """Mean over the pictures of their strongest hundredth of such differences."""
    steps = np.abs(np.diff(images, axis=2)).max(-1).reshape(len(images), -1)
    return float(np.quantile(steps, 0.99, axis=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", default=["samples", "units", "brush"])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--controls", type=int, default=250)
    parser.add_argument("--brushes", type=int, default=60)
    given = parser.parse_args()
    for name in given.which:
        print(f"# {name}")
        if name == "samples":
            samples(given.samples)
        elif name == "units":
            units(given.samples, given.controls)
        elif name == "brush":
            brush(given.samples, given.brushes)
        else:
            parser.error(f"which must be samples, units or brush, got {name}")


if __name__ == "__main__":
    main()
