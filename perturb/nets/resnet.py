"""ResNets for photographs, `He et al. 2015 <https://arxiv.org/abs/1512.03385>`_, table 1.

Layers carry the names that torchvision and timm share. As both have it, and unlike the paper, the
stride of a bottleneck lies on its 3x3 convolution.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax

from perturb import weights as weights_lib
from perturb.geometry import short_side
from perturb.nets._net import Net
from perturb.nets._pool import max_pool

__all__ = ["ResNet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]

# Depth -> blocks in each stage, and whether they are bottlenecks.
_DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}
_norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1, beside a shortcut: `[B, H / stride, W / stride, C]`.

    Attributes:
      channels: of the 3x3 convolutions.
      stride: of the 3x3 convolution (the first of two), px.
      bottleneck: whether 1x1 convolutions come before and after; the output is four times as wide.
    """

    channels: int
    stride: int
    bottleneck: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # (side, stride, channels) of the convolutions.
        layers = [(3, self.stride, self.channels), (3, 1, self.channels)]
        if self.bottleneck:
            layers = [(1, 1, self.channels), layers[0], (1, 1, 4 * self.channels)]
        y = x
        for i, (side, stride, channels) in enumerate(layers, start=1):
            # A relu before each convolution but the first; the last relu comes after the shortcut
            # is added.
            y = _conv(channels, side, stride, name=f"conv{i}")(jax.nn.relu(y) if i > 1 else y)
            y = _norm(name=f"bn{i}")(y)
        if x.shape != y.shape:
            x = _conv(y.shape[-1], 1, self.stride, name="downsample.0")(x)
            x = _norm(name="downsample.1")(x)
        return jax.nn.relu(x + y)


class ResNet(nn.Module):
    """Images `[B, H, W, 3]`, normalised, to logits `[B, classes]`.

    Attributes:
      stages: number of blocks in each of the four stages.
      bottleneck: see `Block`.
      classes: number of classes.
    """

    stages: tuple[int, ...]
    bottleneck: bool
    classes: int = 1000

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(_norm(name="bn1")(_conv(64, 7, 2, name="conv1")(x)))
        x = max_pool(x, 3, 2, padding=1)
        for stage, blocks in enumerate(self.stages):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                name = f"layer{stage + 1}.{i}"
                x = Block(64 * 2**stage, stride, self.bottleneck, name=name)(x)
        return nn.Dense(self.classes, name="fc")(x.mean((1, 2)))


def _conv(channels: int, side: int, stride: int, *, name: str) -> nn.Conv:
    # Padded on both sides as torch does it; SAME would shift a strided layer by a pixel.
    return nn.Conv(channels, (side, side), stride, padding=side // 2, use_bias=False, name=name)


def _net(depth: int) -> Net:
    def module(tensors: weights_lib.Tensors) -> ResNet:
        shows = (("fc.weight", 0), ("fc.bias", 0))
        return ResNet(*_DEPTHS[depth], weights_lib.width(tensors, *shows, default=1000))

    return Net(name=f"resnet{depth}", module=module, geometry=short_side(256).crop(224), sizes=True)


resnet18, resnet34, resnet50, resnet101, resnet152 = map(_net, _DEPTHS)
