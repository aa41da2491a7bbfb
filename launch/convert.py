"""Turns PyTorch's files of weights into safetensors, without PyTorch and without running what they
hold.

  python -m launch.convert --source=generator.pth --out=generator.safetensors
  python -m launch.convert --source=ffhq.pkl --part=G_ema --out=ffhq.safetensors
  python -m launch.convert --source=smile.pt --out=smile.npy  # a direction: one tensor

A .pth or .pkl is a program; here its instructions are read, none is executed, and a file that names
anything which weights do not need is refused. Reads zipped and legacy torch.save files and
StyleGAN2-ADA pickles, checkpoints with other things beside the weights, and whole modules. A
generator in the layout of another project is written under the names of the net here, which is
loaded once to prove that it fits.
"""

from __future__ import annotations

import io
import pathlib

import jax
import numpy as np
import safetensors.numpy
from absl import flags as absl_flags
from absl import logging

import gan_dissect
from gan_dissect.nets import layouts
from launch import flags, models
from launch.job import store
from perturb import weights
from perturb.nets import recognise
from perturb.types import Record
from perturb.weights import prefixes, torchfile

_SOURCE = absl_flags.DEFINE_string(
    "source", None, "The file to convert: .pth, .pt, .ckpt, or StyleGAN2-ADA's .pkl."
)
_PART = absl_flags.DEFINE_string(
    "part",
    None,
    "Which of several state dicts in the file, like G_ema. Default: the only generator, averaged "
    "if there is such, or else the only state dict.",
)
_OUT, _RENAME = flags.shared("out", "rename")
# Files that are read as they are.
_PLAIN = (".safetensors", ".npz", ".npy", ".msgpack")


def main() -> int:
    """Converts the file that the flags name; returns the exit code."""
    if not _SOURCE.value:
        raise ValueError("--source is missing: the .pth, .pt or .pkl file to convert")
    source = pathlib.Path(_SOURCE.value)
    # Not an error: whoever asks learns how the file is used as it is.
    if source.suffix.lower() in _PLAIN and source.is_file():
        logging.info("%s needs no conversion%s", source, _plain_use(source))
        return 0
    out = store.path(_OUT.value) if _OUT.value else None
    if out is not None and out.suffix not in (".safetensors", ".npy"):
        raise ValueError(
            f"--out={out}: the name must end in .safetensors, or in .npy for one tensor"
        )
    found = torchfile.parts(torchfile.read_torch(source))
    # A file of one bare tensor is a direction, as encoder4editing publishes them.
    if list(found) == [""] and list(found[""]) == [torchfile.ALONE]:
        return _direction(found[""][torchfile.ALONE], out or store.path(source.with_suffix(".npy")))
    out = out or store.path(source.with_suffix(".safetensors"))
    if out.suffix != ".safetensors":
        raise ValueError(f"--out={out}: the file holds several tensors, which go into .safetensors")
    tensors, words = _chosen(found)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Through the job's own writer: whole or not there, and to a store as well.
    store.put(out, safetensors.numpy.save({n: np.ascontiguousarray(t) for n, t in tensors.items()}))
    size = sum(t.nbytes for t in tensors.values())
    logging.info("%d tensors, %.1f MB, into %s: %s", len(tensors), size / 1e6, out, words)
    return 0


def _chosen(found: dict[str, dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], str]:
    """Returns the tensors to write, and what they are and how to use them."""
    beside = found.get("", {})
    if _PART.value is not None:
        if _PART.value not in found:
            raise ValueError(f"--part={_PART.value}: the file holds {_names(found)}")
        # What lies beside the networks, such as a mean style, may belong to the part.
        whole = found[_PART.value] | {n: t for n, t in beside.items() if "." not in n}
        part = found[_PART.value]
    else:
        whole = {f"{p}.{n}" if p else n: t for p, part in found.items() for n, t in part.items()}
        part = {}
    rules = models.rules(_RENAME.value) or {}
    whole = prefixes.renamed({n: _number(t) for n, t in whole.items()}, rules)
    try:
        fitted = layouts.fit(whole)
    except ValueError as error:
        raise ValueError(f"--source={_SOURCE.value}: {error}") from error
    if fitted is not None:
        return fitted.tensors, _proof(fitted)
    if rules:
        part = whole
    elif not part:
        part = found[_only(found)]
    part = {n: _number(t) for n, t in part.items()}
    if names := recognise(part):
        return part, f"loaded as --model={' or --model='.join(names)}"
    return part, (
        f"no net here is known to take them ({layouts.resembles(part)}); load them with your own "
        "module"
    )


def _proof(fitted: layouts.Fitted) -> str:
    """Loads the net, and says so."""
    try:
        # Loading checks that every tensor is used, and used once: a name that fits is no proof.
        generator = gan_dissect.load_generator(fitted.net, weights=fitted.tensors)
    except ValueError as error:
        first = " ".join(str(error).splitlines()[0].split())
        raise ValueError(
            f"--source={_SOURCE.value}: looks like {fitted.project}, but {first}"[:290]
        ) from error
    batch = jax.eval_shape(lambda g: gan_dissect.sample(g, jax.random.key(0), 2), generator)
    image = jax.eval_shape(generator, batch)["image"].shape
    notes = "".join(f"; {note}" for note in fitted.notes)
    return (
        f"{fitted.project}, loaded as --generator={fitted.net}, images of {image[2]} x "
        f"{image[1]} px{notes}"
    )


def _only(found: dict[str, dict[str, np.ndarray]]) -> str:
    # The average over training is what published pictures are drawn with.
    for name in ("G_ema", "g_ema"):
        if name in found:
            return name
    if len(found) > 1:
        raise ValueError(f"--part is missing: the file holds {_names(found)}")
    return next(iter(found))


def _names(found: Record) -> str:
    names = [name or "(top)" for name in found]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more


def _direction(tensor: np.ndarray, out: store.Path) -> int:
    """Writes the one tensor of a file as a `.npy`."""
    if out.suffix != ".npy":
        raise ValueError(
            f"--out={out}: the file holds one tensor {list(tensor.shape)}, a direction perhaps, "
            "which goes into a .npy"
        )
    buffer = io.BytesIO()
    np.save(buffer, _number(tensor))
    out.parent.mkdir(parents=True, exist_ok=True)
    store.put(out, buffer.getvalue())
    logging.info(
        "one tensor %s into %s: a direction for --direction=%s", list(tensor.shape), out, out
    )
    return 0


def _plain_use(source: pathlib.Path) -> str:
    """Returns how a file that is no pickle is used, as far as that is known."""
    if source.suffix.lower() == ".npy":
        return f": a direction for --direction={source}"
    tensors = weights.read_tensors(source)
    fitted = layouts.fit(tensors)
    if fitted:
        return f": --generator={fitted.net} --weights={source}"
    model = "".join(f"--model={name} " for name in recognise(tensors)[:1])
    return f": {model}--weights={source}"


def _number(tensor: np.ndarray) -> np.ndarray:
    # bfloat16 is no type of NumPy's own; every one of its numbers is a float32.
    return tensor.astype(np.float32) if tensor.dtype.kind == "V" else tensor


if __name__ == "__main__":
    absl_flags.FLAGS["out"].help = (
        "The file to write: .safetensors, or .npy for a single tensor. Default: beside the source, "
        "under its name."
    )
    flags.run(main)
