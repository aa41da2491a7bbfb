"""A generator whose units are known: unit 3 draws a square where the latent says so, unit 5 shades
all.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gan_dissect import Generator, Normal
from perturb import taps

UNITS, GRID, SIDE = 12, 8, 32
SQUARE = (slice(8, 20), slice(12, 28))
# On the grid of the layer: rows 2 to 4, columns 3 to 6.
CELLS = np.zeros((GRID, GRID), np.float32)
CELLS[2:5, 3:7] = 1


def apply(variables, z):
    noise = jnp.tanh(jnp.einsum("bd,dhwu->bhwu", z, variables["noise"]))
    square = jnp.where(z[:, 0] > 0, 1 + z[:, 0], 0).reshape(-1, 1, 1) * CELLS[None]
    # Unit 3 owes nothing to the noise: it is on in the whole square, or nowhere.
    units = jax.nn.relu(noise).at[..., 3].set(square)
    units = taps.tag(units, "units")
    units = units.repeat(SIDE // GRID, 1).repeat(SIDE // GRID, 2)
    drawn = units[..., 3] > 0
    shade = 0.2 + 0.3 * jax.nn.sigmoid(units[..., 5])
    image = jnp.stack([jnp.where(drawn, 1.0, shade), shade, shade], -1)
    # Names: nothing, square, dark.
    labels = jnp.where(drawn, 1, jnp.where(shade > 0.4, 2, 0))
    return {"image": image, "labels": labels}


def generator():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((6, GRID, GRID, UNITS)).astype(np.float32)
    return Generator(
        apply,
        {"noise": jnp.asarray(noise)},
        latent=Normal((6,)),
        label_names=("background", "square", "light"),
        name="planted",
    )
