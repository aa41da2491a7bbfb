"""The rule of excitation backpropagation inside a network that torch runs (Zhang et al. 2016).

The same rule as `perturb.attribution.excitation` has for JAX: a linear layer hands a unit's share
on by what its inputs bring under positive weights, `R_in = x w⁺ᵀ (R / (x w⁺))` (equation 4), sums
and skip connections by value, and fixed factors pass all on. Calls of torch are exchanged while the
module runs; whatever has no rule keeps torch's own derivative.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import jax

from perturb.types import Function, PyTree

__all__ = ["exciting"]

# A unit that nothing excites hands nothing on: 0 over this, and not 0 / 0.
_TINY = 1e-20
# Linear in one of their tensors; those of the first line may take a bias as the third argument.
_BIASED = {"linear", *(f"{kind}{n}d" for kind in ("conv", "conv_transpose") for n in (1, 2, 3))}
_ADDED = {"addmm", "baddbmm", "addmv"}
_PRODUCTS = {*_BIASED, *_ADDED, "matmul", "mm", "bmm", "mv", "einsum", "tensordot"}
_SUMS = {"sum", "mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))}
_FACTORS = {"mul", "multiply", "div", "divide", "truediv", "true_divide"}
# Operators by the names of the functions that they are.
_WRITTEN = {"radd": "add", "iadd": "add", "rmul": "mul", "imul": "mul", "itruediv": "div"}
# Whole networks in one piece, whose weights no rule reaches.
_CLOSED = {"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "bilinear"}


def exciting(torch: Any, last: bool) -> Any:
    """Returns a context in which torch's derivatives follow the rule.

    Args:
      torch: the package.
      last: whether the weights of the last product count with the other sign, for the contrast.
    """
    return _mode(torch)(last)


@functools.cache
def _mode(torch: Any) -> Any:
    """The class of the context, which needs torch to be written at all."""
    flow, share = _flow(torch), _share(torch)

    class Exciting(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last, self.products = last, 0
            self.open: list[Function] = []

        def __torch_function__(
            self, f: Any, kinds: PyTree, args: PyTree = (), kwargs: PyTree = None
        ) -> Any:
            given, name = kwargs or {}, getattr(f, "__name__", "")
            # `add_` and `__iadd__` work in place, `__add__` does not.
            inside = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
            name = _WRITTEN.get(name.strip("_"), name.strip("_"))
            # Weights have no derivative here: what has one depends on the picture.
            moving = [v for v in jax.tree.leaves((args, given)) if self.moves(v)]
            if not moving or not torch.is_grad_enabled():
                return f(*args, **given)
            if name in _CLOSED:
                raise ValueError(
                    f"excitation cannot follow torch's {name}, which is one piece: give a layer "
                    'behind it, or use from_torch(net, engine="torchax")'
                )
            if name in _PRODUCTS and len(moving) == 1:
                return self.product(name, f, args, given, moving[0])
            if name in _SUMS and not inside:
                return flow.apply(args[0], *[lambda x: f(x, *args[1:], **given)] * 2)
            if name in {"add", *_FACTORS} and len(args) == 2 and given.keys() <= {"alpha"}:
                y = self.pair(name, f, [v.clone() if v is args[0] else v for v in args], given)
                # In place at the end: the rule reads what was there before.
                return args[0].copy_(y) if inside else y
            if name == "batch_norm" and not given.get("training", args[5:6] == (True,)):
                return passed(args[0], f(*args, **given))
            if name in ("layer_norm", "group_norm"):
                with self:
                    return {"layer_norm": layer_norm, "group_norm": group_norm}[name](
                        *args, **given
                    )
            if isinstance(f, types.FunctionType) and f not in self.open:
                # Written in Python: its own calls are those to exchange.
                self.open.append(f)
                try:
                    with self:
                        return _opened(f)(*args, **given)
                finally:
                    self.open.remove(f)
            return f(*args, **given)

        @staticmethod
        def moves(v: Any) -> bool:
            return isinstance(v, torch.Tensor) and v.requires_grad

        def product(self, name: str, f: Any, args: PyTree, given: PyTree, moving: Any) -> Any:
            self.products += 1
            number, bare = self.products, dict(given)
            plain = list(args)
            if name in _BIASED:
                # A bias takes no share.
                plain[2:3] = [None] * len(plain[2:3])
                bare |= {"bias": None} if "bias" in given else {}
            elif name in _ADDED:
                bare["beta"] = 0
            leaves, tree = jax.tree.flatten((args, given))
            weights, slots = jax.tree.flatten((tuple(plain), bare))

            def old(x: Any) -> Any:
                own, named = jax.tree.unflatten(tree, [x if v is moving else v for v in leaves])
                return f(*own, **named)

            def positive(x: Any) -> Any:
                # Which product was the last is known only now, on the way back.
                sign = -1 if self.last and number == self.products else 1
                signed = [
                    x
                    if v is moving
                    else (sign * v).clamp(min=0)
                    if isinstance(v, torch.Tensor)
                    else v
                    for v in weights
                ]
                own, named = jax.tree.unflatten(slots, signed)
                return f(*own, **named)

            return flow.apply(moving, old, positive)

        def pair(self, name: str, f: Any, args: list[Any], given: PyTree) -> Any:
            a, b = args
            if name == "add" and self.moves(a) and self.moves(b):
                b = passed(b, given["alpha"] * b) if "alpha" in given else b
                return share.apply(*torch.broadcast_tensors(a, b))
            y = f(a.clone() if isinstance(a, torch.Tensor) else a, b, **given)
            x = a if self.moves(a) else b
            if name == "add" or (self.moves(a) and self.moves(b)) or y.shape != x.shape:
                return y
            return passed(x, y)

    def passed(x: Any, y: Any) -> Any:
        """The value of `y` with the derivative of `x`: everything is passed on."""
        return x + (y - x).detach()

    def normal(x: Any, axes: tuple[int, ...], eps: float) -> Any:
        centred = x - x.mean(axes, keepdim=True)
        return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + eps)

    def layer_norm(
        x: Any, size: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: object
    ) -> Any:
        y = normal(x, tuple(range(-len(size), 0)), eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def group_norm(
        x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: object
    ) -> Any:
        y = normal(x.reshape(len(x), groups, -1), (-1,), eps).reshape(x.shape)
        wide = (-1,) + (1,) * (x.ndim - 2)
        y = y if weight is None else y * weight.reshape(wide)
        return y if bias is None else y + bias.reshape(wide)

    return Exciting


def _flow(torch: Any) -> Any:
    class Flow(torch.autograd.Function):  # type: ignore[misc]
        """A linear function, with the rule of its positive weights for a derivative."""

        @staticmethod
        def forward(kept: Any, x: Any, old: Function, positive: Function) -> Any:
            # Only units above 0 excite those behind them. A copy, which later work in place leaves
            # alone.
            kept.save_for_backward(x.clamp(min=0))
            kept.positive = positive
            return old(x)

        @staticmethod
        def backward(kept: Any, r: Any) -> Any:
            x = kept.saved_tensors[0].detach().requires_grad_(True)
            with torch.enable_grad():
                z = kept.positive(x)
            (back,) = torch.autograd.grad(z, x, r / (z.detach() + _TINY))
            return x.detach() * back, None, None

    return Flow


def _share(torch: Any) -> Any:
    class Share(torch.autograd.Function):  # type: ignore[misc]
        """A sum of two, each of which is handed on what it brought."""

        @staticmethod
        def forward(kept: Any, a: Any, b: Any) -> Any:
            kept.save_for_backward(a.clamp(min=0), b.clamp(min=0))
            return a + b

        @staticmethod
        def backward(kept: Any, r: Any) -> Any:
            a, b = kept.saved_tensors
            each = r / (a + b + _TINY)
            return a * each, b * each

    return Share


@functools.cache
def _opened(f: Any) -> Any:
    """A function of torch's Python that does not hand itself to the context once more."""
    own = {n: _never if n.startswith("has_torch_function") else v for n, v in f.__globals__.items()}
    found = types.FunctionType(f.__code__, own, f.__name__, f.__defaults__, f.__closure__)
    found.__kwdefaults__ = f.__kwdefaults__
    return found


def _never(*args: object) -> bool:
    return False
