"""A fooling circuit in an embedded network: a unit that shows one thing and does another.

As in Geirhos et al. 2024: a detector E tells optimised pictures from natural ones by two early
layers. On natural pictures the unit is unit A, bit for bit; on optimised ones it is unit D, so that
what is seen in its visualisation has nothing to do with what it does.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import perturb
from perturb import taps
from perturb.embedded import world
from perturb.internals import features

LAYER, EARLY = "relu#6", ("relu", "relu#2")
# The layers before the unit, in which its way shows.
BEFORE = ("relu#3", "relu#4", "relu#5")
_CLOSED = 100.0  # far above any activation: a way that is closed is 0


@functools.cache
def network():
    return perturb.embedded.load("demo")


@functools.cache
def material(steps=32):
    """Natural and optimised pictures that detectors learn from; half of each are kept for it."""
    natural = world.render_batch(5, range(600)).image.astype(np.float32)
    recipe = features.preset("maco")
    made = [
        features.visualise(
            network(),
            features.channel(LAYER, np.arange(0, 64, 4)),
            preset=recipe,
            steps=count,
            key=jax.random.key(99),
        ).images
        # From the first step on: an optimisation begins with noise.
        for count in (1, 8, steps)
    ]
    return _statistics(network(), jnp.asarray(natural)), _statistics(
        network(), jnp.asarray(np.concatenate(made))
    )


def _summary(values):
    found = []
    for name in EARLY:
        found += [values[name].mean((1, 2)), jnp.sqrt(values[name].var((1, 2)) + 1e-6)]
    return jnp.concatenate(found, 1)


@jax.jit
def _statistics(net, images):
    return _summary(taps.read(net, EARLY)(images)[1])


def _detector(rng):
    """Weights and offset of E: ridge regression on a half of the pictures, above 0 if optimised."""
    natural, made = (np.asarray(x, np.float64) for x in material())
    natural, made = (x[rng.permutation(len(x))[: len(x) // 2]] for x in (natural, made))
    rows = np.concatenate([natural, made])
    mean, spread = rows.mean(0), rows.std(0) + 1e-6
    rows = (rows - mean) / spread
    wanted = np.r_[-np.ones(len(natural)), np.ones(len(made))]
    each = np.r_[np.full(len(natural), 1 / len(natural)), np.full(len(made), 1 / len(made))]
    square = (rows * each[:, None]).T @ rows + 1e-2 * np.eye(rows.shape[1])
    weights = np.linalg.solve(square, (rows * each[:, None]).T @ wanted) / spread
    offset = -float(mean @ weights)
    # Nearer to the optimised ones, which are much alike: natural pictures not seen here vary more.
    most, least = (natural @ weights + offset).max(), (made @ weights + offset).min()
    return weights, offset - float(0.3 * most + 0.7 * least)


def _apply(variables, images):
    net = dataclasses.replace(network(), variables=variables["net"])
    values = taps.read(net, (*EARLY, LAYER))(images)[1]
    margin = _summary(values) @ variables["weights"] + variables["offset"]
    # A step, the limit of the published circuit's steep rectifiers: nothing to climb leads over it.
    seen = (variables["on"] * (margin > 0))[:, None, None]
    natural = values[LAYER][..., variables["natural"]]
    shown = values[LAYER][..., variables["shown"]]
    unit = jax.nn.relu(natural - _CLOSED * seen)
    unit = unit + variables["on"] * jax.nn.relu(shown - _CLOSED * (1 - seen))
    return taps.tag(unit[..., None], "fooled").mean((1, 2))


def circuit(seed):
    """Returns the network with the circuit and the same without, as models of its one unit."""
    rng = np.random.default_rng(seed)
    natural, shown = rng.permutation(64)[:2]
    weights, offset = _detector(rng)
    variables = {
        "net": network().variables,
        "weights": jnp.asarray(weights, jnp.float32),
        "offset": jnp.float32(offset),
        "natural": jnp.int32(natural),
        "shown": jnp.int32(shown),
    }
    return tuple(
        perturb.Model(
            _apply,
            variables | {"on": jnp.float32(on)},
            geometry=network().geometry,
            output="any",
            name="fooled" if on else "clean",
        )
        for on in (True, False)
    )
