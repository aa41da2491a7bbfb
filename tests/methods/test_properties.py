"""What every method promises, one suite for all; a new method is one line in `METHODS`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import perturb
from tests import planted

TARGETS = np.array([0, 1, 3])
# Smooth, so that the shifts of some methods show a network nearly the same picture.
IMAGES = np.random.default_rng(0).random((3, 3, 4, 3), np.float32).repeat(8, 1).repeat(8, 2)
# Name: the call, and whether a larger score is better.
METHODS = {
    "extremal": (
        functools.partial(perturb.extremal, areas=(0.1, 0.3), reward="logit", operator="fade"),
        True,
    ),
    "extremal delete": (
        functools.partial(
            perturb.extremal, areas=0.2, reward="logit", operator="fade", game="delete"
        ),
        False,
    ),
    "extremal dual": (
        functools.partial(perturb.extremal, areas=0.2, reward="logit", game="dual"),
        True,
    ),
    "torchray": (functools.partial(perturb.extremal, areas=0.2, solver="torchray"), True),
    "extremal alternate": (
        functools.partial(perturb.extremal, areas=0.2, reward="logit", operator="mean+noise"),
        True,
    ),
    "meaningful": (functools.partial(perturb.meaningful, reward="logit", operator="fade"), False),
    "meaningful random": (
        functools.partial(perturb.meaningful, reward="logit", operator="fade", start="random"),
        False,
    ),
    "meaningful preserve": (
        functools.partial(perturb.meaningful, reward="logit", game="preserve", operator="fade"),
        True,
    ),
    "channels": (functools.partial(perturb.channels, layer="conv_2", counts=(2, 5)), True),
}
# Scores of the size that networks have, beside which the prices of the masks are small.
SMALL = planted.small_network()
MODEL = dataclasses.replace(SMALL, variables=[*SMALL.variables[:-1], 50 * SMALL.variables[-1]])


class Case(NamedTuple):
    method: Callable[..., Any]
    higher: bool
    result: Any


@pytest.fixture(scope="module", params=list(METHODS))
def case(request):
    method, higher = METHODS[request.param]
    result = method(MODEL, IMAGES, TARGETS, batch_size=4, steps=3, key=jax.random.key(7))
    return Case(method, higher, result)


def arrays(result):
    return {k: v for k, v in result._asdict().items() if isinstance(v, np.ndarray)}


@pytest.mark.slow_cases
def test_finite_in_range_and_of_the_right_type(case):
    result = case.result
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


@pytest.mark.slow_cases
def test_same_key_same_bytes_and_no_new_trace(case):
    again = case.method(MODEL, IMAGES, TARGETS, batch_size=4, steps=3, key=jax.random.key(7))
    for name, value in arrays(case.result).items():
        np.testing.assert_array_equal(value, arrays(again)[name], err_msg=name)


def test_three_steps_improve_the_score(case):
    """Masks made for the score leave more of it (or, deleting, less) than masks made against it."""
    method, higher, result = case.method, case.higher, case.result
    # The last layer with a minus has the opposite scores, so the sum of both is the gain of one
    # over the other.
    variables = [*MODEL.variables[:-1], -MODEL.variables[-1]]
    against = dataclasses.replace(MODEL, variables=variables)  # other weights: no new program
    rival = method(against, IMAGES, TARGETS, batch_size=4, steps=3, key=jax.random.key(7))
    gain = result.score_masked.mean() + rival.score_masked.mean()
    assert (gain if higher else -gain) > 0
