"""A family of the embedded classifier's units taken out, and hand-built ones put in their place.

`python -m benchmarks.circuit_figures [--number=600]`: the units of the first layer that a Gabor
filter of one colour describes best are set to zero, then given the fitted Gabor filters. Controls:
the mean of the kernel alone, the filter's stripes turned by 90 degrees, and as many other units
taken out.
"""

from __future__ import annotations

import argparse
import itertools

import jax
import numpy as np

from launch import demo
from launch.demo import world
from perturb.internals import circuits


def fit(kernel):
    """Share of a kernel's variance over places, the Gabor filter that is it, and one across."""
    side = kernel.shape[0]
    # A Gabor filter has one colour a place; what all places share is left as it is.
    mean = kernel.mean((0, 1))
    flat = (kernel - mean).reshape(side * side, -1)
    best = (-1.0, kernel, kernel)
    # Searched over a grid, some thousands for each kernel: a fit by slopes ends in the nearest
    # bump.
    options = (range(0, 180, 10), (3, 4, 5, 6, 8, 10), (1.0, 1.5, 2.0, 3.0), range(0, 180, 30))
    for angle, wavelength, sigma, phase in itertools.product(*options):
        g = circuits.gabor(side, angle=angle, wavelength=wavelength, sigma=sigma, phase=phase)
        g = g.reshape(-1)
        # Of all colours the one that leaves the least: the filter is of length 1.
        colour = g @ flat
        share = (colour**2).sum() / (flat**2).sum()
        if share > best[0]:
            across = circuits.gabor(
                side, angle=angle + 90, wavelength=wavelength, sigma=sigma, phase=phase
            )
            both = (
                np.outer(v, colour).reshape(kernel.shape) + mean for v in (g, across.reshape(-1))
            )
            best = (share, *both)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=600)
    parser.add_argument("--units", type=int, default=6)
    given = parser.parse_args()
    model = demo.load("demo")
    # A world of another seed than the one trained on, which is 0.
    batch = world.render_batch(23, range(given.number))
    run = jax.jit(lambda m, x: m(x))

    def answers(kernel=None, units=()):
        shown = model
        if len(units):
            params = dict(model.variables["params"])
            first = {name: np.array(w) for name, w in params["conv1"].items()}
            # Only the units asked for; the others keep what training gave them.
            first["kernel"][..., units] = 0 if kernel is None else kernel[..., units]
            if kernel is None:
                # Without its bias too, or the unit would still say the same thing everywhere.
                first["bias"][list(units)] = 0
            shown = type(model)(
                **{**vars(model), "variables": {"params": {**params, "conv1": first}}}
            )
        # Parts of a hundred: one program for all of them, and the activations of a hundred at once.
        parts = [run(shown, batch.image[i : i + 100]) for i in range(0, given.number, 100)]
        return np.concatenate([np.asarray(p) for p in parts])

    kernel = np.asarray(model.variables["params"]["conv1"]["kernel"])
    fits = [fit(kernel[..., u]) for u in range(kernel.shape[-1])]
    shares = np.array([fitted[0] for fitted in fits])
    units = np.argsort(-shares, kind="stable")[: given.units]
    built, across = (np.stack([fitted[i] for fitted in fits], -1) for i in (1, 2))
    # The control keeps each kernel's colour and has no stripes.
    even = np.broadcast_to(kernel.mean((0, 1)), kernel.shape)
    whole, gone, back = answers(), answers(units=units), answers(built, units)
    right = [(v.argmax(1) == batch.target).mean() for v in (whole, gone, back)]
    for name, other in (("its colour alone", even), ("stripes turned by 90 degrees", across)):
        control = answers(other, units)
        accuracy = (control.argmax(1) == batch.target).mean()
        print(name, "accuracy", round(float(accuracy), 4))
        print("  restored", circuits.restored(whole, gone, control, batch.target))
    print("units", units.tolist(), "share of variance", shares[units].round(2).tolist())
    print(
        "accuracy: whole, without the family, with hand-built units:", np.round(right, 4).tolist()
    )
    print("restored", circuits.restored(whole, gone, back, batch.target))
    print("built against gone", circuits.compare(gone, back, batch.target))
    print("built against whole", circuits.compare(whole, back, batch.target))
    # How much any units cost: the family has to cost more than these to say anything.
    for family in circuits.random_families(kernel.shape[-1], given.units, without=units, number=5):
        loss = (answers(units=family).argmax(1) == batch.target).mean()
        print("other units", family.tolist(), "accuracy", round(float(loss), 4))


if __name__ == "__main__":
    main()
