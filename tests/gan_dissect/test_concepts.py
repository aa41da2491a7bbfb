"""Concepts against masks made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import Concepts
from perturb import Model
from perturb.units.concepts import attributes, colours, edges, labels, segmenter
from tests.gan_dissect import planted

RNG = np.random.default_rng(0)
IMAGE = RNG.random((3, 8, 8, 3)).astype(np.float32)


def test_labels():
    generator = planted.generator()
    outputs = {"image": IMAGE, "labels": jnp.asarray(RNG.integers(0, 3, (3, 8, 8)))}
    found = labels(generator)
    assert found.names == generator.label_names
    masks = jax.jit(lambda c, o: c(o))(found, outputs)
    np.testing.assert_array_equal(masks.argmax(-1), outputs["labels"])
    assert bool((masks.sum(-1) == 1).all())
    less = labels(["none", "square", "light"], none=0)
    assert less.names == ("square", "light")
    np.testing.assert_array_equal(less(outputs), masks[..., 1:])
    np.testing.assert_array_equal(
        jax.vmap(lambda o: less(jax.tree.map(lambda x: x[None], o))[0])(outputs), less(outputs)
    )
    with pytest.raises(ValueError, match="gives no labels, only image"):
        found({"image": IMAGE})


def test_colours():
    red = np.zeros((1, 2, 2, 3), np.float32)
    # Near red, too dark a red; blue, near orange: within .2 of a colour, or of none.
    red[0, 0] = (0.9, 0.1, 0), (0.6, 0, 0)
    red[0, 1] = (0, 0, 1), (1, 0.7, 0.1)
    found = colours({"red": (1, 0, 0), "orange": (1, 0.6, 0), "blue": (0, 0, 1)}, tolerance=0.2)
    masks = np.asarray(found({"image": red}))
    want = np.zeros((2, 2, 3), bool)
    want[0, 0, 0] = want[1, 1, 1] = want[1, 0, 2] = True
    np.testing.assert_array_equal(masks[0], want)
    with pytest.raises(ValueError, match="divide by 255"):
        colours({"red": (255, 0, 0)})
    with pytest.raises(ValueError, match="must have the 3 channels"):
        colours({"white": (1,)})({"image": red})


def test_edges():
    image = np.zeros((1, 8, 8, 1), np.float32)
    image[0, :, 4:] = 1
    mask = np.asarray(edges(threshold=3.9)({"image": image}))[0, ..., 0]
    # The step lies between columns 3 and 4: Sobel's 3 px see it from both, with 1 + 2 + 1 = 4.
    assert mask[:, 3:5].all()
    assert mask.sum() == 16


def test_segmenter_and_attributes():
    # The weights are the identity: the class of a pixel is its strongest colour.
    net = Model(
        lambda v, x: x @ v, jnp.eye(3), output="segmentation", class_names=("none", "g", "b")
    )
    found = segmenter(net)
    assert found.names == ("g", "b")
    np.testing.assert_array_equal(
        found({"image": IMAGE}), (IMAGE.argmax(-1)[..., None] == np.array([1, 2]))
    )
    classifier = Model(lambda v, x: x.mean((1, 2)) @ v, jnp.eye(3), class_names=("r", "g", "b"))
    scores = attributes(classifier)({"image": IMAGE})
    np.testing.assert_allclose(scores, jax.nn.softmax(IMAGE.mean((1, 2))), rtol=1e-6)
    light = attributes(lambda o: o["image"].mean((1, 2, 3))[:, None], ["light"])
    np.testing.assert_allclose(light({"image": IMAGE})[:, 0], IMAGE.mean((1, 2, 3)), rtol=1e-6)
    with pytest.raises(ValueError, match="must have output 'segmentation'"):
        segmenter(classifier)
    small = Model(lambda v, x: x[:, ::2], (), output="segmentation", class_names=("none", "g", "b"))
    with pytest.raises(ValueError, match=r"must be bool\[3, 8, 8, 2\].*got bool\[3, 4, 8, 2\]"):
        segmenter(small)({"image": IMAGE})


def test_bad_concepts():
    with pytest.raises(ValueError, match="kind must be"):
        Concepts(lambda v, o: o, ("a",), kind="boxes")
    for names in ((), ("a", "a")):
        with pytest.raises(ValueError, match="names must be"):
            Concepts(lambda v, o: o, names)
    with pytest.raises(ValueError, match="got float32"):
        Concepts(lambda v, o: o["image"], ("r", "g", "b"))({"image": IMAGE})


def test_soft_labels():
    """Probabilities that agree with the hard labels, the more so the lower the temperature."""
    scores = np.array([[[[0.0, 1.0, 0.2]]]])
    outputs = {"image": np.zeros((1, 1, 1, 3)), "scores": scores, "labels": np.array([[[1]]])}
    soft = labels(["a", "b", "c"])
    # A softmax, whose largest share is where the hard label is.
    want = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(soft.probabilities(outputs), want, rtol=1e-6)
    sharp = labels(["a", "b", "c"], none=0, temperature=0.1)
    want = np.exp(10 * scores) / np.exp(10 * scores).sum()
    np.testing.assert_allclose(sharp.probabilities(outputs), want[..., 1:], rtol=1e-5)
    np.testing.assert_array_equal(sharp(outputs), [[[[True, False]]]])
    with pytest.raises(ValueError, match="gives no scores of its labels"):
        soft.probabilities({"image": np.zeros((1, 1, 1, 3))})
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        labels(["a"], temperature=0)
    with pytest.raises(ValueError, match="no soft form"):
        edges().probabilities(outputs)
