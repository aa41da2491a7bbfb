"""Magika, a small network that names the type of a file by its bytes, rebuilt in JAX.

The package `magika` (Google, Apache-2.0) carries the trained network as an ONNX file; this reads
its tensors and runs them here, so that masks and gradients reach the bytes. Install both with
`pip install perturb-dissect[magika]`; nothing is downloaded at run time.
"""

from __future__ import annotations

import importlib.resources
import json

import jax
import jax.numpy as jnp
import numpy as np

from perturb.text.tokens import Text, text_model

__all__ = ["load_magika", "tokens"]

PAD, HALF, BLOCK = 256, 1024, 4096
_FOLDER = "models/standard_v3_3"
# Tensors by the end of their names in the file, and the shape that they have here.
_TENSORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "table": ("/Const:0", (257, 64)),
    "bias": ("/Dense_0/Reshape:0", (64,)),
    "scale0": ("LayerNorm_0/Reshape_2:0", (512,)),
    "shift0": ("LayerNorm_0/Reshape_3:0", (512,)),
    "kernel": ("Conv_0/transpose_3:0", (512, 256, 5)),
    "kernel_bias": ("const_fold_opt__209", (512,)),
    "scale1": ("LayerNorm_1/Reshape_2:0", (512,)),
    "shift1": ("LayerNorm_1/Reshape_3:0", (512,)),
    "last": ("/Const_24:0", (512, 214)),
    "last_bias": ("/Dense_1/Reshape:0", (214,)),
}


def tokens(data: bytes) -> np.ndarray:
    """Returns `[2048]` int32: the first and the last 1,024 bytes without the white space around."""
    # White space is looked for within the first and last 4,096 bytes only, as in the original.
    begin, end = data[:BLOCK].lstrip()[:HALF], data[-BLOCK:].rstrip()[-HALF:]
    found = np.full(2 * HALF, PAD, np.int32)
    found[: len(begin)] = list(begin)
    found[2 * HALF - len(end) :] = list(end)
    return found


def load_magika() -> Text:
    """Returns the network of the installed package `magika`, version 1.0.

    Raises:
      ImportError: if `magika` or `onnx` is not installed.
      ValueError: if the package carries another network.
    """
    try:
        import onnx
        from onnx import numpy_helper

        folder = importlib.resources.files("magika")
    except ImportError as error:
        raise ImportError(
            "the byte classifier needs the packages magika and onnx: "
            "pip install perturb-dissect[magika]"
        ) from error
    graph = onnx.load_from_string((folder / _FOLDER / "model.onnx").read_bytes()).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    names = json.loads((folder / _FOLDER / "config.min.json").read_text())["target_labels_space"]
    weights = {}
    for name, (part, shape) in _TENSORS.items():
        found = [v for k, v in stored.items() if k.endswith(part) and v.size == np.prod(shape)]
        if len(found) != 1:
            raise ValueError(
                f"the installed magika has {len(found)} tensors like {part!r} of shape {shape}: "
                "this reads the network standard_v3_3 of magika 1.0"
            )
        weights[name] = jnp.asarray(found[0].reshape(shape), jnp.float32)
    table = weights.pop("table")
    return text_model(_apply, weights, table, pad=PAD, class_names=names, name="magika")


def _normal(x: jax.Array, axis: int, scale: jax.Array, shift: jax.Array) -> jax.Array:
    mean = x.mean(axis, keepdims=True)
    # As the stored graph has it; rounding may put this difference just below 0.
    variance = jnp.maximum((x * x).mean(axis, keepdims=True) - mean * mean, 0)
    return (x - mean) / jnp.sqrt(variance + 1e-6) * scale + shift


def _apply(w: jax.Array, embedded: jax.Array) -> jax.Array:
    """Embeddings `[B, 2048, 64]` to logits `[B, 214]`."""
    x = jax.nn.gelu(embedded + w["bias"], approximate=True)
    # Four bytes of 64 numbers become one place: a reshape, not a convolution.
    x = x.reshape(len(x), 512, 256)
    x = _normal(x, 1, w["scale0"][:, None], w["shift0"][:, None])
    x = jax.lax.conv_general_dilated(
        x,
        w["kernel"].transpose(2, 1, 0),
        (1,),
        "VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    x = jax.nn.gelu(x + w["kernel_bias"], approximate=True).max(1)
    return _normal(x, 1, w["scale1"], w["shift1"]) @ w["last"] + w["last_bias"]
