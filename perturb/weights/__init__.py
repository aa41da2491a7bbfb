"""Weight files: read without running anything in them, and filled into a net leaf by leaf.

`read_tensors` reads safetensors, `.npz`, msgpack, Orbax and PyTorch files; `fill` puts tensors
where a mapping `{name in the file: Slot(path, layout)}` says, each leaf exactly once, and names all
that is wrong in one error. `torchfile.read_torch` gives a PyTorch file's whole tree.
"""

from perturb.weights import torchfile
from perturb.weights.filling import (
    CONV,
    IGNORED,
    LINEAR,
    SAME,
    Layout,
    Slot,
    Tensors,
    draw,
    fill,
    one_source,
    read_tensors,
    rename,
    slots,
    width,
)

__all__ = [
    "CONV",
    "IGNORED",
    "LINEAR",
    "SAME",
    "Layout",
    "Slot",
    "Tensors",
    "draw",
    "fill",
    "one_source",
    "read_tensors",
    "rename",
    "slots",
    "torchfile",
    "width",
]
