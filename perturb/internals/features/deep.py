"""A small convolutional network as the prior of a picture: deep image prior (Ulyanov et al. 2018).

The picture is what an untrained encoder and decoder makes of fixed noise, and its weights are what
is optimised: shapes and edges are learnt long before noise is. As a parametrisation it serves
anything here, `invert` and `visualise` among them; `restore` takes noise and holes out of a
picture.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from perturb.internals.features.images import Size, Untouched
from perturb.types import Record

__all__ = ["Deep"]

_SLOPE = 0.2  # of the leaky rectifier below 0, as published


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Deep(Untouched):
    """An encoder and decoder with links across, of fixed noise; narrower than the published 128.

    Convolutions are products of patches, so that pictures side by side are one batched product.

    Attributes:
      width: channels of each level, at least 1; static.
      skip: channels that cross from encoder to decoder, at least 1; static.
      levels: number of halvings, fewer where the picture is too small for them; static.
      inputs: channels of the fixed noise, at least 1; static.
    """

    width: int = dataclasses.field(default=32, metadata={"static": True})
    skip: int = dataclasses.field(default=4, metadata={"static": True})
    levels: int = dataclasses.field(default=4, metadata={"static": True})
    inputs: int = dataclasses.field(default=16, metadata={"static": True})

    def check(self, size: Size) -> None:
        """Refuses numbers below 1."""
        for name in ("width", "skip", "levels", "inputs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _depth(self, size: Size) -> int:
        # Mirrored edges need two pixels, also at the smallest level.
        return max(1, min(self.levels, int(np.log2(min(size[:2]))) - 1))

    def init(self, key: jax.Array, size: Size) -> Record:
        """Returns the fixed noise, and random weights."""
        w, s = self.width, self.skip
        layers: dict[str, tuple[int, int, int]] = {}
        for i in range(self._depth(size)):
            below = self.inputs if i == 0 else w
            layers |= {
                f"skip{i}": (1, below, s),
                f"down{i}": (3, below, w),
                f"deep{i}": (3, w, w),
                f"up{i}": (3, w + s, w),
                f"mix{i}": (1, w, w),
            }
        layers["last"] = (1, w, size[2])
        found: Record = {
            # As published: uniform up to .1.
            "noise": 0.1 * jax.random.uniform(jax.random.fold_in(key, 0), (*size[:2], self.inputs))
        }
        for n, (name, (side, below, above)) in enumerate(layers.items()):
            scale = np.sqrt(2 / (side * side * below))
            shape = (side * side * below, above)
            found[name] = {
                "kernel": scale * jax.random.normal(jax.random.fold_in(key, n + 1), shape),
                "bias": jnp.zeros(above),
                "gain": jnp.ones(above),
            }
        return found

    def image(self, params: Record, size: Size) -> jax.Array:
        """Returns the picture."""
        x = jax.lax.stop_gradient(params["noise"])
        across = []
        for i in range(self._depth(size)):
            across.append(_layer(x, params[f"skip{i}"], 1))
            x = _layer(_layer(x, params[f"down{i}"], 3, 2), params[f"deep{i}"], 3)
        for i, link in reversed(list(enumerate(across))):
            x = jax.image.resize(x, (*link.shape[:2], x.shape[-1]), "bilinear")
            x = _layer(jnp.concatenate([x, link], -1), params[f"up{i}"], 3)
            x = _layer(x, params[f"mix{i}"], 1)
        last = params["last"]
        return jax.nn.sigmoid(_convolve(x, last["kernel"], 1, 1) + last["bias"])


def _convolve(x: jax.Array, kernel: jax.Array, side: int, stride: int) -> jax.Array:
    height, width, channels = x.shape
    if side > 1:
        wide = jnp.pad(x, [(1, 1), (1, 1), (0, 0)], mode="reflect")
        parts = [
            wide[dy : dy + height : stride, dx : dx + width : stride]
            for dy in range(side)
            for dx in range(side)
        ]
        x = jnp.concatenate(parts, -1)
    rows = x.reshape(-1, side * side * channels) @ kernel
    found: jax.Array = rows.reshape(*x.shape[:2], -1)
    return found


def _layer(x: jax.Array, weights: Record, side: int, stride: int = 1) -> jax.Array:
    x = _convolve(x, weights["kernel"], side, stride)
    # Normalised over the places of this one picture: it must not depend on its neighbours.
    mean = x.mean((0, 1))
    x = (x - mean) * jax.lax.rsqrt(((x - mean) ** 2).mean((0, 1)) + 1e-5)
    x = x * weights["gain"] + weights["bias"]
    return jnp.where(x > 0, x, _SLOPE * x)
