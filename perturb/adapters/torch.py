"""PyTorch modules: through torchax, which runs their operators as JAX, or by torch itself."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from perturb.adapters._base import Apply, Options, build, channels_last, require, scopes
from perturb.adapters._torch_engine import TorchApply, open_network
from perturb.model import Model
from perturb.types import Function, PyTree, Variables

__all__ = ["from_torch"]

# torchax 0.0.13 fails beside torch 2.13: "aten.prod has no overload name 'dim_Dimname'".
_INSTALL = "'torch<2.13' 'torchax>=0.0.13'"


def from_torch(module: Any, *, engine: str = "torchax", **options: Unpack[Options]) -> Model:
    """Returns a `torch.nn.Module` as a `Model`, in inference mode; the module itself is left alone.

    Every submodule runs under its own name (`layer1.0/conv1`) for `perturb.taps`; maps inside are
    `[B, C, H, W]`. Compare with the source once (`check_parity`): torchax is young.

    Args:
      module: takes normalised images `[B, C, H, W]`.
      engine: "torchax" makes the network a JAX program, which every tool sees into. "torch" leaves
        it to torch, called from the program, with torch's own gradients: any version of torch and
        any module serve (dynamic Python, caches, what torchax lacks), on the CPU and in float32;
        its modules are layers and excitation has its rule inside; other rules (guided
        backpropagation, LRP) cannot reach there.
      **options: see `perturb.adapters._base.Options`: `mean`, `std`, `geometry`, `class_names`, ...
        With `output="segmentation"`, maps `[B, classes, H, W]` come back as `[B, H, W, classes]`.
    Raises:
      ImportError: if torchax or torch is missing, or if they do not fit each other.
      ValueError: on a call, if the module uses a grouped transposed convolution, which torchax
      computes wrongly without an error.
    """
    if engine not in ("torchax", "torch"):
        raise ValueError(f"engine must be 'torchax' or 'torch', got {engine!r}")
    kind = type(module).__name__
    if not hasattr(module, "named_modules"):
        raise ValueError(f"module must be a torch.nn.Module, got {kind}: wrap it in one")
    if hasattr(module, "_c") and hasattr(module, "save"):
        raise ValueError(
            f"module must be Python that torch runs, got TorchScript ({kind}): give the module "
            "that it was scripted or traced from"
        )
    given: Options = {"name": kind, "channels_first": True, **options}
    maps = given.get("output") == "segmentation"
    if engine == "torch":
        torch = require("torch", "torch --index-url https://download.pytorch.org/whl/cpu")
        network, weights = open_network(torch, module)
        return build(TorchApply, network, weights, given, maps=maps)
    torch = require("torch", _INSTALL)
    try:
        torchax = require("torchax", _INSTALL)
    except (RuntimeError, AttributeError, ValueError) as error:
        raise ImportError(
            f"torchax does not import beside torch {torch.__version__} (0.0.13 needs torch below "
            f"2.13): pip install {_INSTALL}, or use engine='torch', which needs torch alone"
        ) from error
    # A copy, because forward methods are replaced below.
    inner = copy.deepcopy(module).eval()
    parts = {tuple(n.split(".")) if n else (): m for n, m in inner.named_modules()}
    # Lists of modules are not called, unless a class of its own makes them so.
    unset = torch.nn.Module.forward
    called = {path: part for path, part in parts.items() if type(part).forward is not unset}
    for path, name in scopes(called).items():
        scope = jax.named_scope(name or type(module).__name__)
        called[path].forward = scope(called[path].forward)
    inner.forward = _refusing(torch, inner.forward)
    variables, run = torchax.extract_jax(inner)
    return build(_Torch, run, variables, given, maps=maps)


@dataclasses.dataclass(frozen=True)
class _Torch(Apply):
    maps: bool

    def outputs(self, variables: Variables, x: jax.Array) -> PyTree:
        y = self.module(variables, (jnp.moveaxis(x, -1, 1),))
        return channels_last(y) if self.maps else y


def _refusing(torch: Any, forward: Function) -> Function:
    """The same function, which looks at every transposed convolution before torchax has it."""

    class Watch(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(
            self, f: Any, types: PyTree, args: PyTree = (), kwargs: PyTree = None
        ) -> PyTree:
            if "conv_transpose" in getattr(f, "__name__", ""):
                groups = (kwargs or {}).get("groups", args[6] if len(args) > 6 else 1)
                # One group, or one for each channel, comes out right.
                if 1 < groups < args[1].shape[0]:
                    raise ValueError(
                        f"torchax computes {f.__name__} with groups={groups} wrongly: split it "
                        "into one convolution a group, or stretch the input and use a grouped "
                        "conv2d"
                    )
            return f(*args, **(kwargs or {}))

    def watched(*args: object, **kwargs: object) -> PyTree:
        with Watch():
            return forward(*args, **kwargs)

    return watched
