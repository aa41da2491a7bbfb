"""Small generators and concepts for the launchers' tests, named as tests.launch.toygan:NAME."""

import jax
import jax.numpy as jnp
import numpy as np

import gan_dissect
from perturb import taps

UNITS, GRID, SIDE, LATENT = 12, 4, 16, 6


def _apply(variables, z):
    units = jax.nn.relu(jnp.einsum("bd,dhwu->bhwu", z, variables["noise"]))
    # Unit 3 alone draws red, where the first number of the latent is above 0.
    red = jnp.maximum(z[:, 0], 0).reshape(-1, 1, 1) * jnp.eye(GRID)[None]
    units = taps.tag(units.at[..., 3].set(red), "units")
    grown = units.repeat(SIDE // GRID, 1).repeat(SIDE // GRID, 2)
    # From 0.3 to 0.4, for unit 5 is never below 0.
    shade = 0.2 + 0.2 * jax.nn.sigmoid(grown[..., 5])
    image = jnp.stack([jnp.where(grown[..., 3] > 0, 1.0, shade), shade, shade], -1)
    return {"image": image}


def load(weights=None):
    """Latents of size 6 to pictures of 16 px; layer "units" has 12."""
    # Whatever the file holds: it only has to show whether one was given.
    rng = np.random.default_rng(0 if weights is None else 1)
    noise = rng.standard_normal((LATENT, GRID, GRID, UNITS)).astype(np.float32)
    return gan_dissect.Generator(
        _apply, {"noise": jnp.asarray(noise)}, gan_dissect.Normal((LATENT,)), name="toy"
    )


def load_tree():
    """The same with latents that are no vector."""
    generator = load()
    return gan_dissect.Generator(_tree, generator.variables, _tree_latent, name="tree")


def _tree(variables, latents):
    return _apply(variables, latents["z"])


def _tree_latent(key):
    return {"z": jax.random.normal(key, (LATENT,))}


def concepts():
    """Where a picture is red, and where it is light."""
    return gan_dissect.Concepts(_concepts, ("red", "light"))


def _concepts(variables, outputs):
    image = outputs["image"]
    return jnp.stack([image[..., 0] > 0.9, image[..., 1] > 0.3], -1)


def other_size():
    """Concepts for pictures of another size."""
    return gan_dissect.Concepts(_other_size, ("wide",))


def _other_size(variables, outputs):
    return jnp.zeros((len(outputs["image"]), 32, 32, 1), bool)


def scores():
    """How red a picture is, and how light."""
    return gan_dissect.Concepts(_scores, ("redness", "lightness"), kind="scores")


def _scores(variables, outputs):
    image = outputs["image"]
    return jnp.stack([image[..., 0].mean((1, 2)), image[..., 1].mean((1, 2))], -1)


def stylegan():
    """A small random StyleGAN2 of latents in W+."""
    return gan_dissect.load_generator("stylegan2", key=jax.random.key(0), space="w+")


def rare():
    """Whether a picture is light, 0 or 1: one of twenty; and how light, without a score for the
    darkest.
    """
    return gan_dissect.Concepts(_rare, ("rare", "gaps"), kind="scores")


def _rare(variables, outputs):
    image = outputs["image"]
    shade = image[..., 1].mean((1, 2))
    return jnp.stack([shade > 0.35, jnp.where(shade < 0.31, jnp.nan, shade)], -1).astype(
        jnp.float32
    )
