"""Slots that are refilled: the same masks as in fixed batches, for fewer steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import solver

STEPS = 90


@pytest.fixture(scope="module")
def problem():
    """A model that looks at one patch a class, and pictures some of which are easier than
    others.
    """
    where = np.zeros((3, 16, 16, 1), np.float32)
    where[0, 2:8, 2:8], where[1, 9:15, 9:15], where[2, 4:12, 3:6] = 1, 1, 1
    model = perturb.Model(
        lambda w, x: jnp.tanh(3 * (x[:, None] * w[None]).mean((2, 3, 4))) * 10, jnp.asarray(where)
    )
    images = np.random.default_rng(0).uniform(size=(6, 16, 16, 3)).astype(np.float32)
    return model, images, np.array([0, 1, 2, 0, 1, 2])


def run(problem, slots, monkeypatch=None, **more):
    counts = []
    real = solver.advance_in_place

    def counted(model, recipe, items, state, k, **more):
        counts.append(int(k))
        return real(model, recipe, items, state, k, **more)

    if monkeypatch is not None:
        monkeypatch.setattr(solver, "advance_in_place", counted)
    result = perturb.extremal(
        *problem,
        areas=(0.1, 0.4),
        steps=STEPS,
        # View by view: only there can patience end a mask.
        mask=perturb.masks.Blobs(),
        batch_size=slots,
        key=jax.random.key(1),
        **more,
    )
    return result, sum(counts)


@pytest.mark.slow
def test_refilled_slots_give_what_fixed_batches_give(problem, monkeypatch):
    want, _ = run(problem, 2, patience=10, reproducible=True)
    fixed, _ = run(problem, 3, reproducible=True)
    refilled, _ = run(problem, 3, patience=10, reproducible=True)
    _, whole = run(problem, 2, monkeypatch, reproducible=False)
    _, taken = run(problem, 2, monkeypatch, patience=10, reproducible=False)
    # Six pictures by two areas in two slots: six full rounds.
    assert whole == 6 * STEPS
    # About half of the twelve masks end early, and not all at once: a wide area has nothing left to
    # gain.
    assert taken < whole
    for name in ("masks", "steps", "score_binary", "scores"):
        np.testing.assert_array_equal(getattr(want, name), getattr(refilled, name))
    # Masks that kept the same step are compared: an earlier end may have kept an earlier best.
    same = fixed.steps == refilled.steps
    assert same.any()
    np.testing.assert_array_equal(fixed.masks[same], refilled.masks[same])
    print(f"calls of a step: {whole} in fixed batches, {taken} refilled: {whole / taken:.2f} x")


def test_patience_that_cannot_be_served(problem):
    for more in ({"patience": 0}, {"patience": 10, "solver": "torchray"}):
        with pytest.raises(ValueError, match="patience"):
            run(problem, 2, **more)
