"""Names, reads, edits and splits any activation of a JAX function, by name and without hooks.

The function is traced, its program is cut where the named value is made, and the pieces are
functions again: pure, and fit for jit, vmap and grad. Values inside nested jit, remat (checkpoint),
custom_jvp and custom_vjp are reached; those inside the bodies of scan, while and cond have no
single value and are refused. Names, in the order in which they are given:

1. `tag(x, name)` in the function itself (and `jax.ad_checkpoint.checkpoint_name`);
2. scopes: the output of a Linen or Keras module, or of any `jax.named_scope`, under the names of
   the modules that it is called in (`features.3/squeeze`), the outermost left out;
3. named inner functions, under their scope: `relu`, `features.3/relu`;
4. convolutions and matrix products that are not simply their module's output: `conv_1`, `dense_1`.

What occurs again gets `#2`, `#3`, in execution order; what the outputs do not depend on gets no
name. Names are those of the function's own forward pass: tap a function and then differentiate or
batch it, not the other way round. A custom derivative, or a remat, is lost only where a tap lies
strictly inside it; the output of one is tapped without opening it. As under jit, arrays that the
function closes over are those of its first trace: pass weights as arguments,
`edit(perturb.Model.__call__, ...)(model, x)`.

>>> import jax, jax.numpy as jnp
>>> f = lambda w, x: jax.nn.relu(x @ w).sum()
>>> w, x = jnp.eye(2), jnp.array([[1.0, -2.0]])
>>> list(names(f, w, x))
['dense_1', 'relu']
>>> float(edit(f, {"relu": lambda a: a * 10})(w, x))
10.0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from perturb.taps import jaxprs
from perturb.taps.scopes import find_names
from perturb.types import ArrayLike, Function, PyTree, Record

__all__ = ["Live", "edit", "names", "open_function", "read", "split", "tag"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Live:
    """What crosses a cut besides the activation: weights the suffix reads, skip connections, ...

    Attributes:
      values: arrays; leaves.
      signature: structure and dtypes of the arguments that the prefix was given, a tuple; static.
    """

    values: tuple[PyTree, ...]
    signature: PyTree = dataclasses.field(metadata={"static": True})


def tag(x: jax.Array, name: str) -> jax.Array:
    """Returns `x`, marked with a name; free in compiled code, and kept under jit, vmap and grad.

    Args:
      x: array.
      name: what `names` lists it under.

    >>> list(names(lambda x: tag(x + 1, "shifted") * 2, 1.0))
    ['shifted']
    """
    found: jax.Array = checkpoint_name(x, name)
    return found


def names(f: Function, *args: object) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of every activation of `f(*args)` that has a name.

    Args:
      f: a pure function of pytrees of arrays, or a `perturb.Model`.
      *args: its arguments, or `jax.ShapeDtypeStruct`s in their place: nothing is computed.
    Returns:
      shape and dtype by name, in execution order. Two names may be of one value: that of a module
      and that of its last submodule.
    """
    function, bound = open_function(tapped(f, None))
    sites = find_names(jax.make_jaxpr(function)(*bound, *args)).sites
    return {n: jax.ShapeDtypeStruct(aval.shape, aval.dtype) for n, (_, aval) in sites.items()}


def read(f: Function, names: str | Iterable[str]) -> Function:
    """Returns `g` with `g(*args) -> (f(*args), {name: activation})`.

    Args:
      f: any JAX function.
      names: one name of `names(f, *args)`, or several.

    >>> y, read_out = read(lambda x: jax.nn.relu(x) + 1, "relu")(-2.0)
    >>> float(y), float(read_out["relu"])
    (1.0, 0.0)

    Raises:
      ValueError: on a call, if a name is not one of `names(f, *args)`; it lists the nearest.
    """
    wanted = (names,) if isinstance(names, str) else tuple(names)
    function, bound = open_function(tapped(f, wanted))

    def plan(program: jaxprs.Program) -> Callable[..., list[PyTree]]:
        # The same program with more outputs: nothing is computed a second time.
        outputs = [*program.outputs, *program.values]
        return program.slice(program.eqns, program.inputs, outputs)

    traced = _Traced(function, wanted, plan)

    def g(*args: object) -> tuple[PyTree, Record]:
        cut = traced.of(args)
        results = cut.plan(*cut.inputs(args))
        count = len(cut.program.outputs)
        values = dict(zip(wanted, results[count:], strict=True))
        return jax.tree.unflatten(cut.out_tree, results[:count]), values

    return _close(g, bound)


def edit(f: Function, edits: Mapping[str, Callable[[PyTree], PyTree]]) -> Function:
    """Returns `f` with each named activation `a` replaced, where it is made, by `edits[name](a)`.

    Where several activations are edited, a later one is made from the earlier ones' new values. Two
    names of one value are applied in the order of `edits`.

    Args:
      f: any JAX function.
      edits: `{name: function}`; each takes the activation and returns one of the same shape and
        dtype.
    Raises:
      ValueError: on a call, if a name is not one of `names(f, *args)`, or if an edit changes the
        shape or the dtype.
    """
    wanted = tuple(edits)
    function, bound = open_function(tapped(f, wanted))
    traced = _Traced(function, wanted, jaxprs.stages)

    def g(*args: object) -> jax.Array:
        cut = traced.of(args)

        def replace(var: core.Var, value: PyTree) -> jax.Array:
            # Two names of one value: both edits apply, in the order of `edits`.
            for name, tapped in zip(wanted, cut.program.values, strict=True):
                if tapped is var:
                    value = _same(name, value, edits[name](value))
            found: jax.Array = value
            return found

        found: jax.Array = jax.tree.unflatten(cut.out_tree, cut.plan(cut.inputs(args), replace))
        return found

    return _close(g, bound)


def split(
    f: Function, name: str
) -> tuple[Callable[..., tuple[PyTree, Live]], Callable[[PyTree, Live], PyTree]]:
    """Cuts `f` in two at a named activation.

    Args:
      f: any JAX function.
      name: one name of `names(f, *args)`.
    Returns:
      `prefix(*args) -> (activation, live)` and `suffix(activation, live) -> outputs`, with
      `suffix(*prefix(*args))` equal to `f(*args)` (to rounding where the two are compiled apart).
      The suffix computes only what depends on the activation: run it for as many edits as needed.
      All else that it reads is in `live`: skip connections, what is derived from weights alone, and
      the weights, so that none is a constant of the compiled suffix.

      Both are retraced for arguments of other shapes, which `live` remembers. The suffix takes the
      shapes that the prefix gave; for many edits of one activation, `jax.vmap(suffix, (0, None))`.
      It also takes an activation of another leading size B, as long as `f` does and every value of
      `live` that has the batch is given at B too (a plain chain of layers has none). Then `f` is
      traced anew, with size B for those arguments that had the activation's leading size and are
      not in `live` themselves.
    Raises:
      ValueError: on a call, if the name is not one of `names(f, *args)`, or if the suffix is given
        shapes that no such arguments lead to.

    >>> prefix, suffix = split(lambda w, x: jax.nn.relu(x @ w).sum(-1), "relu")
    >>> activation, live = prefix(jnp.ones((3, 2)), jnp.ones((4, 3)))
    >>> jax.vmap(suffix, (0, None))(jnp.stack([activation] * 5), live).shape
    (5, 4)
    """
    function, bound = open_function(tapped(f, (name,)))
    traced = _Traced(function, (name,), jaxprs.split)
    resized: dict[PyTree, _Cut] = {}

    def prefix(*args: object) -> tuple[PyTree, Live]:
        cut = traced.of(args)
        activation, *values = cut.plan.prefix(*cut.inputs(args))
        return activation, Live(tuple(values), cut.signature)

    def suffix(activation: ArrayLike, live: Live) -> jax.Array:
        # `live` remembers what the prefix was traced for, so prefix and suffix need not be called
        # in pairs.
        given = tuple(_type(leaf) for leaf in (activation, *live.values))
        cut = traced.at(live.signature)
        if not _fits(cut, given):
            key = live.signature, given
            if key not in resized:
                resized[key] = _resize(traced, cut, name, given)
            cut = resized[key]
        found: jax.Array = jax.tree.unflatten(
            cut.out_tree, cut.plan.suffix(activation, *live.values)
        )
        return found

    return _close(prefix, bound), suffix


class _Type(NamedTuple):
    shape: tuple[int, ...]
    dtype: jax.typing.DTypeLike
    weak: bool


class _Cut(NamedTuple):
    """One trace of a function, cut: for one structure and one set of types of the arguments."""

    closed: core.ClosedJaxpr
    program: jaxprs.Program
    plan: Any
    out_tree: PyTree
    signature: tuple[PyTree, tuple[_Type, ...]]

    def inputs(self, args: PyTree) -> list[PyTree]:
        return [*self.program.consts, *map(jnp.asarray, jax.tree.leaves(args))]


class _Traced:
    """The cuts of a function by the signature of its arguments. JAX itself remembers the traces."""

    def __init__(
        self, f: Function, names: tuple[str, ...], plan: Callable[[jaxprs.Program], PyTree]
    ) -> None:
        self.f, self.names, self.plan = f, names, plan
        self.cuts: dict[PyTree, _Cut] = {}

    def of(self, args: PyTree) -> _Cut:
        leaves, tree = jax.tree.flatten(args)
        signature = tree, tuple(map(_type, leaves))
        closed, shape = jax.make_jaxpr(self.f, return_shape=True)(*args)
        cut = self.cuts.get(signature)
        # Not the same trace where a tracer is closed over, or an option of JAX has changed.
        if cut is None or cut.closed is not closed:
            found = find_names(closed)
            program = jaxprs.inline(closed, [found.find(name) for name in self.names])
            cut = _Cut(closed, program, self.plan(program), jax.tree.structure(shape), signature)
            self.cuts[signature] = cut
        return cut

    def at(self, signature: tuple[PyTree, tuple[_Type, ...]]) -> _Cut:
        if signature in self.cuts:
            return self.cuts[signature]
        tree, types = signature
        # Weak types decide what a sum of two types becomes, so they belong to the signature.
        leaves = [jax.ShapeDtypeStruct(t.shape, t.dtype, weak_type=t.weak) for t in types]
        return self.of(jax.tree.unflatten(tree, leaves))


def _resize(traced: _Traced, cut: _Cut, name: str, given: tuple[_Type, ...]) -> _Cut:
    """Finds the arguments that lead to the types `given`, by the leading size of the activation."""
    tree, types = cut.signature
    # Which arguments have the batch cannot be read off a trace: sizes say it, and a trial proves
    # it.
    old, new = cut.plan.value.aval.shape[:1], given[0].shape[:1]
    arguments = cut.program.inputs[len(cut.program.consts) :]
    known = {
        arguments.index(var): t
        for var, t in zip(cut.plan.live, given[1:], strict=True)
        if var in arguments
    }
    batched = [i for i, t in enumerate(types) if i not in known and old and t.shape[:1] == old]
    # A weight may happen to have the batch's size: then the arguments one by one, the last first.
    for chosen in [batched, *([i] for i in reversed(batched))]:
        trial = tuple(
            known.get(i, t._replace(shape=new + t.shape[1:]) if i in chosen else t)
            for i, t in enumerate(types)
        )
        try:
            other = traced.at((tree, trial))
        except (TypeError, ValueError):
            continue
        if _fits(other, given):
            return other
    aval = cut.plan.value.aval
    raise ValueError(
        f"activation of {name!r} must be {aval.dtype}{list(aval.shape)} as the prefix gave it, or "
        "of another leading size that `live` has too or does not have at all, got "
        f"{given[0].dtype}{list(given[0].shape)}: run the prefix at that size, or vmap the suffix"
    )


def _fits(cut: _Cut, given: tuple[_Type, ...]) -> bool:
    expected = [var.aval for var in (cut.plan.value, *cut.plan.live)]
    return [(a.shape, a.dtype) for a in expected] == [(t.shape, t.dtype) for t in given]


def _type(leaf: PyTree) -> _Type:
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return _Type(aval.shape, aval.dtype, bool(getattr(aval, "weak_type", False)))


def _same(name: str, before: PyTree, after: PyTree) -> jax.Array:
    after = jnp.asarray(after)
    if after.shape != before.shape or after.dtype != before.dtype:
        raise ValueError(
            f"the edit of {name!r} must return {before.dtype}{list(before.shape)}, the "
            f"activation's type, got {after.dtype}{list(after.shape)}"
        )
    found: jax.Array = after
    return found


def tapped(f: Function, names: tuple[str, ...] | None) -> Function:
    """Returns `f`, with layers of an engine outside JAX as values of the program; None for all."""
    inner: Any = getattr(f, "apply", f)
    if not hasattr(inner, "tapped"):
        return f
    inner = inner.tapped(names)
    if not hasattr(f, "apply"):
        found: Function = inner
        return found
    return dataclasses.replace(f, apply=inner)  # type: ignore[type-var]


def open_function(f: Function) -> tuple[Function, tuple[PyTree, ...]]:
    """Makes a callable with weights in it, such as a `Model`, a function that takes it."""
    leaves = jax.tree.leaves(f)
    # A plain function is no pytree, and so its own only leaf.
    return (f, ()) if len(leaves) == 1 and leaves[0] is f else (_call, (f,))


def _close(g: Function, bound: tuple[PyTree, ...]) -> Function:
    # A Partial is a pytree: under jit its weights are arguments, not constants of the program.
    return jax.tree_util.Partial(g, *bound) if bound else g


def _call(f: Function, *args: object) -> jax.Array:
    found: jax.Array = f(*args)
    return found
