"""Small models for the launchers' tests, named on the command line as tests.launch.toy:NAME."""

import jax.numpy as jnp
import numpy as np

import perturb

NAMES = ("red", "green", "blue", "bright")


def _apply(weights, images):
    # Where a colour is strongest counts most, so that a small region can carry the answer.
    colours = jnp.concatenate([images, images.min(-1, keepdims=True)], -1)
    found = perturb.taps.tag((colours**4).mean((1, 2)), "colours")
    return found * weights[None] * 40


def load(weights=None):
    """Tells which colour a picture has most of, on 32 x 32 px; `weights` is an .npy file."""
    values = np.ones(4, np.float32) if weights is None else np.load(weights, allow_pickle=False)
    return perturb.Model(
        _apply,
        jnp.asarray(values),
        geometry=perturb.squash(32),
        class_names=NAMES,
        name="toy",
    )


def any_size():
    """The same, on pictures as they are."""
    return perturb.Model(_apply, jnp.ones(4), class_names=NAMES, name="any size")


def broken():
    """A model whose outputs are not numbers."""
    # NaN in every number, however bright the picture is.
    return perturb.Model(lambda w, x: _apply(w, x) / 0 * 0, jnp.ones(4), perturb.squash(32))


def raises():
    """A function that fails."""
    raise RuntimeError("no such bucket")


def not_a_model():
    """A function that returns something else."""
    return 3


def nan_logits():
    """A model that has no answer for the picture that is mostly blue."""

    def apply(weights, images):
        blue = (images[..., 2] > images[..., 0] + 0.5).mean((1, 2)) > 0.05
        return jnp.where(blue[:, None], jnp.nan, _apply(weights, images))

    return perturb.Model(apply, jnp.ones(4), geometry=perturb.squash(32), name="nan logits")


def nan_gradient():
    """A model that answers for every picture and has no gradient where one is mostly blue."""

    def apply(weights, images):
        blue = (images[..., 2] > images[..., 0] + 0.5).mean((1, 2)) > 0.05
        # The square root of nothing: its value is 0, its slope is not.
        flat = jnp.sqrt(jnp.where(blue, 0.0, 1.0) * images.mean((1, 2, 3)))
        return _apply(weights, images) + flat[:, None] * 1e-6

    return perturb.Model(apply, jnp.ones(4), geometry=perturb.squash(32), name="nan gradient")
