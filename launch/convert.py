"""Turns PyTorch's files of weights into safetensors, without PyTorch and without running what they hold.

  python -m launch.convert --source=generator.pth --out=generator.safetensors
  python -m launch.convert --source=ffhq.pkl --part=G_ema --out=ffhq.safetensors

A .pth or .pkl is a program; here its instructions are read, none is executed, and a file that names anything
which weights do not need is refused. Reads zipped and legacy torch.save files and StyleGAN2-ADA pickles.
"""

from __future__ import annotations

import pathlib

import numpy as np
import safetensors.numpy
from absl import flags as absl_flags
from absl import logging

from launch import flags
from launch.job import store
from perturb.weights import torchfile

_SOURCE = absl_flags.DEFINE_string("source", None, "The file: .pth, .pt or StyleGAN2-ADA's .pkl.")
_PART = absl_flags.DEFINE_string(
    "part",
    None,
    "Which of several state dicts in the file, like G_ema. Default: the only one, or G_ema or g_ema.",
)
(_OUT,) = flags.shared("out")


def main() -> int:
    """Converts the file that the flags name; returns the exit code."""
    if not _SOURCE.value:
        raise ValueError("--source is missing: the .pth, .pt or .pkl file to convert")
    source = pathlib.Path(_SOURCE.value)
    out = store.path(_OUT.value or source.with_suffix(".safetensors"))
    if out.suffix != ".safetensors":
        raise ValueError(f"--out={out}: the name must end in .safetensors")
    found = torchfile.parts(torchfile.read_torch(source))
    part = _chosen(found)
    tensors = {n: _plain(t) for n, t in found[part].items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    store.put(out, safetensors.numpy.save(tensors))
    size = sum(t.nbytes for t in tensors.values())
    logging.info(
        "%d tensors, %.1f MB%s, into %s",
        len(tensors),
        size / 1e6,
        f" of {part}" if part else "",
        out,
    )
    return 0


def _chosen(found: dict[str, dict[str, np.ndarray]]) -> str:
    names = [name or "(top)" for name in found]
    if _PART.value is not None:
        if _PART.value not in found:
            raise ValueError(f"--part={_PART.value}: the file holds {', '.join(names)}")
        return _PART.value
    for name in ("G_ema", "g_ema"):
        if name in found:
            return name
    if len(found) > 1:
        raise ValueError(f"--part is missing: the file holds {', '.join(names)}")
    return next(iter(found))


def _plain(tensor: np.ndarray) -> np.ndarray:
    # bfloat16 is no type of NumPy's own; every one of its numbers is a float32.
    return tensor.astype(np.float32) if tensor.dtype.kind == "V" else tensor


if __name__ == "__main__":
    flags.run(main)
