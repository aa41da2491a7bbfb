"""CIFAR ResNets with option-A shortcuts, `He et al. 2015 <https://arxiv.org/abs/1512.03385>`_
section 4.2.

Layers carry the names of the public PyTorch checkpoints (`layer1.0.conv1`). These were trained with
ImageNet's mean and standard deviation.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturb import weights as weights_lib
from perturb.geometry import squash
from perturb.nets._net import Net

__all__ = [
    "CifarResNet",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
]

_conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False)
_norm = functools.partial(nn.BatchNorm, use_running_average=True, epsilon=1e-5)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters:
    `[B, H / stride, W / stride, channels]`.
    """

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = _conv(self.channels, strides=self.stride, name="conv1")(x)
        y = jax.nn.relu(_norm(name="bn1")(y))
        y = _norm(name="bn2")(_conv(self.channels, name="conv2")(y))
        # Option A: every second pixel, and the new channels are zeros, half before and half behind.
        x = x[:, :: self.stride, :: self.stride]
        new = self.channels - x.shape[-1]
        return jax.nn.relu(y + jnp.pad(x, [(0, 0)] * 3 + [(new // 2, new - new // 2)]))


class CifarResNet(nn.Module):
    """Images `[B, 32, 32, 3]`, normalised, to logits `[B, classes]`.

    Attributes:
      blocks: blocks in each of the three stages; the depth is `6 * blocks + 2`.
      classes: number of classes.
    """

    blocks: int
    classes: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(_norm(name="bn1")(_conv(16, name="conv1")(x)))
        for stage, channels in enumerate((16, 32, 64), start=1):
            for i in range(self.blocks):
                stride = 2 if stage > 1 and i == 0 else 1
                x = BasicBlock(channels, stride, name=f"layer{stage}.{i}")(x)
        return nn.Dense(self.classes, name="linear")(x.mean((1, 2)))


def _net(depth: int) -> Net:
    def module(tensors: weights_lib.Tensors) -> CifarResNet:
        shows = (("linear.weight", 0), ("linear.bias", 0))
        classes = weights_lib.width(tensors, *shows, default=10)
        return CifarResNet((depth - 2) // 6, classes)

    # Pictures of 32 px already, so the geometry has no crop.
    return Net(name=f"cifar_resnet{depth}", module=module, geometry=squash(32), sizes=True)


cifar_resnet20, cifar_resnet32, cifar_resnet44, cifar_resnet56 = map(_net, (20, 32, 44, 56))
