"""The embedded generator, and the network that reads off its pictures what they show."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

import gan_dissect
import perturb
from gan_dissect.nets import demo as generator_net
from gan_dissect.nets import demo_reader
from launch.demo import latents, tensors
from perturb import weights
from perturb.types import Variables

__all__ = ["attributes", "load_generator", "save_generator", "save_reader", "segments"]


def load_generator() -> gan_dissect.Generator:
    """Returns the generator of the picture world: 20 normal numbers to pictures of 64 px."""
    return generator_net.demo(weights=tensors("demo_generator"))


def save_generator(path: str | os.PathLike[str], variables: Variables) -> None:
    """Writes variables of the generator as `map1.weight`, `map1.bias`, ..., float16."""
    _save_half(path, variables)


def segments() -> gan_dissect.Concepts:
    """Returns what every pixel of a picture shows: one of four backgrounds, the object, or none of
    them: the bare canvas.
    """
    names = (*latents.SEGMENTS, "canvas")
    model = perturb.Model(_segments, _reader(), class_names=names, output="segmentation")
    return gan_dissect.concepts.segmenter(model, none=names.index("canvas"))


def attributes() -> gan_dissect.Concepts:
    """Returns numbers about whole pictures, those of `latents.NUMBERS`; kinds as probabilities."""
    return gan_dissect.Concepts(_numbers, latents.NUMBERS, _reader(), kind="scores")


def save_reader(path: str | os.PathLike[str], variables: Variables) -> None:
    """Writes variables of the reader as `down1.weight`, `down1.bias`, ..., float16."""
    _save_half(path, variables)


def _segments(variables: Variables, images: jax.Array) -> jax.Array:
    logits = demo_reader.apply(variables, images)[0]
    kinds = len(latents.BACKGROUNDS)
    # The probability that it is any of the objects: the sum of theirs, in logs.
    objects = jax.nn.logsumexp(logits[..., kinds:-1], -1, keepdims=True)
    return jnp.concatenate([logits[..., :kinds], objects, logits[..., -1:]], -1)


def _numbers(variables: Variables, outputs: dict[str, jax.Array]) -> jax.Array:
    found = demo_reader.apply(variables, outputs["image"])[1]
    kinds = len(latents.BACKGROUNDS)
    # Kinds were trained as logits, the other numbers as they are.
    parts = (found[:, :kinds], found[:, kinds : 2 * kinds])
    return jnp.concatenate([*(jax.nn.softmax(p) for p in parts), found[:, 2 * kinds :]], 1)


def _reader() -> object:
    net = demo_reader.DemoReader(labels=len(latents.NAMES) + 1, numbers=len(latents.NUMBERS))
    template = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, 64, 64, 3)))
    return weights.fill(
        template, tensors("demo_reader"), weights.slots(template), net="demo_reader"
    )


def _save_half(path: str | os.PathLike[str], variables: Variables) -> None:
    tensors = {}
    for layer, leaves in sorted(variables["params"].items()):
        # Half precision: the weights travel with the package, and pictures have 8 bits.
        kernel = np.asarray(leaves["kernel"], np.float16)
        outwards = {4: (3, 2, 0, 1), 2: (1, 0)}.get(kernel.ndim, range(kernel.ndim))
        tensors[f"{layer}.weight"] = np.ascontiguousarray(kernel.transpose(outwards))
        if "bias" in leaves:
            tensors[f"{layer}.bias"] = np.asarray(leaves["bias"], np.float16)
    safetensors.numpy.save_file(tensors, os.fspath(path))
