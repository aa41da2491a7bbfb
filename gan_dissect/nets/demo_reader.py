"""The network that reads pictures of the embedded world: what every pixel is, and what decided the
picture.

One encoder, two ends: a decoder to the label of every pixel, and a dense layer to numbers about the
whole picture. Both are concepts: masks to compare units with, attributes to walk along.

>>> import jax
>>> net, images = DemoReader(labels=3, numbers=2), jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")
>>> variables = jax.eval_shape(net.init, jax.random.key(0), images)
>>> [part.shape for part in jax.eval_shape(net.apply, variables, images)]
[(2, 64, 64, 3), (2, 2)]
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturb.types import Variables

__all__ = ["DemoReader", "apply"]

# Channels at 32, 16, 8 and 4 px.
WIDTHS = (24, 48, 64, 96)


class DemoReader(nn.Module):
    """Images `[B, H, W, 3]` in [0, 1], sides multiples of 16, to logits `[B, H, W, labels]` and
    `[B, numbers]`.

    Attributes:
      labels: number of labels of a pixel.
      numbers: about the whole picture.
    """

    labels: int
    numbers: int

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of the labels, and the numbers."""
        x, levels = _folded(4 * images - 2), []
        for i, width in enumerate(WIDTHS, 1):
            x = nn.relu(_conv(x, width, 1 if i > 1 else 3, f"down{i}"))
            x = nn.relu(_conv(x, width, 3, f"conv{i}")) if i > 1 else x
            levels.append(x)
            x = _folded(x)
        x = levels[-1]
        numbers = nn.Dense(64, name="hidden")(x.reshape(len(x), -1))
        numbers = nn.Dense(self.numbers, name="numbers")(nn.relu(numbers))
        for i, width in zip((3, 2, 1), (64, 48, 24), strict=True):
            below = levels[i - 1]
            x = jnp.concatenate([x.repeat(2, 1).repeat(2, 2), below], -1)
            x = nn.relu(_conv(x, width, 1, f"up{i}"))
            x = nn.relu(_conv(x, width, 3, f"mix{i}"))
        x = _conv(x, 4 * self.labels, 1, "labels")
        batch, height, width, _ = x.shape
        x = x.reshape(batch, height, width, 2, 2, self.labels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, 2 * height, 2 * width, self.labels), numbers


def _conv(x: jax.Array, width: int, side: int, name: str) -> jax.Array:
    edge = side // 2
    # Padded here: XLA's gradient of a convolution that pads by itself is many times slower on a
    # CPU.
    x = jnp.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    init = nn.initializers.he_normal()
    return nn.Conv(width, (side, side), padding="VALID", kernel_init=init, name=name)(x)


def _folded(x: jax.Array) -> jax.Array:
    """Blocks of 2 x 2 places as one place of four times the channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def apply(variables: Variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the logits of the labels and the numbers; how many of each is read from the weights.

    Raises:
      ValueError: if the images are not `[B, 64, 64, 3]`.
    """
    if images.shape[1:] != (64, 64, 3):
        raise ValueError(
            f"the demo's reader sees images [B, 64, 64, 3], got shape {list(images.shape)}: it "
            "fits the embedded generator only"
        )
    params = variables["params"]
    net = DemoReader(
        labels=params["labels"]["bias"].shape[0] // 4, numbers=params["numbers"]["bias"].shape[0]
    )
    return net.apply(variables, images)  # type: ignore[return-value]
