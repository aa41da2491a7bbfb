"""The DCGAN of house numbers that Radford et al. published in Theano, 32x32 RGB.

Its norms have no stored statistics: they use those of the batch at hand, so an image depends on its
neighbours and to switch a unit in one changes all. For dissection the statistics are frozen. The
Theano code convolves truly; the kernels of the file here are already turned around by 180 degrees.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_dissect.generator import Generator, Normal
from gan_dissect.nets._layers import CONV_TRANSPOSE, Deconvolutions, Norm, Stage, variables_of
from gan_dissect.nets.dcgan import ToImage
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import Record, Weights

__all__ = ["svhn_dcgan"]

_EPSILON = 1e-8


class _Svhn(nn.Module):
    batch: bool

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        x = nn.Dense(4096, use_bias=False, name="dense")(z)
        x = jax.nn.relu(Norm(_EPSILON, self.batch, name="bn1")(x))
        # Theano lays the values of a dense layer out with the channels first.
        x = x.reshape(len(x), 256, 4, 4).transpose(0, 2, 3, 1)
        x = taps.tag(x, "relu1")
        common: Record = {
            "kernel": 5,
            "stride": 2,
            # A kernel of 5 at stride 2 draws 2 h + 3 rows; Theano's half padding keeps 2 h, one
            # more cut off before than behind.
            "crop": (2, 1, 2, 1),
            "epsilon": _EPSILON,
        }
        stages = (
            Stage(
                conv="deconv2", norm="bn2", out="relu2", features=128, batch=self.batch, **common
            ),
            Stage(conv="deconv3", norm="bn3", out="relu3", features=64, batch=self.batch, **common),
            Stage(conv="deconv4", out="tanh", activation="tanh", features=3, **common),
        )
        return Deconvolutions(stages, name="stack")(x)


def svhn_dcgan(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    statistics: str = "frozen",
    turned: bool = True,
    name: str = "svhn_dcgan",
) -> Generator:
    """Returns the SVHN generator: `image` `[B, 32, 32, 3]`, z standard normal `[100]`, layers
    `relu1` to `relu3`.

    Args:
      weights: safetensors file, or `{name: array}`: `gw`, `gg`, `gb`, ... `gwx`, and for frozen
        statistics `frozen.bn1.mean` to `frozen.bn3.var`.
      key: instead of weights, for random ones; consumed.
      statistics: "frozen", or "batch" for the model as published, to compare with it only: it is
        refused by `check_generator`, and so by dissection.
      turned: whether the file's kernels of transposed convolutions are already turned around; False
        for the arrays as Theano's own code saved them.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or statistics is neither.
    """
    if statistics not in ("frozen", "batch"):
        raise ValueError(f"statistics must be 'frozen' or 'batch', got {statistics!r}")
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    if tensors is not None and not turned:
        # Theano convolves truly: what it calls a kernel is ours turned by 180 degrees.
        tensors = {k: v[:, :, ::-1, ::-1] if v.ndim == 4 else v for k, v in tensors.items()}
    slot = weights_lib.Slot
    slots = {"gw": slot(("params", "dense", "kernel"), weights_lib.LINEAR)}
    for i, (gain, shift) in enumerate((("gg", "gb"), ("gg2", "gb2"), ("gg3", "gb3")), start=1):
        path = (f"bn{i}",) if i == 1 else ("stack", f"bn{i}")
        slots |= {gain: slot(("params", *path, "scale")), shift: slot(("params", *path, "bias"))}
        if statistics == "frozen":
            # Not part of the published weights: measured afterwards, and added to the file.
            for kind in ("mean", "var"):
                slots[f"frozen.bn{i}.{kind}"] = slot(("batch_stats", *path, kind))
    for tensor, layer in (("gw2", "deconv2"), ("gw3", "deconv3"), ("gwx", "deconv4")):
        slots[tensor] = slot(("params", "stack", layer, "kernel"), CONV_TRANSPOSE)
    module = _Svhn(statistics == "batch")
    batch = jax.ShapeDtypeStruct((2, 100), jnp.float32)
    ignore = ("frozen.*",) if statistics == "batch" else ()
    return Generator(
        ToImage(module),
        variables_of(name, module, batch, tensors, key, slots=slots, ignore=ignore),
        latent=Normal((100,)),
        name=name,
    )
