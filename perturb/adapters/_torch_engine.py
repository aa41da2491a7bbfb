"""A PyTorch module run by PyTorch itself inside a JAX program, its gradients by torch's autograd.

Any version of torch and any module serve: batches go whole, dynamic Python and caches stay inside
the module. Layers are reached by forward hooks: a layer is one more call, which stops there, and
the call for the outputs takes its value from outside.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import ctypes
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturb import messages, taps
from perturb.adapters._base import Apply, channels_last, scopes
from perturb.adapters._host import host_call
from perturb.adapters._torch_excitation import exciting
from perturb.adapters._torch_graphs import Graphs, gradients, paired
from perturb.types import PyTree, Variables

__all__ = ["Network", "TorchApply", "open_network"]


class _Found(Exception):
    """The layer that was asked for is reached; nothing after it need run."""


@functools.cache
def _worker() -> concurrent.futures.ThreadPoolExecutor:
    # One thread for all calls: torch keeps a team of threads for every thread it is called from,
    # and XLA calls from many.
    return concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="torch")


def open_network(torch: ModuleType, module: Any) -> tuple[Network, dict[str, jax.Array]]:
    """Returns the network in float32 and inference mode, and its weights by name."""
    # A copy: the module of the caller stays as it is, also if they train it on.
    inner = copy.deepcopy(module).eval().float().requires_grad_(False)
    tensors = {**dict(inner.named_parameters()), **dict(inner.named_buffers())}
    weights = {
        n: jnp.asarray(t.detach().cpu().numpy())
        for n, t in tensors.items()
        # Counters stay in the module: JAX is to see what may be differentiated or replaced.
        if t.is_floating_point()
    }
    return Network(torch, inner.cpu(), tuple(sorted(weights))), weights


class Network:
    """A torch module and what is known of it; equal to itself alone."""

    def __init__(self, torch: ModuleType, module: Any, weights: tuple[str, ...]) -> None:
        self.torch, self.module, self.weights = torch, module, weights
        # Of the weights those that torch differentiates by; statistics of batch norm are none.
        trained = dict(module.named_parameters())
        self.trained = tuple(n for n in weights if n in trained)
        parts = {
            tuple(n.split(".")): m
            for n, m in module.named_modules()
            # Lists of modules are not called, unless a class of its own makes them so.
            if n and type(m).forward is not torch.nn.Module.forward
        }
        short = scopes([(), *parts])
        self.parts = {
            "/".join(short[path[:i]] for i in range(1, len(path) + 1) if path[:i] in short): part
            for path, part in parts.items()
        }
        self.dotted = {name.replace("/", "."): name for name in self.parts}
        self._known: dict[Any, Any] = {}
        self.graphs = Graphs(torch)

    def run(
        self, weights: Sequence[PyTree], x: PyTree, given: Mapping[str, PyTree], want: PyTree
    ) -> PyTree:
        """Returns the outputs, or the value of the layer `want`, with layers set to `given`."""
        calls: dict[str, int] = {}
        found: list[PyTree] = []

        def hook(name: str, output: PyTree) -> PyTree:
            calls[name] = calls.get(name, 0) + 1
            full = name if calls[name] == 1 else f"{name}#{calls[name]}"
            if full in given:
                # A copy, for the layer after may work in place.
                return given[full].clone()
            if want == full:
                found.append(output)
                raise _Found
            # With a function for `want`, every layer is reported and none stops the run.
            if callable(want):
                want(full, output)
            return None

        with contextlib.ExitStack() as stack:
            asked = {
                n.partition("#")[0] for n in [*given, *([want] if isinstance(want, str) else [])]
            }
            for name, part in self.parts.items():
                if callable(want) or name in asked:
                    # Hooks only on layers that are asked for, and only for this call.
                    handle = part.register_forward_hook(
                        lambda _, __, output, name=name: hook(name, output)
                    )
                    stack.callback(handle.remove)
            stack.enter_context(contextlib.suppress(_Found))
            named = dict(zip(self.weights, weights, strict=True))
            # A copy of the input: layers that work in place would write into XLA's memory.
            outputs = self.torch.func.functional_call(self.module, named, (x.clone(),))
            return _plain(self.torch, outputs)
        return found[0]

    def layers(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every layer that gives one array, for inputs `[B, C, H, W]`."""
        if shape not in self._known:
            found: dict[str, tuple[int, ...]] = {}

            def note(name: str, output: PyTree) -> None:
                if isinstance(output, self.torch.Tensor) and output.is_floating_point():
                    found[name] = tuple(output.shape)

            def work() -> PyTree:
                with self.torch.enable_grad():
                    state = {**dict(self.module.named_parameters())}
                    state |= dict(self.module.named_buffers())
                    own = [state[n] for n in self.weights]
                    x = self.torch.zeros(shape, requires_grad=True)
                    return self.run(own, x, {}, note)

            outputs = _worker().submit(work).result()
            leaves, tree = jax.tree.flatten(outputs)
            types = [(tuple(v.shape), str(v.dtype).removeprefix("torch.")) for v in leaves]
            self._known[shape] = found, tree, types, any(v.requires_grad for v in leaves)
        result: dict[str, tuple[int, ...]] = self._known[shape][0]
        return result

    def outputs(self, shape: tuple[int, ...]) -> tuple[PyTree, list[jax.ShapeDtypeStruct]]:
        """Returns structure and types of the outputs."""
        self.layers(shape)
        _, tree, types, _ = self._known[shape]
        return tree, [
            jax.ShapeDtypeStruct(s, jax.dtypes.canonicalize_dtype(np.dtype(d))) for s, d in types
        ]

    def check_gradient(self, shape: tuple[int, ...]) -> None:
        """Refuses a network whose outputs hang on no picture, as far as torch's autograd knows."""
        self.layers(shape)
        if not self._known[shape][3]:
            raise ValueError(
                f"{type(self.module).__name__} gives outputs without a gradient: its forward has "
                "no_grad, detach or NumPy in it; take these out, or use methods that need none "
                "(RISE, occlusion)"
            )

    def letters(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Returns where the axes of a layer lie, as `Model.layouts` says it, None if it is not
        known.
        """
        here = self.layers(shape).get(name)
        if here is None:  # not of this network: what `select` does to its outputs has names too
            return None
        batch, channels, *picture = shape
        if len(here) < 3 or here[0] != batch:
            return "BC" if here[:1] == (batch,) and len(here) == 2 else None
        names = "HW" if len(picture) == 2 else "DHW" if len(picture) == 3 else "L"
        found = ["B"]
        try:
            other = []
            for axis in range(len(picture)):
                # A picture twice as high, then twice as wide: what grows with which tells rows from
                # columns. An axis that grows with both holds tokens.
                larger = [2 * n if i == axis else n for i, n in enumerate(picture)]
                other.append(self.layers((batch, channels, *larger))[name])
            for i in range(1, len(here)):
                moved = [n for n, seen in zip(names, other, strict=True) if seen[i] != here[i]]
                found.append("C" if not moved else moved[0] if len(moved) == 1 else "N")
        except Exception:  # A network of one size only says so in its own way.
            return self._letters_by_kind(name, here, picture)
        return "".join(found)

    def _letters_by_kind(
        self, name: str, here: tuple[int, ...], picture: Sequence[int]
    ) -> str | None:
        """The same for a network of one size: by the kind of the layer, and by what fits the
        picture.
        """
        nn, part = self.torch.nn, self.parts[name.partition("#")[0]]
        places = "HW" if len(picture) == 2 else "DHW" if len(picture) == 3 else "L"
        size = len(picture)
        first = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
        last = (nn.Linear, nn.LayerNorm)

        def grid(sizes: Sequence[int]) -> bool:
            """Whether these are steps of one whole stride over the picture."""
            if len(sizes) != size:
                return False
            strides = [n / s for n, s in zip(picture, sizes, strict=True)]
            return len(set(strides)) == 1 and strides[0] == int(strides[0])

        def tokens(n: int) -> bool:
            return any(
                0 <= n - math.prod(p // s for p in picture) <= 5
                and all(p % s == 0 for p in picture)
                for s in range(2, min(picture) + 1)
            )

        if len(here) == size + 2:
            options = {"BC" + places: grid(here[2:]), "B" + places + "C": grid(here[1:-1])}
            if isinstance(part, first):
                return "BC" + places
            # Subclasses for maps with the channels first say so in their name.
            if isinstance(part, last) and not type(part).__name__.endswith("2d"):
                return "B" + places + "C" if options["B" + places + "C"] else None
        elif len(here) == 3:
            options = {"BNC": tokens(here[1]), "BCN": tokens(here[2])}
            if isinstance(part, last) and options["BNC"]:
                return "BNC"
        else:
            return None
        fits = [letters for letters, ok in options.items() if ok]
        return fits[0] if len(fits) == 1 else None


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a call runs: the outputs (or a layer) of a network, or gradients.

    Attributes:
      network, given, want: see `Network.run`.
      floats: which of the outputs have a slope.
      backward: whether gradients are asked for, of the inputs, the layers given, and the weights.
      weights: whether of the weights too.
      excited: of inputs and layers given, which of them excitation flows to; None for gradients.
      last: see `exciting`.
      kept: of a forward call whether its graph is kept, and one more result tells which it is; of a
        backward call whether that comes last.
    """

    network: Network
    given: tuple[str, ...]
    want: str | None
    floats: tuple[int, ...] = ()
    backward: bool = False
    weights: bool = False
    excited: tuple[bool, ...] | None = None
    last: bool = False
    kept: bool = False

    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        return _worker().submit(self._work, arrays).result()

    def _work(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        torch, count = self.network.torch, len(self.network.weights)
        # Without copies; see `_tensor`.
        tensors = [_tensor(torch, a) for a in arrays]
        weights, (x, *rest) = tensors[:count], tensors[count:]
        if self.kept and self.backward:
            *rest, _ = rest
            slopes = rest[len(self.given) :]
            known = self.network.graphs.slopes(arrays[-1], weights, self.floats, slopes)
            if known is not None:
                return [_array(t) for t in known]
        values, slopes = rest[: len(self.given)], rest[len(self.given) :]
        own = dict(zip(self.network.weights, weights, strict=True))
        inputs = [x, *values, *([own[n] for n in self.network.trained] if self.weights else [])]
        if self.kept and not self.backward:
            return self._recorded(weights, inputs)
        with torch.enable_grad() if self.backward else torch.no_grad():
            if self.backward:
                # What is held fixed is no way for excitation to flow.
                moving = self.excited or (True,) * len(inputs)
                inputs = [v.requires_grad_(m) for v, m in zip(inputs, moving, strict=True)]
            given = dict(zip(self.given, values, strict=True))
            rule = contextlib.nullcontext() if self.excited is None else exciting(torch, self.last)
            with rule:
                results = jax.tree.leaves(self.network.run(weights, x, given, self.want))
            if self.backward:
                results = gradients(torch, paired(results, self.floats, slopes), inputs)
        return [_array(t) for t in results]

    def _recorded(self, weights: Sequence[PyTree], inputs: list[PyTree]) -> list[np.ndarray]:
        """The results, and which graph leads back from them."""
        graphs = self.network.graphs
        graph, recording = graphs.record(weights)
        graph.inputs = [v.requires_grad_(True) for v in inputs]
        x, *values = graph.inputs
        with self.network.torch.enable_grad(), recording:
            given = dict(zip(self.given, values, strict=True))
            graph.results = jax.tree.leaves(self.network.run(weights, x, given, self.want))
        results = [_array(t) for t in graph.results]
        return [*results, graphs.keep(graph, len(x))]

    def excitation(
        self,
        weights: Sequence[PyTree],
        rows: Sequence[jax.Array],
        slopes: PyTree,
        varied: Sequence[bool],
        last: bool,
    ) -> list[jax.Array]:
        """Returns the winning probability that reaches each of `rows`, in place of gradients.

        Args:
          weights, rows: the operands of this call: weights, then the input and the layers given.
          slopes: the probability at each output.
          varied: which of `rows` it flows to.
          last: whether the last weights count with the other sign.
        """
        given, floats = _floating(slopes)
        back = dataclasses.replace(
            self, backward=True, floats=floats, excited=tuple(varied), last=last
        )
        outs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in rows]
        return host_call(back, outs, weights, [*rows, *(given[i] for i in floats)])


def _floating(slopes: PyTree) -> tuple[list[jax.Array], tuple[int, ...]]:
    """Slopes with zeros for those that are none, and which of them belong to numbers."""
    given = [
        jnp.zeros(g.shape, g.dtype) if isinstance(g, jax.custom_derivatives.SymbolicZero) else g
        for g in slopes
    ]
    return given, tuple(i for i, g in enumerate(given) if g.dtype != jax.dtypes.float0)


def _tensor(torch: ModuleType, a: np.ndarray) -> PyTree:
    """A tensor on the memory of an array that may not be written to, and is not."""
    a = np.ascontiguousarray(a)
    if not a.size:
        return torch.zeros(a.shape)
    memory = (ctypes.c_byte * a.nbytes).from_address(a.ctypes.data)
    return torch.frombuffer(memory, dtype=getattr(torch, a.dtype.name)).reshape(a.shape)


def _array(t: PyTree) -> np.ndarray:
    a = t.detach().cpu().contiguous().numpy()
    # Its own memory: a weight handed through would be that of the caller.
    return np.array(a, jax.dtypes.canonicalize_dtype(a.dtype))


def _plain(torch: ModuleType, outputs: PyTree) -> PyTree:
    """Outputs as dicts, lists and tuples of tensors, whatever classes a library has for them."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        each = {k: _plain(torch, v) for k, v in outputs.items()}
        return {k: v for k, v in each.items() if v is not None}
    if isinstance(outputs, list | tuple):
        return tuple(v for v in (_plain(torch, v) for v in outputs) if v is not None)
    return None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _call(run: _Run, weights: PyTree, x: jax.Array, values: list[jax.Array]) -> list[jax.Array]:
    return _host(run, weights, x, values)


def _host(run: _Run, weights: PyTree, x: jax.Array, values: list[jax.Array]) -> list[jax.Array]:
    shape = x.shape
    if run.want is None:
        _, outs = run.network.outputs(shape)
    else:
        outs = [jax.ShapeDtypeStruct(run.network.layers(shape)[run.want], jnp.float32)]
    if run.kept:
        outs = [*outs, jax.ShapeDtypeStruct(shape[:1], jnp.int32)]
    fixed = [weights[n] for n in run.network.weights]
    return host_call(run, outs, fixed, [x, *values])


def _forward(run: _Run, weights: PyTree, x: PyTree, values: PyTree) -> PyTree:
    plain = jax.tree.map(lambda p: p.value, (weights, x, values), is_leaf=_is_primal)
    # Gradients of weights are summed over a batch: no graph of rows.
    if any(p.perturbed for p in jax.tree.leaves(weights, is_leaf=_is_primal)):
        return _call(run, *plain), (plain, None)
    *outputs, token = _host(dataclasses.replace(run, kept=True), *plain)
    return outputs, (plain, token)


def _is_primal(p: PyTree) -> bool:
    return hasattr(p, "perturbed")


def _backward(run: _Run, kept: PyTree, slopes: list[PyTree]) -> PyTree:
    # Without a token weights are asked for too.
    (weights, x, values), token = kept
    if run.want is None:
        run.network.check_gradient(x.shape)
    given, floats = _floating(slopes)
    fixed = [weights[n] for n in run.network.weights]
    moves = token is None
    own = [weights[n] for n in run.network.trained] if moves else []
    inputs = [x, *values, *own]
    back = dataclasses.replace(run, backward=True, floats=floats, weights=moves, kept=not moves)
    outs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs]
    rows = [x, *values, *(given[i] for i in floats), *([] if moves else [token])]
    found = host_call(back, outs, fixed, rows)
    slope, others = found[0], found[1 : 1 + len(values)]
    moved = dict(zip(run.network.trained, found[1 + len(values) :], strict=False))
    return {n: moved.get(n, jnp.zeros_like(w)) for n, w in weights.items()}, slope, list(others)


_call.defvjp(_forward, _backward, symbolic_zeros=True)


@dataclasses.dataclass(frozen=True)
class TorchApply(Apply):
    """A network on normalised images, run by torch.

    Attributes:
      maps: whether maps `[B, classes, H, W]` come back as `[B, H, W, classes]`.
      opened: layers that are values of the program, so that `perturb.taps` reaches them; None for
        all.
    """

    maps: bool
    opened: tuple[str, ...] | None = ()

    def outputs(self, variables: Variables, x: jax.Array) -> PyTree:
        network: Network = self.module
        x = jnp.moveaxis(x, -1, 1).astype(jnp.float32)
        names = tuple(self._names(x.shape))
        values: list[jax.Array] = []
        for i, name in enumerate(names):
            # Each layer is a call that stops there, with the layers before it set from outside: so
            # an edit of one is seen by all that follow.
            (value,) = _call(_Run(network, names[:i], name), variables, x, values)
            values.append(taps.tag(value, name))
        tree, _ = network.outputs(x.shape)
        y = jax.tree.unflatten(tree, _call(_Run(network, names, None), variables, x, values))
        return channels_last(y) if self.maps else y

    def _names(self, shape: tuple[int, ...]) -> Iterator[str]:
        """The opened layers in the order in which they run."""
        known = self.module.layers(shape)
        wanted = [self._own(n) for n in (known if self.opened is None else self.opened)]
        if unknown := [n for n in wanted if n not in known]:
            raise ValueError(
                f"no layer named {messages.short(unknown[0])} that gives one array; nearest: "
                f"{messages.most_alike(unknown[0], known)} (taps.names lists all {len(known)})"
            )
        return (n for n in known if n in wanted)

    def _own(self, name: str) -> str:
        base, sign, count = name.partition("#")
        found: str = self.module.dotted.get(base.replace("/", "."), base) + sign + count
        return found

    def tapped(self, names: Sequence[str] | None) -> TorchApply:
        """Returns the same with these layers as values of the program; None for all."""
        return dataclasses.replace(self, opened=None if names is None else tuple(names))

    def letters(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Returns where the axes of a layer lie, for images `[B, H, W, C]`; None if not known."""
        found: str | None = self.module.letters(name, (shape[0], shape[-1], *shape[1:-1]))
        return found

    def order(self, shape: tuple[int, ...]) -> list[str]:
        """Returns the layers by their names in torch, in the order in which they finish."""
        known = self.module.layers((shape[0], shape[-1], *shape[1:-1]))
        return [name.partition("#")[0].replace("/", ".") for name in known]
