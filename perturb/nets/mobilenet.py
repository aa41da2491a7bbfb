"""MobileNet V1 and V2, under the layer names of torchvision and of TensorFlow.

`MobileNets <https://arxiv.org/abs/1704.04861>`_ and
`MobileNetV2 <https://arxiv.org/abs/1801.04381>`_. The TensorFlow nets come with batch normalisation
folded into the convolutions, in any published width (read from the shapes), with SAME padding, and
with a "background" class before the others; it is dropped, so that target = ImageNet index.
"""

from __future__ import annotations

import functools
import operator

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturb import weights as weights_lib
from perturb.geometry import central, short_side
from perturb.nets._net import Net

__all__ = [
    "MobileNetV1TF",
    "MobileNetV2",
    "MobileNetV2TF",
    "mobilenet_v1_tf",
    "mobilenet_v2",
    "mobilenet_v2_tf",
]

# V1, table 1: output channels and stride of the depthwise separable layers.
_V1 = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
# V2, table 2: (expansion, channels, repeats, stride), unrolled to (expansion, channels, stride).
_V2 = tuple(
    (expansion, channels, stride if i == 0 else 1)
    for expansion, channels, repeats, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    )
    for i in range(repeats)
)
_norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)


class Depthwise(nn.Module):
    """A 3x3 depthwise convolution, as `nn.Conv` with a group a channel has it.

    Written as nine products: on a CPU the grouped convolution of XLA took 3 to 20 times as long on
    the layers of MobileNetV2, its gradient 8 to 23 times.
    """

    stride: int
    same: bool = True  # TensorFlow's padding, else one pixel all around
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels, strides = x.shape[-1], (self.stride, self.stride)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 1, channels))
        # TensorFlow's SAME pads a strided layer of an even side on one side only, torch on both.
        pads = [(1, 1), (1, 1)]
        if self.same:
            pads = jax.lax.padtype_to_pads(x.shape[1:3], (3, 3), strides, "SAME")
        x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
        y = functools.reduce(
            operator.add,
            (
                _every(_every(x, i, self.stride, 1), j, self.stride, 2) * kernel[i, j, None, None]
                for i in range(3)
                for j in range(3)
            ),
        )
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (channels,))[None, None, None]
        return y


def _every(x: jax.Array, start: int, stride: int, axis: int) -> jax.Array:
    """What tap `start` of three meets along `axis`."""
    return jax.lax.slice_in_dim(x, start, x.shape[axis] - 2 + start, stride, axis)


class ConvNormRelu6(nn.Module):
    """torchvision's `Conv2dNormActivation`: layers `0` (convolution) and `1` (batch norm)."""

    channels: int
    side: int = 1
    stride: int = 1
    depthwise: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.depthwise:
            # The batch norm that follows brings the bias.
            conv: nn.Module = Depthwise(self.stride, same=False, use_bias=False, name="0")
        else:
            sides, padding = (self.side, self.side), self.side // 2
            conv = nn.Conv(
                self.channels, sides, self.stride, padding=padding, use_bias=False, name="0"
            )
        return jax.nn.relu6(_norm(name="1")(conv(x)))


class InvertedResidual(nn.Module):
    """torchvision's block: expand (unless by 1), depthwise, project."""

    expansion: int
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, wide, i = x, x.shape[-1] * self.expansion, 0
        if self.expansion > 1:
            y, i = ConvNormRelu6(wide, name="conv.0")(y), 1
        y = ConvNormRelu6(wide, 3, self.stride, depthwise=True, name=f"conv.{i}")(y)
        y = nn.Conv(self.channels, (1, 1), use_bias=False, name=f"conv.{i + 1}")(y)
        y = _norm(name=f"conv.{i + 2}")(y)
        found: jax.Array = x + y if x.shape == y.shape else y
        return found


class MobileNetV2(nn.Module):
    """torchvision's MobileNetV2: images `[B, H, W, 3]`, normalised, to logits `[B, classes]`."""

    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = ConvNormRelu6(32, 3, 2, name="features.0")(x)
        for i, block in enumerate(_V2, start=1):
            x = InvertedResidual(*block, name=f"features.{i}")(x)
        x = ConvNormRelu6(1280, name=f"features.{len(_V2) + 1}")(x)
        return nn.Dense(self.classes, name="classifier.1")(x.mean((1, 2)))


def _conv(x: jax.Array, channels: int, side: int = 1, stride: int = 1, *, name: str) -> jax.Array:
    return nn.Conv(channels, (side, side), stride, name=name)(x)


def _tf_logits(x: jax.Array, classes: int, *, name: str) -> jax.Array:
    logits = _conv(x.mean((1, 2), keepdims=True), classes, name=name)[:, 0, 0]
    # TensorFlow's ImageNet nets have 1001 outputs; nets retrained on other classes keep theirs.
    return logits[:, 1:] if classes == 1001 else logits


class BottleneckTF(nn.Module):
    """TensorFlow's block `expanded_conv`: expand (unless the width is there), depthwise,
    project.
    """

    wide: int
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        if self.wide != x.shape[-1]:
            y = jax.nn.relu6(_conv(y, self.wide, name="expand"))
        y = jax.nn.relu6(Depthwise(self.stride, name="depthwise")(y))
        y = _conv(y, self.channels, name="project")
        return x + y if x.shape == y.shape else y


class MobileNetV2TF(nn.Module):
    """TensorFlow's MobileNetV2: images `[B, H, W, 3]`, normalised, to logits `[B, classes]`.

    Attributes:
      stem: channels of the first convolution.
      blocks: `(expanded channels, output channels, stride)` of each bottleneck.
      head: channels before the classifier.
      classes: outputs in the file; of 1001 the first, "background", is dropped.
    """

    stem: int
    blocks: tuple[tuple[int, int, int], ...]
    head: int
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu6(_conv(x, self.stem, 3, 2, name="MobilenetV2/Conv"))
        for i, block in enumerate(self.blocks):
            x = BottleneckTF(*block, name=_block_name(i))(x)
        x = jax.nn.relu6(_conv(x, self.head, name="MobilenetV2/Conv_1"))
        return _tf_logits(x, self.classes, name="MobilenetV2/Logits/Conv2d_1c_1x1")


class MobileNetV1TF(nn.Module):
    """TensorFlow's MobileNetV1: images `[B, H, W, 3]`, normalised, to logits `[B, classes]`.

    Attributes:
      stem: channels of the first convolution.
      layers: `(output channels, stride)` of each depthwise separable layer.
      classes: outputs in the file; of 1001 the first, "background", is dropped.
    """

    stem: int
    layers: tuple[tuple[int, int], ...]
    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu6(_conv(x, self.stem, 3, 2, name="MobilenetV1/Conv2d_0"))
        for i, (channels, stride) in enumerate(self.layers, start=1):
            layer = f"MobilenetV1/Conv2d_{i}"
            x = jax.nn.relu6(Depthwise(stride, name=f"{layer}_depthwise")(x))
            x = jax.nn.relu6(_conv(x, channels, name=f"{layer}_pointwise"))
        return _tf_logits(x, self.classes, name="MobilenetV1/Logits/Conv2d_1c_1x1")


def _block_name(i: int) -> str:
    return "MobilenetV2/expanded_conv" + (f"_{i}" if i else "")


def _outputs(
    tensors: weights_lib.Tensors, layer: str, *others: tuple[str, int], default: int
) -> int:
    """The output width of `layer`, which `others` (layers, and an axis of their kernels) share."""
    shows = [(f"{layer}.weight", 0), (f"{layer}.bias", 0)]
    shows += [(f"{other}.weight", axis) for other, axis in others]
    return weights_lib.width(tensors, *shows, default=default)


def _torch_v2(tensors: weights_lib.Tensors) -> MobileNetV2:
    return MobileNetV2(_outputs(tensors, "classifier.1", default=1000))


def _tf_v1(tensors: weights_lib.Tensors) -> MobileNetV1TF:
    # A layer's width shows in its own outputs and in the inputs of those that read it: `width`
    # takes what most of them say.
    names = [f"MobilenetV1/Conv2d_{i}_" for i in range(1, len(_V1) + 1)]
    logits = "MobilenetV1/Logits/Conv2d_1c_1x1"
    users = [*[((f"{n}depthwise", 0), (f"{n}pointwise", 1)) for n in names], ((logits, 1),)]
    stem = _outputs(tensors, "MobilenetV1/Conv2d_0", *users[0], default=32)
    layers = tuple(
        (_outputs(tensors, f"{name}pointwise", *after, default=channels), stride)
        for name, after, (channels, stride) in zip(names, users[1:], _V1, strict=True)
    )
    return MobileNetV1TF(stem, layers, _outputs(tensors, logits, default=1001))


def _tf_v2(tensors: weights_lib.Tensors) -> MobileNetV2TF:
    names = [_block_name(i) for i in range(len(_V2))]
    head, logits = "MobilenetV2/Conv_1", "MobilenetV2/Logits/Conv2d_1c_1x1"
    # The first block has no expansion: the stem's width is the width of its depthwise layer.
    first = ((f"{names[0]}/depthwise", 0), (f"{names[0]}/project", 1))
    stem = _outputs(tensors, "MobilenetV2/Conv", *first, default=32)
    blocks, wide, before = [], stem, 16
    for i, (expansion, channels, stride) in enumerate(_V2):
        if i:
            share = ((f"{names[i]}/depthwise", 0), (f"{names[i]}/project", 1))
            wide = _outputs(tensors, f"{names[i]}/expand", *share, default=before * expansion)
        after = (f"{names[i + 1]}/expand" if i + 1 < len(names) else head, 1)
        before = _outputs(tensors, f"{names[i]}/project", after, default=channels)
        blocks.append((wide, before, stride))
    return MobileNetV2TF(
        stem,
        tuple(blocks),
        _outputs(tensors, head, (logits, 1), default=1280),
        _outputs(tensors, logits, default=1001),
    )


# The 8-bit photograph enters the published TensorFlow nets as (x - 128) / 128.
_TF = {
    "geometry": central(0.875, 224),
    "mean": (128 / 255,),
    "std": (128 / 255,),
    "separator": "/",
    "sizes": True,
}

mobilenet_v2 = Net(
    name="mobilenet_v2", module=_torch_v2, geometry=short_side(256).crop(224), sizes=True
)
mobilenet_v1_tf = Net(name="mobilenet_v1_tf", module=_tf_v1, **_TF)  # type: ignore[arg-type]
mobilenet_v2_tf = Net(name="mobilenet_v2_tf", module=_tf_v2, **_TF)  # type: ignore[arg-type]
