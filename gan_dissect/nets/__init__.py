"""Generators by name, with strict import of their weights.

>>> import jax
>>> G = load_generator("dcgan", key=jax.random.key(0))
>>> G(jax.numpy.zeros((2, 64)))["image"].shape
(2, 28, 28, 1)
"""

from __future__ import annotations

import importlib
import inspect

import jax

from gan_dissect.generator import Generator
from gan_dissect.nets import layouts
from perturb.messages import did_you_mean, listed, short
from perturb.types import Record, Weights
from perturb.weights import read_tensors

__all__ = ["NAMES", "load_generator"]

# Written as text because importing a net imports Flax, and most of this library works without.
_BUILDERS = {
    "tile_dcgan": "gan_dissect.nets.tile_dcgan:tile_dcgan",
    "dcgan": "gan_dissect.nets.dcgan:dcgan",
    "mlp": "gan_dissect.nets.dcgan:mlp",
    "svhn_dcgan": "gan_dissect.nets.svhn_dcgan:svhn_dcgan",
    "pytorch_gan": "gan_dissect.nets.relatives:pytorch_gan",
    "keras_dcgan": "gan_dissect.nets.relatives:keras_dcgan",
    "pggan": "gan_dissect.nets.pggan:pggan",
    "stylegan": "gan_dissect.nets.stylegan:stylegan",
    "stylegan2": "gan_dissect.nets.stylegan2:stylegan2",
    "stylegan3": "gan_dissect.nets.stylegan3:stylegan3",
    "biggan": "gan_dissect.nets.biggan:biggan",
    "biggan_deep": "gan_dissect.nets.biggan_deep:biggan_deep",
    "demo": "gan_dissect.nets.demo:demo",
}

NAMES = tuple(_BUILDERS)


def load_generator(
    name: str,
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    **options: object,
) -> Generator:
    """Returns a generator: latents to `image` `[B, H, W, C]` in [0, 1], and what else it knows.

    Args:
      name: one of `NAMES`. `tile_dcgan` draws tile maps with exact `labels`, `dcgan` is PyTorch's
        layout, `mlp` dense layers, `svhn_dcgan` house numbers with frozen statistics, `pytorch_gan`
        the DCGAN of that collection, `keras_dcgan` one of Keras layers; `pggan`, `stylegan`,
        `stylegan2`, `stylegan3`, `biggan` and `biggan_deep` the large published ones. `demo` is the
        small net of `launch.demo`, which has its weights.
      weights: a safetensors file, or its tensors `{name: array}`. Every leaf is filled exactly
        once; latent size, widths and the names of the layers are read from the file. Layouts of
        other projects and prefixes such as `module.` are recognised, see
        `gan_dissect.nets.layouts`.
      key: instead of weights, for random ones; consumed.
      **options: of the net: see `gan_dissect.nets.tile_dcgan.tile_dcgan` and so on.
    Raises:
      ValueError: if the name or an option is unknown, if weights and key are both given or both
        absent, or if the weights do not fit (one error names all that is wrong).
      FileNotFoundError: if there is no such file.
    """
    if name not in _BUILDERS:
        hint = did_you_mean(name, NAMES)
        raise ValueError(
            f"no generator is called {short(name, 40)}{hint}; known: {listed(NAMES, 180)}"
        )
    module, attribute = _BUILDERS[name].split(":")
    build = getattr(importlib.import_module(module), attribute)
    # Read from the builder, so that a misspelt option is answered with the names of this net's.
    known = [k for k in inspect.signature(build).parameters if k not in ("weights", "key")]
    unknown = [k for k in options if k not in known]
    if unknown:
        raise ValueError(
            f"{name} has no option {', '.join(map(repr, unknown))}; its options: {', '.join(known)}"
        )
    if weights is not None:
        weights = _renamed(name, read_tensors(weights))
    found: Generator = build(weights=weights, key=key, **options)
    return found


def _renamed(name: str, tensors: Record) -> Record:
    """Returns the tensors under the net's own names, if another project's layout of it is known."""
    fitted = layouts.fit(tensors, net=name)
    return tensors if fitted is None else fitted.tensors
