"""The small classifier of the embedded picture world: six convolutions and one pooling.

Its pooling is the root mean square of each channel over places, `sqrt(mean(x²))`: smooth like the
mean, and not diluted when the object is small. Weights are saved with batch normalisation folded
into the convolutions, so inference couples nothing and every layer is a plain convolution.

>>> import jax
>>> demo(key=jax.random.key(0))(jax.numpy.zeros((2, 64, 64, 3))).shape
(2, 10)
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from perturb import weights as weights_lib
from perturb.geometry import squash
from perturb.nets._net import Net
from perturb.types import Record, Variables

__all__ = ["DemoNet", "apply", "demo", "demo_cheat", "fold"]

# Channels, side of the kernel and stride of `conv1`, `conv2`, ...
LAYERS = ((16, 5, 2), (32, 3, 2), (32, 3, 1), (48, 3, 2), (64, 3, 1), (64, 3, 1))
_EPSILON = 1e-5


class DemoNet(nn.Module):
    """Images `[B, H, W, 3]` in [0, 1] to logits `[B, classes]`.

    Layers are named `conv1` ... `conv6`, `pool` and `classes`; pixels are centred inside, 4x - 2.

    Attributes:
      classes: number of classes.
      norm: batch normalisation after each convolution, for training only; `fold` removes it.
    """

    classes: int
    norm: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits; with `norm` and `train` the statistics are those of the batch."""
        x = 4 * images - 2
        for i, (channels, side, stride) in enumerate(LAYERS, 1):
            x = nn.Conv(
                channels,
                (side, side),
                (stride, stride),
                use_bias=not self.norm,
                kernel_init=nn.initializers.he_normal(),
                name=f"conv{i}",
            )(x)
            if self.norm:
                x = nn.BatchNorm(
                    use_running_average=not train, momentum=0.95, epsilon=_EPSILON, name=f"norm{i}"
                )(x)
            x = nn.relu(x)
        # The floor keeps the slope of the root finite where a channel is silent everywhere.
        with jax.named_scope("pool"):
            x = jnp.sqrt((x * x).mean((1, 2)) + 1e-4)
        return nn.Dense(self.classes, name="classes")(x)


def fold(variables: Variables) -> Record:
    """Returns the variables of the same network without normalisation, which gives the same logits.

    Args:
      variables: of `DemoNet(norm=True)`: `params` and `batch_stats`.
    """
    params, stats = variables["params"], variables["batch_stats"]
    folded = {"classes": dict(params["classes"])}
    for i in range(1, len(LAYERS) + 1):
        norm, stat = params[f"norm{i}"], stats[f"norm{i}"]
        # A normalisation with fixed statistics is linear: its gain goes into the kernel, the rest
        # into the bias.
        gain = norm["scale"] / jnp.sqrt(stat["var"] + _EPSILON)
        folded[f"conv{i}"] = {
            "kernel": params[f"conv{i}"]["kernel"] * gain.reshape(1, 1, 1, -1),
            "bias": norm["bias"] - stat["mean"] * gain,
        }
    return {"params": folded}


def apply(variables: Variables, images: jax.Array) -> jax.Array:
    """Returns logits `[B, classes]`; the number of classes is read from the weights."""
    classes = variables["params"]["classes"]["bias"].shape[0]
    return DemoNet(classes=classes).apply(variables, images)  # type: ignore[return-value]


def _net(name: str) -> Net:
    def module(tensors: weights_lib.Tensors) -> DemoNet:
        shows = (("classes.weight", 0), ("classes.bias", 0))
        return DemoNet(weights_lib.width(tensors, *shows, default=10))

    hint = f"; perturb.demo({name!r}) brings the embedded ones"
    return Net(name=name, module=module, geometry=squash(64), mean=(0.0,), std=(1.0,), hint=hint)


# Two networks of one architecture, told apart by what they were trained on.
demo, demo_cheat = _net("demo"), _net("demo_cheat")
