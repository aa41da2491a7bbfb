"""The generator is a pure function and a pytree:
`apply(variables, latents) -> {"image": ..., ...}`.

Latents are any pytree with a leading axis (z, or z with a label and noise). Layers have names,
those of `perturb.taps`: tags, module scopes, inner functions. A sample is its index: latent 7 of a
key is the same whichever latents are drawn beside it, on whichever host.

>>> import jax, jax.numpy as jnp
>>> def apply(w, z):
...     return {"image": jax.nn.sigmoid(jax.nn.relu(z @ w)).reshape(-1, 2, 2, 1)}
>>> G = Generator(apply, jnp.eye(4), latent=Normal((4,)))
>>> G(sample(G, jax.random.key(0), 3))["image"].shape, layers(G)["relu"]
((3, 2, 2, 1), (4,))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from perturb import display
from perturb.types import PyTree, Variables
from perturb.units.subject import Canvas, layers, sample

__all__ = [
    "Canvas",
    "Generator",
    "Mapped",
    "Normal",
    "Uniform",
    "check_generator",
    "layers",
    "light_batch",
    "sample",
]

# Pixels of a batch that draws in little memory: a published net takes about 2 KiB for each.
_LIGHT_PIXELS = 2**19


@dataclasses.dataclass(frozen=True)
class Normal:
    """Draws one latent of `shape` from the standard normal.

    Attributes:
      shape: of one latent, without the batch.
      scale: standard deviation.
    """

    shape: tuple[int, ...]
    scale: float = 1.0

    def __call__(self, key: jax.Array) -> jax.Array:
        return self.scale * jax.random.normal(key, self.shape)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Draws one latent of `shape`, uniform in `[low, high)`.

    Attributes:
      shape: of one latent, a tuple of integers.
      low: number, the lower end.
      high: number, the upper end, excluded.
    """

    shape: tuple[int, ...]
    low: float = -1.0
    high: float = 1.0

    def __call__(self, key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, self.shape, minval=self.low, maxval=self.high)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Draws a latent that is made with the generator's own weights: the styles of a mapping
    network.

    So they are never drawn as if they were normal.

    Attributes:
      source: `key -> latent` of what is mapped.
      through: `(variables, latent) -> latent`; hashable.
    """

    source: Callable[[jax.Array], PyTree]
    through: Callable[[PyTree, PyTree], PyTree]

    def __call__(self, key: jax.Array, variables: Variables) -> PyTree:
        return self.through(variables, self.source(key))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generator:
    """A generator: a pure function, its weights, and what goes in and comes out.

    A registered dataclass: `variables` are the leaves and so traced arguments of every compiled
    program; everything else is static and must be hashable.

    Attributes:
      apply: `(variables, latents) -> outputs`. The outputs are a dict: `image` `[B, H, W, C]` in
        [0, 1]; `labels` `[B, H, W]`, integers, if the generator knows what each pixel is; and
        whatever else a concept wants to read. Row by row: an image must not depend on the others.
        Layers are `[B, h, w, units]` or `[B, units]`.
      variables: pytree of arrays.
      latent: `key -> one latent`, a pytree without the batch axis: `Normal((64,))`,
        `Uniform((5,))`, or any hashable function, or `Mapped`. For walks and directions it is one
        vector `[D]`.
      label_names: one name a value of `labels`, or empty.
      canvas: where the image lies on what the layers cover; None if they cover the image.
      name: for records and pages.
    """

    apply: Callable[[PyTree, PyTree], dict[str, jax.Array]] = dataclasses.field(
        metadata={"static": True}
    )
    variables: Variables
    latent: Callable[[jax.Array], PyTree] | Mapped = dataclasses.field(
        default=Normal((64,)), metadata={"static": True}
    )
    label_names: tuple[str, ...] = dataclasses.field(default=(), metadata={"static": True})
    canvas: Canvas | None = dataclasses.field(default=None, metadata={"static": True})
    name: str = dataclasses.field(default="generator", metadata={"static": True})

    def __post_init__(self) -> None:
        # Static fields are keys of compiled programs: a list of names would fail there, far from
        # here.
        object.__setattr__(self, "label_names", tuple(self.label_names))

    def __repr__(self) -> str:
        return display.summary(self)

    def __call__(self, latents: PyTree) -> dict[str, jax.Array]:
        """Returns the outputs for latents of leading size B."""
        return self.apply(self.variables, latents)

    def draw(self, key: jax.Array) -> PyTree:
        """Returns one latent, without the batch axis.

        Args:
          key: random key of one latent.
        """
        if isinstance(self.latent, Mapped):
            return self.latent(key, self.variables)
        return self.latent(key)

    def check(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each output; refuses a generator that cannot be trusted."""
        return check_generator(self)


def light_batch(generator: Generator, batch_size: int) -> int:
    """Caps a batch so that what a convolutional net holds while it draws takes about 1 GiB: 8 at
    256 px.

    Never one: XLA compiles a batch of one to other arithmetic than every larger batch.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    # Shapes alone; nothing is drawn.
    batch = jax.eval_shape(lambda g: sample(g, jax.random.key(0), 2), generator)
    height, width = jax.eval_shape(generator, batch)["image"].shape[1:3]
    found: int = max(2, min(batch_size, _LIGHT_PIXELS // (height * width)))
    return found


@jax.jit
def _run(generator: Generator, latents: PyTree) -> dict[str, jax.Array]:
    return generator(latents)


def check_generator(generator: Generator) -> dict[str, tuple[int, ...]]:
    """Draws a few latents and refuses a generator that the methods cannot trust.

    Args:
      generator: the `Generator` that is checked.
    Returns:
      the shape of each output without the batch.
    Raises:
      ValueError: if the outputs are no dict with an `image` `[B, H, W, C]` of finite values in [0,
        1], if `labels` are no integers `[B, H, W]` of the image's size or have values without a
        name, or if an image changes with its neighbours (batch normalisation on the batch at hand):
        then to switch a unit in one image would change all.
    """
    key = jax.random.key(0)
    batch = sample(generator, key, 4)
    outputs = _run(generator, batch)
    name = generator.name
    if not isinstance(outputs, dict) or "image" not in outputs:
        found = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(f"generator {name} must return a dict with an image, got {found}")
    image = np.asarray(outputs["image"], np.float64)
    if image.ndim != 4 or len(image) != 4:
        raise ValueError(
            f"generator {name} must return images [B, H, W, C], got shape {image.shape} for 4 "
            "latents"
        )
    # A thousandth beyond the ends is rounding, as of `(tanh + 1) / 2` or a resampling.
    if not (np.isfinite(image).all() and image.min() >= -1e-3 and image.max() <= 1 + 1e-3):
        raise ValueError(
            f"generator {name} must return finite images in [0, 1], got "
            f"[{image.min():.3g}, {image.max():.3g}]; for a tanh output return (x + 1) / 2"
        )
    labels = outputs.get("labels")
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != image.shape[:3] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"generator {name} must return labels as integers [B, H, W] of the image's size "
                f"{image.shape[:3]}, got {labels.dtype}{list(labels.shape)}"
            )
        if generator.label_names and not 0 <= labels.min() <= labels.max() < len(
            generator.label_names
        ):
            raise ValueError(
                f"label_names of generator {name} must name every label, got "
                f"{len(generator.label_names)} names for labels {labels.min()} to {labels.max()}"
            )
    # The same first latent beside other neighbours. The batch keeps its size, for another size is
    # another program, whose rounding alone would differ.
    other = jax.tree.map(
        lambda a, b: a.at[1:].set(b[1:]), batch, sample(generator, key, 4, start=4)
    )
    mixed = np.asarray(_run(generator, other)["image"], np.float64)
    # Written with "not" so that NaN is refused too.
    if not np.abs(image[0] - mixed[0]).max() <= 1e-3:
        raise ValueError(
            f"generator {name} couples the images of a batch: an image changes with its "
            "neighbours. Put batch normalisation in inference mode (stored statistics)"
        )
    return {k: tuple(v.shape[1:]) for k, v in outputs.items()}
