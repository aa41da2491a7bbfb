"""What every method promises, one suite for all; a new method is one line in `METHODS`."""

import functools

import jax
import numpy as np
import pytest

import perturb
from tests import planted

TARGETS = np.array([0, 1, 3])
IMAGES = np.random.default_rng(0).random((3, 24, 32, 3), np.float32)
# Name: the call, and whether a larger score is better.
METHODS = {
    "extremal": (functools.partial(perturb.extremal, areas=(0.1, 0.3), operator="fade"), True),
    "extremal delete": (
        functools.partial(perturb.extremal, areas=0.2, operator="fade", game="delete"),
        False,
    ),
    "extremal dual": (functools.partial(perturb.extremal, areas=0.2, game="dual"), True),
    "torchray": (functools.partial(perturb.extremal, areas=0.2, solver="torchray"), True),
    "meaningful": (functools.partial(perturb.meaningful, reward="logit"), False),
    "meaningful random": (
        functools.partial(perturb.meaningful, reward="logit", start="random"),
        False,
    ),
    "meaningful preserve": (
        functools.partial(perturb.meaningful, reward="logit", game="preserve", operator="fade"),
        True,
    ),
    "channels": (functools.partial(perturb.channels, layer="conv_1", counts=(2, 5)), True),
}
MODEL = planted.small_network()


@pytest.fixture(scope="module", params=list(METHODS))
def case(request):
    method, higher = METHODS[request.param]
    run = functools.partial(method, MODEL, IMAGES, TARGETS, batch_size=4)
    return request.param, run, higher, run(steps=3, key=jax.random.key(7))


def arrays(result):
    return {k: v for k, v in result._asdict().items() if isinstance(v, np.ndarray)}


def test_finite_in_range_and_of_the_right_type(case):
    _, _, _, result = case
    for name, value in arrays(result).items():
        if name == "status":
            assert set(value.reshape(-1)) <= {"ok", "not_converged"}
        elif not name.startswith("probability"):
            assert np.isfinite(value).all(), name
        if value.dtype.kind == "f":
            assert value.dtype == np.float32, name
    shown = result.weights if hasattr(result, "weights") else result.masks
    assert shown.shape[:1] == (3,)
    assert (shown >= 0).all()
    assert (shown <= 1).all()


def test_same_key_same_bytes_and_no_new_trace(case):
    _, run, _, result = case
    again = run(steps=3, key=jax.random.key(7))
    for name, value in arrays(result).items():
        np.testing.assert_array_equal(value, arrays(again)[name], err_msg=name)


def test_the_score_improves_in_three_steps(case):
    """On average over images, the soft mask's score against where it began.

    A mask of exact area begins with every pixel at that area; one step hardly moves it. The published
    ones begin with everything kept, pay for the area first, and so must beat three steps of nothing
    but that: the same mask without the network's help.
    """
    name, run, higher, result = case
    blind = run(
        steps=3, key=jax.random.key(7), reward=lambda row, target, original: 0.0 * row[target]
    )
    weights = result.weights if hasattr(result, "weights") else result.masks
    rival = blind.weights if hasattr(blind, "weights") else blind.masks
    assert not np.array_equal(weights, rival), name
    gain = score(name, result) - score(name, blind)
    assert (gain if higher else -gain) > 0


def score(name, result):
    """Mean reward of the target under the soft masks, measured afresh for every method."""
    if name == "channels":
        edited = [
            perturb.taps.edit(MODEL.apply, {"conv_1": lambda a, w=w: a * w})(
                MODEL.variables, IMAGES
            )
            for w in result.weights.reshape(-1, result.weights.shape[-1])
        ]
        return np.mean(
            [
                edited[i * result.weights.shape[1] + j][i, TARGETS[i]]
                for i in range(3)
                for j in range(result.weights.shape[1])
            ]
        )
    return float(result.score_masked.mean())
