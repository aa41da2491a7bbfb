"""Layer-wise relevance propagation: the answer is handed back layer by layer, under a rule a layer.

Bach et al. 2015; the rules as in Montavon et al., Layer-Wise Relevance Propagation: An Overview,
2019. Relevance `R` is carried as `g = R / activation`: then every function without a kernel (relu,
  pooling,
sums, skip connections) needs no rule but its own derivative, and a rule is another derivative of a
convolution or product, bias included. With epsilon 0 that is input times gradient, exactly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from perturb import arrays
from perturb.attribution import _common
from perturb.model import Model
from perturb.taps.swapping import LAYER, Layer, swap
from perturb.types import Array, ArrayLike, Function, PyTree

__all__ = ["RULES", "Box", "Epsilon", "Gamma", "Rule", "ZPlus", "lrp"]

# What a rule gives: the share of the inputs as `g`, and as relevance.
Shares = tuple[jax.Array, jax.Array]
_STABILISER = 1e-6


def _stable(z: jax.Array, epsilon: float) -> jax.Array:
    # Not the sign function: at z = 0 that is 0, and nothing would be added.
    return z + jnp.where(z < 0, -epsilon, epsilon)


def _parts(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.maximum(x, 0), jnp.minimum(x, 0)


def _back(layer: Layer, x: jax.Array, kernel: jax.Array, s: jax.Array) -> jax.Array:
    """The transposed layer with that kernel."""
    found: jax.Array = jax.vjp(lambda x: layer(x, kernel), x)[1](s)[0]
    return found


class Rule:
    """How a layer's relevance is shared among its inputs; see `share`."""

    def share(
        self, layer: Layer, x: jax.Array, kernel: jax.Array, bias: ArrayLike, r: jax.Array
    ) -> Shares:
        """Returns `(R / x, R)` of the inputs, for the relevance `r` of the outputs."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epsilon(Rule):
    """In proportion to what each input adds, `R_i = x_i w_i R / (z + epsilon sign z)`.

    Attributes:
      epsilon: takes a share off outputs that many small terms cancel in.
    """

    epsilon: float = 1e-6

    def share(
        self, layer: Layer, x: jax.Array, kernel: jax.Array, bias: PyTree, r: PyTree
    ) -> Shares:
        """See `Rule`."""
        g = _back(layer, x, kernel, r / _stable(layer(x, kernel, *bias), self.epsilon))
        return g, x * g


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZPlus(Rule):
    """What raises the output shares alone: positive inputs by positive weights, negative by
    negative.
    """

    def share(
        self, layer: Layer, x: jax.Array, kernel: jax.Array, bias: PyTree, r: PyTree
    ) -> Shares:
        """See `Rule`."""
        (up, down), (plus, minus) = _parts(x), _parts(kernel)
        z = layer(up, plus, *(jnp.maximum(b, 0) for b in bias)) + layer(down, minus)
        s = r / _stable(z, _STABILISER)
        g = jnp.where(x >= 0, _back(layer, x, plus, s), _back(layer, x, minus, s))
        return g, x * g


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gamma(Rule):
    """What raises the output counts `1 + gamma` times; between `Epsilon` (0) and `ZPlus`
    (infinity).

    For inputs of both signs, as generalised by Andéol et al. 2021: outputs below 0 favour what
    lowers them.

    Attributes:
      gamma: from 0 on.
    """

    gamma: float = 0.25

    def share(
        self, layer: Layer, x: jax.Array, kernel: jax.Array, bias: PyTree, r: Array
    ) -> Shares:
        """See `Rule`."""
        up, down = _parts(x)
        plus, minus = (kernel + self.gamma * part for part in _parts(kernel))
        # Biases are raised like the weights that they stand beside.
        biases = [[b + self.gamma * part for b in bias for part in [_parts(b)[i]]] for i in (0, 1)]
        above = layer(up, plus, *biases[0]) + layer(down, minus)
        below = layer(up, minus, *biases[1]) + layer(down, plus)
        y = layer(x, kernel, *bias)
        # Outputs above and below 0 have denominators of their own; each relevance goes by
        # one of them.
        s = jnp.where(y > 0, r, 0) / _stable(above, _STABILISER)
        t = jnp.where(y < 0, r, 0) / _stable(below, _STABILISER)
        g = jnp.where(
            x >= 0,
            _back(layer, x, plus, s) + _back(layer, x, minus, t),
            _back(layer, x, minus, s) + _back(layer, x, plus, t),
        )
        return g, x * g


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box(Rule):
    """For pixels, which lie between two bounds: what each adds above the lowest that it could.

    Only for the first layer. The bounds are what the layer sees of a black and of a white image.
    """

    def share(
        self, layer: Layer, x: jax.Array, kernel: jax.Array, bias: ArrayLike, r: jax.Array
    ) -> Shares:
        """Refuses: the bounds are not known here."""
        raise ValueError("Box is a rule for pixels: give it as first=, not as rule=")

    def between(
        self,
        layer: Layer,
        x: jax.Array,
        kernel: jax.Array,
        r: jax.Array,
        low: jax.Array | float,
        high: jax.Array | float,
    ) -> Shares:
        """Returns `(R / x, R)` of the inputs, which lie between `low` and `high`."""
        plus, minus = _parts(kernel)
        z = layer(x, kernel) - layer(low, plus) - layer(high, minus)
        s = r / _stable(z, _STABILISER)
        back = [_back(layer, x, k, s) for k in (kernel, plus, minus)]
        relevance = x * back[0] - low * back[1] - high * back[2]
        return relevance / _stable(x, _STABILISER), relevance


RULES: dict[str, Rule] = {
    "epsilon": Epsilon(),
    "gamma": Gamma(),
    "zplus": ZPlus(),
    "box": Box(),
}


def lrp(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    rule: str | Rule | Sequence[str | Rule] = "epsilon",
    first: str | Rule | None = None,
) -> np.ndarray:
    """Returns `[B, H, W]`, signed: the relevance of the pixels for the target's score.

    Relevance is read where the first convolution or product takes its input, which is the image
    after the model's own normalisation, and summed over channels. It starts as the target's score.
    Biases keep their share, so the sum over pixels is the score only where there are none.

    Args:
      model, images, targets: as for `gradient`.
      rule: name (of `RULES`) or rule of all layers, or one a layer, in the order of execution.
      first: rule of the first layer, "box" for pixels; None is that of all.
    Raises:
      ValueError: if a rule is unknown, if there are not as many rules as layers, or if the first
        layer does not see the image in its own size.

    >>> import perturb
    >>> seen = perturb.Model(lambda w, x: x.reshape(len(x), -1) @ w, jnp.ones((12, 2)))
    >>> lrp(seen, np.ones((1, 2, 2, 3), np.float32), [0]).round(3).tolist()
    [[[3.0, 3.0], [3.0, 3.0]]]
    """
    return propagate(model, images, targets, rule=rule, first=first)


def propagate(
    model: Model,
    images: ArrayLike,
    targets: PyTree,
    *,
    rule: str | Rule | Sequence[str | Rule],
    first: str | Rule | None,
    rules: tuple[tuple[str, Function], ...] = (),
) -> np.ndarray:
    """Returns what `lrp` does, with rules of `perturb.taps.swapping` for what has no kernel, by
    name.
    """
    pixels, classes, number = _common.checked_batch(model, images, targets)
    shapes = _inputs(model, pixels)
    several: list[PyTree] | None = (
        list(rule) if isinstance(rule, Sequence) and not isinstance(rule, str) else None
    )
    if several is not None and len(several) != len(shapes):
        raise ValueError(
            f"rule must be one rule, or one for each of the {len(shapes)} layers of {model.name} "
            f"with a kernel, got {len(several)}"
        )
    each: list[PyTree] = several or [rule for _ in shapes]
    kernels = [_get(r) for r in each]
    if first is not None:
        kernels[0] = _get(first)
    batch, *size, channels = pixels.shape
    upright, channels_first = pixels.shape, (batch, channels, *size)
    flat = (batch, pixels[0].size)
    if shapes[0].shape not in (upright, channels_first, flat):
        raise ValueError(
            f"the first layer of {model.name} must see the image in its own size "
            f"{upright[1:]} for lrp, it sees {tuple(shapes[0].shape[1:])}"
        )
    found = arrays.finished(_map(model, pixels, classes, tuple(kernels), rules))
    # Read in the network's own layout; turned into the picture's.
    if found.shape == channels_first != upright or (found.shape == flat and model.channels_first):
        found = arrays.namespace(found).moveaxis(found.reshape(channels_first), 1, -1)
    result: np.ndarray = found.reshape(upright).sum(-1)[:number]
    return result


def _get(rule: PyTree) -> Rule:
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise ValueError(
            f"rule must be a perturb.attribution.lrp.Rule or one of "
            f"{', '.join(RULES)}, got {rule!r}"
        )
    return RULES[rule]


def _inputs(model: Model, images: jax.Array) -> list[PyTree]:
    """Shapes of what every layer with a kernel takes, in the order of execution."""
    seen: list[PyTree] = []

    def note(layer: Layer, x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
        seen.append(jax.ShapeDtypeStruct(x.shape, x.dtype))
        found: jax.Array = layer(x, kernel, *bias)
        return found

    # A trace on shapes, to count the layers before anything is run.
    jax.eval_shape(swap(lambda x: model(x), {LAYER: note}), images)
    if not seen:
        raise ValueError(f"model {model.name} has no convolution or product: lrp has no layer")
    return seen


def _first_input(model: Model, images: jax.Array) -> jax.Array:
    seen: list[jax.Array] = []

    def note(layer: Layer, x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
        seen.append(x)
        found: jax.Array = layer(x, kernel, *bias)
        return found

    swap(lambda x: model(x), {LAYER: note})(images)
    return seen[0]


@functools.partial(jax.jit, static_argnames=("rules", "others"))
def _map(
    model: Model, images: jax.Array, targets: PyTree, rules: tuple[Rule, ...], others: PyTree
) -> jax.Array:
    ends = None
    if isinstance(rules[0], Box):
        # Through the model's own normalisation, whatever that is.
        black, white = (_first_input(model, jnp.full_like(images, v)) for v in (0.0, 1.0))
        ends = jnp.minimum(black, white), jnp.maximum(black, white)
    # An argument that changes no value: its "gradient" is what the first rule hands to it.
    probe = jnp.zeros_like(jax.eval_shape(_first_input, model, images))

    def total(probe: jax.Array) -> jax.Array:
        seen: list[int] = []

        def exchange(layer: Layer, x: jax.Array, kernel: jax.Array, *bias: jax.Array) -> jax.Array:
            seen.append(len(seen))
            here = rules[seen[-1]]
            if len(seen) > 1:
                # The relevance of inner layers is not read; it goes on as `g`, by the first
                # argument.
                return _ruled(here, layer, kernel, bias, None)(x, jax.lax.stop_gradient(x))
            return _ruled(here, layer, kernel, bias, ends)(x, probe)

        outputs = swap(lambda x: model(x), {**dict(others), LAYER: exchange})(images)
        return _common.score(model, outputs, targets).sum()

    found: jax.Array = jax.grad(total)(probe)
    return found


def _ruled(
    rule: Rule, layer: Layer, kernel: jax.Array, bias: PyTree, ends: PyTree
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The layer with the rule as its derivative; what comes back at the probe is relevance
    itself.
    """

    @jax.custom_vjp
    def g(x: jax.Array, probe: jax.Array) -> jax.Array:
        found: jax.Array = layer(x, kernel, *bias)
        return found

    def backward(x: jax.Array, g: jax.Array) -> Shares:
        # What comes down is relevance over activation; a rule shares out relevance.
        relevance = g * layer(x, kernel, *bias)
        if isinstance(rule, Box) and ends is not None:
            return rule.between(layer, x, kernel, relevance, *ends)
        return rule.share(layer, x, kernel, bias, relevance)

    def forward(x: jax.Array, probe: jax.Array) -> tuple[jax.Array, jax.Array]:
        return layer(x, kernel, *bias), x

    g.defvjp(forward, backward)
    return g
