"""Attacks stay within their bounds and work; the detector tells planted differences."""

import jax
import numpy as np
import pytest

from perturb import attribution, defence
from tests import planted, relunet


@pytest.fixture(scope="module")
def network():
    model = relunet.model(relunet.random_weights())
    # At least 0.2 from black and white: with epsilon up to 0.05 nothing is cut off at 0 and 1.
    images = np.random.default_rng(0).uniform(0.2, 0.8, (6, 16, 16, 3)).astype(np.float32)
    return model, images, np.asarray(model(images)).argmax(1)


@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_attacks_stay_near_and_lower_the_class(network, epsilon):
    model, images, targets = network
    rows = np.arange(len(images))
    before = np.asarray(jax.nn.log_softmax(model(images)))[rows, targets]
    once = defence.fgsm(model, images, targets, epsilon=epsilon)
    more = defence.pgd(model, images, targets, epsilon=epsilon, steps=8, key=jax.random.key(1))
    for attacked in (once, more):
        # float32: 0.8 + 0.05 is rounded by up to 3e-8, and so is the difference.
        assert np.abs(attacked - images).max() <= epsilon + 1e-6
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        after = np.asarray(jax.nn.log_softmax(model(attacked)))[rows, targets]
        assert (after < before).all()
    a, b = (np.asarray(jax.nn.log_softmax(model(x)))[rows, targets].mean() for x in (once, more))
    # Eight small steps follow a slope that one large step crosses: on the mean they lose nothing by
    # it.
    assert b <= a + 1e-3


def test_fgsm_of_a_linear_model_by_hand():
    weights = np.random.default_rng(1).normal(size=(2, 8, 8)).astype(np.float32)
    images = np.full((1, 8, 8, 3), 0.5, np.float32)
    attacked = defence.fgsm(planted.linear(weights), images, [0], epsilon=0.1)
    # The slope of log p of the first of two classes is (1 - p) times the difference of the weights,
    # the same sign in every channel.
    wanted = images - 0.1 * np.sign(weights[0] - weights[1])[None, ..., None]
    np.testing.assert_allclose(attacked, wanted, atol=1e-6)


def test_maps_of_classes_by_hand():
    """Of a linear model gradient times input is known; the largest value of a picture becomes 1."""
    weights = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
    images = np.random.default_rng(2).uniform(0.2, 0.8, (2, 8, 8, 3)).astype(np.float32)
    model = planted.linear(weights)
    found = defence.class_maps(
        model, images, classes=(2, 0), attribution=attribution.input_gradient
    )
    # The weight is spread over three channels as thirds; the scale drops out where the largest is
    # 1.
    wanted = np.moveaxis(weights[[2, 0]], 0, -1) * images.sum(-1, keepdims=True)
    wanted = wanted / np.abs(wanted).max((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.slow
def test_the_detector_learns_what_heat_maps_show():
    """Attacked maps are spread out; the place of the clean ones says the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    attacked = rng.uniform(size=400) < 0.5
    maps = rng.uniform(0, 0.3, (400, 16, 16))
    for i, label in enumerate(labels):
        # A quarter of the picture a class. An attacked map is weaker there, and its answer is the
        # class after its label: place and answer disagree.
        y, x = 8 * (label // 2), 8 * (label % 2)
        maps[i, y : y + 8, x : x + 8] += 0.4 if attacked[i] else 1.0
    answers = np.where(attacked, (labels + 1) % 4, labels)
    found = defence.train(
        maps[:300], answers[:300], attacked[:300], labels[:300], classes=4, steps=80
    )
    told = defence.predict(found, maps[300:], answers[300:])
    area, low, high = defence.area_under_roc(told.attacked, attacked[300:])
    # Chance is 0.5; strength and disagreement each tell these maps apart.
    assert area > 0.95
    assert low <= area <= high
    assert (told.label == labels[300:]).mean() > 0.9


def test_area_under_roc_against_pairs():
    rng = np.random.default_rng(2)
    # Five values among forty: many pairs tie, and a tie counts half, as Mann and Whitney have it.
    scores, marks = rng.integers(0, 5, 40) / 4, rng.uniform(size=40) < 0.4
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[marks] for b in scores[~marks]
    ]
    assert defence.area_under_roc(scores, marks)[0] == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x, t: defence.fgsm(m, x, t, epsilon=0), "epsilon must be above 0"),
        (lambda m, x, t: defence.pgd(m, x[0], t), "images must be"),
        (lambda m, x, t: defence.area_under_roc([0.5], [True]), "both kinds"),
        (lambda m, x, t: defence.class_maps(m, x, classes=()), "classes must name"),
        (lambda m, x, t: defence.train(x, t, t[:2], t, classes=5), "of the same pictures"),
    ],
)
def test_what_cannot_be_served_is_named(network, call, words):
    with pytest.raises(ValueError, match=words):
        call(*network)
