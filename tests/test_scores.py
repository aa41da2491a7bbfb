"""Score, probability, rank and top of every kind of output, against formulas in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import metrics, rewards, scores

# No two alike, in no order, of either sign: every rank and class has its own answer.
ROW = np.array([2.0, -1.0, 0.5])
Z = 1.25


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


P = softmax(ROW)
MAPS = np.random.default_rng(0).normal(size=(4, 5, 3))
WHERE = np.random.default_rng(1).random((4, 5))
BOXES = np.array([[0.0, 0, 2, 2], [1, 1, 3, 3]])
# Two boxes by two classes; the best of class 1 is the second box.
FOUND = np.array([[0.2, 0.6], [0.7, 0.9]])
# output, row, target, score, probability (None: there is none), rank, top
CASES = {
    "logits": ("logits", ROW, 2, 0.5, P[2], 1, 0),
    "one logit": ("logits", [Z], 0, Z, sigmoid(Z), 0, 0),
    "one logit, no axis": ("logits", Z, 0, Z, sigmoid(Z), 0, 0),
    "yes": ("binary", [Z], 1, Z, sigmoid(Z), 0, 1),
    "no": ("binary", Z, 0, -Z, 1 - sigmoid(Z), 1, 1),
    "probabilities": ("probabilities", P, 1, P[1], P[1], 2, 0),
    "one probability": ("probabilities", [0.8], 0, 0.8, 0.8, 0, 0),
    "multilabel": ("multilabel", ROW, 2, 0.5, sigmoid(0.5), 1, 0),
    "regression": ("regression", ROW, 1, -1.0, None, 2, None),
    "one number": ("regression", Z, 0, Z, None, 0, None),
    "embedding": ("embedding", ROW, 0, 2.0, None, 0, None),
    "any": ("any", ROW, 2, 0.5, None, 1, 0),
    "segmentation": (
        *("segmentation", MAPS, 1, MAPS[..., 1].mean()),
        *(softmax(MAPS)[..., 1].mean(), None, None),
    ),
    "detection": ("detection", (BOXES, FOUND), 1, 0.9, None, None, None),
}


@pytest.mark.parametrize("case", CASES)
def test_against_numpy(case):
    """Under jit, with a traced target."""
    output, row, target, score, chance, rank, top = CASES[case]
    row = jax.tree.map(jnp.asarray, row) if isinstance(row, tuple) else jnp.asarray(row)

    def read(f):
        return jax.jit(lambda r, t: f(output, r, t))(row, target)

    np.testing.assert_allclose(read(scores.score), score, rtol=1e-6)
    np.testing.assert_allclose(read(scores.measure), score if chance is None else chance, rtol=1e-6)
    if chance is None:
        with pytest.raises(ValueError, match="no probability"):
            read(scores.probability)
    else:
        np.testing.assert_allclose(read(scores.probability), chance, rtol=1e-6)
        if output != "segmentation":  # there the mean of logs is not the log of the mean
            np.testing.assert_allclose(read(scores.log_probability), np.log(chance), rtol=1e-6)
    if rank is None:
        with pytest.raises(ValueError, match="no rank"):
            read(scores.rank)
    else:
        assert int(read(scores.rank)) == rank
    if top is None:
        with pytest.raises(ValueError, match="no top class"):
            scores.top(output, row)
    else:
        assert int(scores.top(output, row)) == top
    assert scores.number_of_targets(output, row) > target


def test_targets_that_are_more_than_a_number():
    where, maps = jnp.asarray(WHERE), jnp.asarray(MAPS)
    want = (MAPS[..., 2] * WHERE).sum() / WHERE.sum()
    np.testing.assert_allclose(scores.score("segmentation", maps, (2, where)), want, rtol=1e-5)
    want = (softmax(MAPS)[..., 2] * WHERE).sum() / WHERE.sum()
    np.testing.assert_allclose(
        scores.probability("segmentation", maps, (2, where)), want, rtol=1e-5
    )
    want = ((MAPS.argmax(-1) == 2) * WHERE).sum() / WHERE.sum()
    np.testing.assert_allclose(scores.predicted("segmentation", maps, (2, where)), want, rtol=1e-5)
    np.testing.assert_allclose(
        scores.score("embedding", jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0])), 24 / 25, rtol=1e-6
    )
    box = jnp.array([0.0, 0, 4, 1])  # shares 2 of 6 with the first box, none with the second
    got = scores.score("detection", (jnp.asarray(BOXES), jnp.asarray(FOUND)), (1, box))
    np.testing.assert_allclose(got, 0.6 * 2 / 6, rtol=1e-5)


def test_rivals():
    other, score = scores.rival("logits", jnp.asarray(ROW), 0)
    assert (int(other), float(score)) == (2, 0.5)
    other, score = scores.rival("binary", jnp.array([Z]), 1)
    assert (int(other), float(score)) == (0, -Z)
    for output, row in (("multilabel", ROW), ("logits", [Z]), ("regression", ROW)):
        other, score = scores.rival(output, jnp.asarray(row), 0)
        assert int(other) == -1
        assert np.isnan(score)


def test_what_the_network_says():
    assert scores.predicted("logits", jnp.asarray(ROW), 0) == 1
    assert (
        scores.predicted("multilabel", jnp.asarray(ROW), 2) == 1
    )  # likelier than not, not the top
    assert scores.predicted("multilabel", jnp.asarray(ROW), 1) == 0
    assert scores.predicted("binary", jnp.array([-Z]), 0) == 1
    assert scores.predicted("logits", jnp.array([-Z]), 0) == 0
    with pytest.raises(ValueError, match="no probability"):
        scores.predicted("regression", jnp.asarray(ROW), 0)


@pytest.mark.parametrize(
    ("output", "row", "target", "margin"),
    [
        ("logits", ROW, 2, -1.5),
        ("probabilities", P, 2, P[2] - P[0]),
        ("binary", [Z], 0, -Z),
        ("multilabel", ROW, 2, 0.5),
        ("logits", [Z], 0, Z),
    ],
)
def test_rewards_read_what_the_model_gives(output, row, target, margin):
    row = jnp.asarray(row, jnp.float32)
    model = perturb.Model(lambda v, x: x, (), output=output)

    def paid(name, original=row):
        return float(rewards.bind(rewards.get(name), model)(row, target, original))

    chance = float(scores.probability(output, row, target))
    np.testing.assert_allclose(paid("logit"), scores.score(output, row, target), rtol=1e-6)
    np.testing.assert_allclose(paid("probability"), chance, rtol=1e-6)
    np.testing.assert_allclose(paid("log_probability"), np.log(chance), rtol=1e-5)
    np.testing.assert_allclose(paid("margin"), margin, rtol=1e-5)
    assert abs(paid("kl")) < 1e-6
    # Two flat distributions against this one, by hand.
    # Two outcomes, yes and no, whose divergence is a sum over both.
    if output == "binary":
        p = sigmoid([Z, -Z])
        original = jnp.zeros_like(row)
        want = -(0.5 * (np.log(0.5) - np.log(p))).sum()
        np.testing.assert_allclose(paid("kl", original), want, rtol=1e-5)
    assert rewards.bind(rewards.get("logit"), model) == rewards.bind(rewards.logit(), model)


KINDS = ("logits", "probabilities", "binary", "multilabel", "regression", "embedding", "any")
PICTURES = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)


def planted(output):
    """The first number is the brightness of a square, times 6; what follows is as `output` says."""

    def apply(v, x):
        seen = v * x[:, 2:6, 2:6].mean((1, 2))
        if output == "probabilities":
            return jax.nn.softmax(seen)
        if output == "segmentation":
            return v * x
        return seen[:, :1] if output == "binary" else seen

    return perturb.Model(apply, jnp.float32(6.0), output=output)


def expected(output, pictures, target):
    """What a metric goes by, in numpy."""
    seen = 6 * pictures[:, 2:6, 2:6].mean((1, 2), dtype=np.float64)
    if output in ("logits", "probabilities"):
        return softmax(seen)[:, target]
    if output == "binary":
        return sigmoid(seen[:, 0] if target else -seen[:, 0])
    if output == "segmentation":
        return softmax(6 * pictures.astype(np.float64))[..., target].mean((1, 2))
    return sigmoid(seen[:, target]) if output == "multilabel" else seen[:, target]


@pytest.mark.parametrize("output", [*KINDS, "segmentation"])
def test_metrics_read_what_the_model_gives(output):
    """The first point of a deletion curve is the whole picture, the last is all removed (black)."""
    model = planted(output)
    maps = PICTURES.mean(-1)
    preset = metrics.insertion_deletion.Preset(name="black", steps=4, removed=0.0)
    for target in (0, 1):
        found = metrics.deletion(model, PICTURES, [target, target], maps, preset=preset)
        np.testing.assert_allclose(
            found.scores[:, 0], expected(output, PICTURES, target), rtol=1e-5
        )
        np.testing.assert_allclose(
            found.scores[:, -1], expected(output, 0 * PICTURES, target), atol=1e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("output", ["logits", "probabilities", "binary", "multilabel"])
def test_masks_report_the_models_own_probability(output):
    model = planted(output)
    # Two steps: what is reported of the whole picture does not depend on the mask.
    found = perturb.extremal(model, PICTURES, [0, 1], areas=0.2, steps=2, reward="probability")
    want = [expected(output, PICTURES, t)[t] for t in (0, 1)]
    np.testing.assert_allclose(found.probability_original, want, rtol=1e-5)
    np.testing.assert_allclose(found.score_original, want, rtol=1e-5)
    assert np.isfinite(perturb.meaningful(model, PICTURES, [0, 1], steps=2).masks).all()
