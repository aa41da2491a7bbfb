"""DCGANs of images, `Radford et al. 2015 <https://arxiv.org/abs/1511.06434>`_: transposed
convolutions from z, tanh at the end.

Names and sizes are read from the file; strides and paddings do not show there and are arguments.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_dissect.generator import Generator, Normal
from gan_dissect.nets._layers import Deconvolutions, Stage, variables_of
from perturb import taps
from perturb import weights as weights_lib
from perturb.types import PyTree, Variables, Weights

__all__ = ["dcgan", "mlp"]


@dataclasses.dataclass(frozen=True)
class ToImage:
    """The output of a module as an image in [0, 1].

    Attributes:
      module: takes latents.
      signed: whether its output is in [-1, 1].
      shape: `(H, W, C)` if the output is flat.
    """

    module: nn.Module
    signed: bool = True
    shape: tuple[int, ...] = ()

    def __call__(self, variables: Variables, latents: jax.Array) -> dict[str, jax.Array]:
        x: PyTree = self.module.apply(variables, latents)
        x = x.reshape(len(x), *self.shape) if self.shape else x
        return {"image": (x + 1) / 2 if self.signed else x}


def dcgan(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    strides: Sequence[int] | None = None,
    paddings: Sequence[int] | None = None,
    epsilon: float = 1e-5,
    latent_scale: float = 1.0,
    name: str = "dcgan",
) -> Generator:
    """Returns a DCGAN in PyTorch's layout, `image` `[B, H, W, C]`, z standard normal.

    Two namings are read: `main.N` (a flat `Sequential` of convolution, norm, ReLU, as in PyTorch's
    example) and `gen.I.J` (a `Sequential` a stage). Layers are named as in the file: `main.2` and
    `gen.0.2` are the first ReLU. Random weights have the layout of `gen.I.J` for 28x28 digits.

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones; consumed.
      strides: one a transposed convolution; None gives 1, 2, 2, ... for `main.N` and 2, 1, 2, 2 for
        `gen.I.J`.
      paddings: PyTorch's, one a transposed convolution; None gives 0, 1, 1, ... for `main.N` and 0
        for `gen.I.J`.
      epsilon: of the norms.
      latent_scale: standard deviation of z.
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or strides or paddings are not one a convolution.
    """
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    found = _convolutions(tensors or {})
    flat = bool(tensors) and next(iter(found)).startswith("main.")
    count = len(found)
    if strides is None:
        # PyTorch's example grows from 1 px to 4 and then doubles, kernels of 4 and padding 1; the
        # other, kernels of 3 and 4 without padding, grows to 3, 6, 13 and 28 px.
        strides = [1, *[2] * (count - 1)] if flat else [2, 1, *[2] * (count - 2)]
    if paddings is None:
        paddings = [0, *[1] * (count - 1)] if flat else [0] * count
    for option, given in (("strides", strides), ("paddings", paddings)):
        if len(given) != count:
            raise ValueError(
                f"{option} must be one for each of the {count} transposed convolutions of {name}, "
                f"got {tuple(given)}"
            )
    stages = []
    for i, (conv, shape) in enumerate(found.items()):
        # In a Sequential the norm and the ReLU have the next two numbers; behind the last
        # convolution, which has no norm, the tanh has the next.
        parent, number = conv.rsplit(".", 1)
        last = i == count - 1
        stages.append(
            Stage(
                conv=conv,
                norm="" if last else f"{parent}.{int(number) + 1}",
                out=f"{parent}.{int(number) + (1 if last else 2)}",
                activation="tanh" if last else "relu",
                features=shape[1],
                kernel=shape[2],
                stride=int(strides[i]),
                crop=(int(paddings[i]),) * 4,
                # Many files have none, for a norm follows that would take it away again.
                bias=not tensors or f"{conv}.bias" in tensors,
                epsilon=epsilon,
            )
        )
    size = next(iter(found.values()))[0]
    module = Deconvolutions(tuple(stages))
    batch = jax.ShapeDtypeStruct((2, size), jnp.float32)
    return Generator(
        ToImage(module),
        variables_of(name, module, batch, tensors, key),
        latent=Normal((size,), latent_scale),
        name=name,
    )


def _convolutions(tensors: weights_lib.Tensors) -> dict[str, tuple[int, ...]]:
    """`{name of a transposed convolution: (I, O, k, k)}` in the order of their numbers."""
    if not tensors:
        # The layout of `gen.I.J` for digits of 28 px.
        shapes = ((64, 256, 3, 3), (256, 128, 4, 4), (128, 64, 3, 3), (64, 1, 4, 4))
        return {f"gen.{i}.0": shape for i, shape in enumerate(shapes)}
    found = {
        n.removesuffix(".weight"): t.shape
        for n, t in tensors.items()
        if t.ndim == 4 and re.fullmatch(r"(main\.\d+|gen\.\d+\.\d+)\.weight", n)
    }
    if not found:
        raise ValueError(
            "weights do not fit dcgan: no tensor [I, O, k, k] is called main.N.weight or "
            f"gen.I.J.weight; the file has {', '.join(sorted(tensors)[:3]) or 'none'}"
        )
    # By number, for as text main.12 would come before main.3.
    return dict(sorted(found.items(), key=lambda item: [int(k) for k in item[0].split(".")[1:]]))


class Mlp(nn.Module):
    """Dense layers with ReLU between: latents `[B, D]` to `[B, features of the last]`.

    Attributes:
      names: of the layers.
      features: of each.
      outs: names of their activations.
      output: activation of the last, "tanh" or "sigmoid".
    """

    names: tuple[str, ...]
    features: tuple[int, ...]
    outs: tuple[str, ...]
    output: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i, (name, features) in enumerate(zip(self.names, self.features, strict=True)):
            x = nn.Dense(features, name=name)(x)
            last = i == len(self.names) - 1
            x = (
                {"tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid}[self.output](x)
                if last
                else jax.nn.relu(x)
            )
            x = taps.tag(x, self.outs[i])
        return x


def mlp(
    *,
    weights: Weights = None,
    key: jax.Array | None = None,
    shape: Sequence[int] = (28, 28, 1),
    output: str = "tanh",
    name: str = "mlp",
) -> Generator:
    """Returns a generator of dense layers with ReLU, `image` `[B, *shape]`, z standard normal.

    The layers are those of the file in the order of the numbers in their names (`0.weight`,
    `2.weight`; `fc3.weight`, `fc4.weight`). Their activations are named `relu1`, `relu2`, ....

    Args:
      weights: safetensors file, or `{name: array}`.
      key: instead of weights, for random ones of 64-256-256; consumed.
      shape: `(H, W, C)` of the image.
      output: "tanh", mapped from [-1, 1] to [0, 1], or "sigmoid".
      name: for records.
    Raises:
      ValueError: if the weights do not fit, or output or shape are wrong.
    """
    if output not in ("tanh", "sigmoid"):
        raise ValueError(f"output must be 'tanh' or 'sigmoid', got {output!r}")
    height, width, channels = shape
    pixels = height * width * channels
    tensors = None if weights is None else weights_lib.read_tensors(weights)
    found = {"0": (256, 64), "2": (256, 256), "4": (pixels, 256)}
    if tensors is not None:
        found = {
            n.removesuffix(".weight"): t.shape
            for n, t in tensors.items()
            if t.ndim == 2 and n.endswith(".weight") and re.search(r"\d", n)
        }
        # By number, for as text layer 10 would come before layer 2.
        order = sorted(found, key=lambda n: [int(k) for k in re.findall(r"\d+", n)])
        found = {n: found[n] for n in order}
    if not found or list(found.values())[-1][0] != pixels:
        raise ValueError(
            f"weights do not fit mlp: the last dense layer must give {pixels} values, the pixels "
            f"of shape {tuple(shape)}; the file's layers are {found}"
        )
    size = next(iter(found.values()))[1]
    outs = (*(f"relu{i}" for i in range(1, len(found))), output)
    features = tuple(s[0] for s in found.values())
    module = Mlp(tuple(found), features, outs, output)
    batch = jax.ShapeDtypeStruct((2, size), jnp.float32)
    return Generator(
        ToImage(module, output == "tanh", (height, width, channels)),
        variables_of(name, module, batch, tensors, key),
        latent=Normal((size,)),
        name=name,
    )
