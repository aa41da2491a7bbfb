"""One entry check: every method, metric and attack refuses the same inputs, in the same words."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import perturb
from perturb import attribution, defence, inputs, messages, metrics

X = np.random.default_rng(0).random((2, 12, 12, 3)).astype(np.float32)
T = [0, 1]
W = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)


def net(w, x):
    return jnp.tanh(x[:, 2:9, 2:9].mean((1, 2))) @ w


def batch_norm(w, x):
    # With the statistics of the batch at hand, as of a network that was left in training.
    x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
    return (x**2).mean((1, 2)) @ w


MODEL = perturb.Model(net, W, name="net", class_names=("ape", "bear", "Cat, Felis catus", "dog"))
CALLS = {
    "extremal": lambda m, x, t: perturb.extremal(m, x, t, areas=0.2, steps=1),
    "meaningful": lambda m, x, t: perturb.meaningful(m, x, t, steps=1),
    "channels": lambda m, x, t: perturb.channels(m, x, t, layer="features", counts=1),
    "importance_map": lambda m, x, t: perturb.importance_map(m, x, t, areas=(0.2,)),
    "gradient": attribution.gradient,
    "occlusion": attribution.occlusion,
    "rise": lambda m, x, t: attribution.rise(m, x, t, samples=2),
    "sobel": attribution.sobel,
    "deletion": lambda m, x, t: metrics.deletion(m, x, t, X.mean(-1)),
    "sufficient_area": lambda m, x, t: metrics.sufficient_area(m, x, t, X.mean(-1)),
    "road": lambda m, x, t: metrics.road(m, x, t, X.mean(-1)),
    "infidelity": lambda m, x, t: metrics.infidelity(m, x, t, X.mean(-1)),
    "average_drop": lambda m, x, t: metrics.average_drop(m, x, t, X.mean(-1)),
    "fgsm": defence.fgsm,
    "check_inputs": perturb.check_inputs,
}
NAN = X.copy()
# One number, in a corner that the model does not look at, of the second picture.
NAN[1, 0, 0, 0] = np.nan
PIL_IMAGE = PIL.Image.fromarray((X[0] * 255).astype(np.uint8))
WRONG = {
    "bytes": (MODEL, (X * 255).astype(np.uint8), T, "divide by 255"),
    "bytes as floats": (MODEL, X * 255, T, "divide by 255"),
    # About the numbers of ImageNet: some pixels become negative, which no picture in [0, 1] has.
    "normalised": (MODEL, (X - 0.45) / 0.22, T, "undo the normalisation"),
    "NaN": (MODEL, NAN, T, "NaN or infinite pixels in image 1"),
    "one picture": (MODEL, X[0], [0], r"images\[None\]"),
    "PIL": (MODEL, [PIL_IMAGE, PIL_IMAGE], T, "np.asarray"),
    "channels first": (MODEL, X.transpose(0, 3, 1, 2), T, "transpose"),
    "no images": (MODEL, X[:0], [], "B at least 1"),
    "target -1": (MODEL, X, [0, -1], "target -1 is out of range"),
    "target too high": (MODEL, X, [0, 4], "target 4 is out of range: model net has 4 classes"),
    "float targets": (MODEL, X, [0.0, 1.0], "integers"),
    "no targets": (MODEL, X, None, "argmax"),
    "too many targets": (MODEL, X, [0, 1, 2], "2 images, but 3 targets"),
    "unknown name": (MODEL, X, ["ape", "bera"], "did you mean bear"),
    "batch statistics": (perturb.Model(batch_norm, W), X, T, "couples the images"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", WRONG)
def test_every_call_refuses(call, case):
    model, images, targets, words = WRONG[case]
    with pytest.raises(ValueError, match=words) as caught:
        CALLS[call](model, images, targets)
    assert len(str(caught.value)) <= 300


def test_names_of_classes_are_targets():
    assert perturb.check_inputs(MODEL, X, ["BEAR", "felis catus"]).targets.tolist() == [1, 2]
    assert perturb.check_inputs(MODEL, X, "dog").targets.tolist() == [3, 3]
    assert perturb.check_inputs(MODEL, X, 2).targets.tolist() == [2, 2]
    np.testing.assert_array_equal(
        attribution.gradient(MODEL, X, ["ape", "dog"]), attribution.gradient(MODEL, X, [0, 3])
    )


def test_traced_images_pass_with_their_shapes():
    def run(x, t):
        found = perturb.check_inputs(MODEL, x, t)
        assert found.outputs.shape[1:] == (4,)
        return found.images.sum() + found.targets.sum()

    # Values cannot be looked at while tracing: pixels of 300 and class 9 of 4 pass, shapes do not.
    assert jnp.isfinite(jax.jit(run)(X * 300, jnp.array([0, 9])))
    with pytest.raises(ValueError, match="transpose"):
        jax.eval_shape(run, jnp.zeros((2, 3, 12, 12)), jnp.array([0, 1]))


Pair = collections.namedtuple("Pair", "hidden logits")
RETURNS = {
    "dict": (lambda y, h: {"hidden": h, "logits": y}, "select='logits'", "logits"),
    "tuple": (lambda y, h: (y, h), "select=0", 0),
    "list": (lambda y, h: [y, h], "select=0", 0),
    "named tuple": (lambda y, h: Pair(h, y), "select='logits'", "logits"),
    "object": (lambda y, h: Opaque(y, h), "select='logits'", "logits"),
    "nested": (lambda y, h: ({"hidden": h, "logits": y},), "select=0", (0, "logits")),
    "function": (lambda y, h: (h, {"y": y[:, None]}), "select=0", lambda o: o[1]["y"][:, 0]),
}


class Opaque:
    """A class of outputs that JAX does not know."""

    def __init__(self, logits, hidden):
        self.logits, self.hidden = logits, hidden


@pytest.mark.parametrize("kind", RETURNS)
def test_which_output(kind):
    """What came back is listed with the line to write; with it, the answer is the plain
    network's.
    """
    make, words, select = RETURNS[kind]

    def several(w, x):
        return make(net(w, x), x.mean((1, 2)))

    # One of each kind; all of them go through the same check.
    for name in ("extremal", "gradient", "deletion", "fgsm"):
        with pytest.raises(ValueError, match=words) as caught:
            CALLS[name](perturb.Model(several, W), X, T)
        assert len(str(caught.value)) <= 300
    chosen = perturb.Model(several, W, select=select)
    np.testing.assert_allclose(chosen(X), MODEL(X))
    np.testing.assert_allclose(
        attribution.gradient(chosen, X, T), attribution.gradient(MODEL, X, T), rtol=1e-6
    )


def test_a_selection_that_is_not_there():
    model = perturb.Model(lambda w, x: {"logits": net(w, x)}, W, select="logit")
    with pytest.raises(
        ValueError, match=r"select='logit' is not in .* a dict with logits \[2, 4\]"
    ):
        perturb.check_inputs(model, X, T)


def test_outputs_that_are_not_what_was_said():
    shares = perturb.Model(lambda w, x: jax.nn.softmax(net(w, x)), W)
    with pytest.raises(ValueError, match="output='probabilities'"):
        attribution.gradient(shares, X, T)
    logits = perturb.Model(net, W, output="probabilities")
    with pytest.raises(ValueError, match="output='logits'"):
        attribution.gradient(logits, X, T)
    with pytest.raises(ValueError, match=r"wants \[B\] or \[B, 1\]"):
        attribution.gradient(perturb.Model(net, W, output="binary"), X, T)
    with pytest.raises(ValueError, match=r"wants \[B, H, W, classes\]"):
        attribution.gradient(perturb.Model(net, W, output="segmentation"), X, T)
    with pytest.raises(ValueError, match=r"wants \(boxes"):
        attribution.gradient(perturb.Model(net, W, output="detection"), X, T)
    # One logit has a class 0 and no class 1, unless it is read as yes and no.
    one = perturb.Model(lambda w, x: net(w, x)[:, :1], W)
    with pytest.raises(ValueError, match="output='binary' reads it as 1 yes and 0 no"):
        attribution.gradient(one, X, [0, 1])


def test_words_stay_short():
    names = [f"layer{i}" for i in range(1000)]
    # The longest that can be met: a name of 5,000 letters, and 1,000 to choose from.
    error = messages.one_of("layer", "x" * 5000, names)
    assert len(str(error)) <= 300
    assert "more" in str(error)
    assert messages.nearest("Grad-CAM", ["gradient", "grad_cam"]) == "grad_cam"


def test_an_attribute_of_one_logit_is_its_sigmoid():
    from gan_dissect import concepts

    for output in ("logits", "binary"):
        model = perturb.Model(lambda w, x: net(w, x)[:, :1], W, output=output)
        found = concepts.attributes(model, ["bright"])
        value = found({"image": jnp.asarray(X)})
        np.testing.assert_allclose(value, jax.nn.sigmoid(net(W, X)[:, :1]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.complex64])
def test_decisions_and_spectra_are_no_scores(dtype):
    def decided(w, x):
        return (net(w, x) > 0).astype(dtype)

    for name in ("extremal", "gradient", "deletion"):
        with pytest.raises(ValueError, match=r"wants floats: return the scores") as caught:
            CALLS[name](perturb.Model(decided, W), X, T)
        assert len(str(caught.value)) <= 300
    if dtype is not np.complex64:
        told = perturb.Model(decided, W, output="any")
        assert perturb.attribution.rise(told, X, T, samples=20).shape == (2, 12, 12)


@pytest.mark.parametrize("key", [None, jax.random.key(5), jax.random.PRNGKey(5)])
def test_keys_by_place_are_the_key_folded_with_each_place(key):
    found = inputs.keys_by_place(key, 3)
    given = jax.random.key(0) if key is None else key
    wanted = [jax.random.fold_in(given, place) for place in range(3)]
    if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
        found, wanted = jax.random.key_data(found), [jax.random.key_data(k) for k in wanted]
    np.testing.assert_array_equal(found, wanted)
