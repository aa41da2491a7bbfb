"""Files under other names: the same net from a wrapped file, or a refusal in one line."""

import jax
import numpy as np
import pytest

from perturb import load_model
from perturb import weights as weights_lib
from perturb.nets import mobilenet
from perturb.weights.prefixes import renamed, unwrapped
from tests.nets.test_nets import as_file

X = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)


@pytest.fixture(scope="module")
def net():
    model = load_model("cifar_resnet20", key=jax.random.key(3))
    return model, as_file(model), np.asarray(model(X))


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    "prefix", ["module.", "model.", "encoder.", "_orig_mod.", "state/model.module.", "a/b/"]
)
def test_a_prefix_falls_away(net, prefix):
    _, file, want = net
    wrapped = {prefix + n: t for n, t in file.items()}
    np.testing.assert_array_equal(load_model("cifar_resnet20", weights=wrapped)(X), want)


def test_other_networks_of_the_file_are_left_alone(net):
    _, file, want = net
    wrapped = {"model." + n: t for n, t in file.items()}
    wrapped |= {"projector.0.weight": np.ones((3, 3)), "queue": np.ones(4)}
    np.testing.assert_array_equal(load_model("cifar_resnet20", weights=wrapped)(X), want)


def test_a_wrapped_body_beside_a_head_that_is_not(net):
    _, file, want = net
    wrapped = {("" if n.startswith("linear.") else "encoder.") + n: t for n, t in file.items()}
    assert any(n.startswith("linear.") for n in wrapped)
    both = {"module." + n: t for n, t in wrapped.items()}
    for given in (wrapped, both):
        np.testing.assert_array_equal(load_model("cifar_resnet20", weights=given)(X), want)


def test_two_that_fit_are_refused_with_the_line_to_write(net):
    _, file, want = net
    wrapped = {p + n: t for p in ("student.", "teacher.") for n, t in file.items()}
    with pytest.raises(
        ValueError, match=r"several cifar_resnet20, under 'student\.' and 'teacher\.'"
    ) as error:
        load_model("cifar_resnet20", weights=wrapped)
    assert len(str(error.value)) < 300
    # The answer ends with a line of Python that can be pasted as it is.
    rename = eval(str(error.value).partition("rename=")[2])
    model = load_model("cifar_resnet20", weights=wrapped, rename=rename)
    np.testing.assert_array_equal(model(X), want)


def test_what_does_not_fit_exactly_is_refused(net):
    _, file, _ = net
    wrapped = {"module." + n: t for n, t in file.items()}
    # One tensor too few and one too many: no prefix makes either of them fit.
    for given in (
        {n: t for n, t in wrapped.items() if not n.endswith("linear.bias")},
        wrapped | {"module.fc2.weight": np.ones((3, 3), np.float32)},
    ):
        with pytest.raises(ValueError, match="weights do not fit cifar_resnet20"):
            load_model("cifar_resnet20", weights=given)


def test_tensorflow_names_with_their_scope_twice_or_not_at_all():
    net = mobilenet.mobilenet_v1_tf
    slots = net.slots(net.shapes({})[1], "/")
    file = {n: np.zeros(1) for n in slots if n.endswith(".bias")}
    # Their number is what the widths are read from; shapes are of no account here.
    file |= {n: np.zeros((1, 1, 1, 1)) for n in slots if n.endswith(".weight")}
    for change in (
        lambda n: "MobilenetV1/" + n,
        lambda n: n.removeprefix("MobilenetV1/"),
        lambda n: "module." + n,
    ):
        given = {change(n): t for n, t in file.items()}
        assert net._tensors(given, {}).keys() == file.keys()


def test_rename(net):
    _, file, want = net
    other = {
        n.replace("layer1.", "stage_one/").replace(".weight", ".w"): t for n, t in file.items()
    }
    rename = {"stage_one/": "layer1.", r"\.w$": ".weight"}
    np.testing.assert_array_equal(
        load_model("cifar_resnet20", weights=other, rename=rename)(X), want
    )
    for wrong, words in (
        ({"(": ""}, "patterns as in re.sub"),
        ({"nowhere": ""}, "matches no name"),
    ):
        with pytest.raises(ValueError, match=words):
            renamed(other, wrong)
    with pytest.raises(ValueError, match="twice"):
        # Two tensors under one name: one would be lost.
        renamed(other, {".*": "one"})


def test_names_that_fit_are_left_as_they_are():
    tensors = {"module.weight": 1, "module.bias": 2}
    assert unwrapped(tensors, [{"module.weight", "module.bias"}], net="n") == tensors
    # Only a part of the names would fit: a guess, so they stay.
    assert unwrapped(tensors, [{"weight", "scale"}], net="n") == tensors


def test_mobilenets_at_other_sizes():
    """The published recipes at 160 px: the same share of the photograph."""
    key = jax.random.key(0)
    model = load_model("mobilenet_v2", key=key, size=160)
    # 160 x 256 / 224 is 182.9: the crop keeps its share of the photograph.
    assert model.geometry.steps == (("short_side", 183), ("crop", (160, 160)))
    model = load_model("mobilenet_v1_tf", key=key, size=128)
    assert model.geometry.steps == (("central", 0.875), ("squash", (128, 128)))
    # Shapes only: nothing is computed.
    assert jax.eval_shape(model, np.zeros((2, 128, 128, 3), np.float32)).shape == (2, 1000)
    for name, size, words in (("vgg16", 160, "224 px only"), ("mobilenet_v2", 8, "at least 32")):
        with pytest.raises(ValueError, match=words):
            load_model(name, key=key, size=size)


def test_layouts_of_flax_keep_their_names(net):
    model, _, want = net
    flat = {
        "/".join(p): np.asarray(v) for p, v in weights_lib.filling._leaves(model.variables).items()
    }
    for given in (flat, {f"state/{n}": t for n, t in flat.items()}):
        np.testing.assert_array_equal(load_model("cifar_resnet20", weights=given)(X), want)
