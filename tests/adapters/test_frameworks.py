"""Every framework through its adapter: its own outputs and gradients, masks, channels and taps."""

import importlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import adapters
from tests.adapters import nets

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)


@pytest.fixture(scope="module", params=["linen", "nnx", "keras", "torch", "equinox"])
def case(request):
    return getattr(nets, request.param)()


@jax.jit
def outputs_and_gradient(model, images):
    y, back = jax.vjp(model, images)
    return y, back(jnp.broadcast_to(nets.TOWARDS, y.shape))[0]


@pytest.mark.slow_cases
def test_outputs_and_input_gradients_are_the_frameworks_own(case, record_property):
    model, own, _, _ = case
    for name, got, expected in zip(
        ("outputs", "gradient"), outputs_and_gradient(model, IMAGES), own(IMAGES), strict=True
    ):
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        record_property(name, f"{error:.1e}")
        # One network twice, in float32: rounding of a few hundred terms.
        assert error <= 1e-5, name
    assert model.class_names == tuple("abcde")


def test_batches_do_not_couple_and_wrong_preprocessing_is_caught(case):
    model, own, _, _ = case
    perturb.check_model(model, IMAGES)
    expected = own(IMAGES)[0]
    assert perturb.check_parity(model, IMAGES, expected) <= 1e-5
    # Another mean: near the right one, so that outputs look sensible.
    other = type(model.apply)(**{**vars(model.apply), "mean": (0.5, 0.5, 0.5)})
    with pytest.raises(ValueError, match="differs from its source"):
        perturb.check_parity(perturb.Model(other, model.variables), IMAGES, expected)


def test_taps_read_and_edit_an_inner_layer(case):
    model, _, layer, width = case
    assert layer in perturb.taps.names(model, IMAGES)
    y, read = perturb.taps.read(model, layer)(IMAGES)
    # Channels are last in most of these frameworks and first in PyTorch and Equinox.
    axis = model.channel_axis(read[layer])
    assert read[layer].shape[axis] == width
    np.testing.assert_allclose(y, model(IMAGES), atol=1e-5)
    same = perturb.taps.edit(model, {layer: lambda a: a})(IMAGES)
    off = perturb.taps.edit(model, {layer: jnp.zeros_like})(IMAGES)
    np.testing.assert_allclose(same, y, atol=1e-5)
    # Without the layer all pictures look alike.
    np.testing.assert_allclose(off[0], off[1], atol=1e-5)


@pytest.mark.slow
def test_masks(case):
    model = case[0]
    found = perturb.extremal(model, IMAGES, [1, 2], areas=0.2, steps=4, operator="fade")
    assert (found.status != "nonfinite").all()
    # A fifth of 256 px.
    np.testing.assert_array_equal((found.masks > 0.5).sum((2, 3)), 51)


@pytest.mark.slow
def test_channels(case):
    model, own, layer, width = case
    found = perturb.channels(model, IMAGES, [1, 2], layer=layer, counts=3, steps=4)
    assert found.channels.shape == (2, 1, width)
    np.testing.assert_array_equal(found.channels.sum(-1), 3)
    np.testing.assert_allclose(found.score_original, own(IMAGES)[0][[0, 1], [1, 2]], rtol=1e-4)


def test_equal_networks_share_a_program():
    traces = []

    @jax.jit
    def run(model, images):
        traces.append(model.name)
        return model(images)

    run(nets.nnx()[0], IMAGES)
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, seed):
            self.head = nnx.Linear(3, 5, rngs=nnx.Rngs(seed))

        def __call__(self, x):
            return self.head(x.mean((1, 2)))

    a, b = (run(adapters.from_nnx(Net(seed)), IMAGES) for seed in (0, 1))
    assert not np.allclose(a, b)
    # The first network of nnx once, and once for both of the two that are alike.
    assert traces.count("Net") == 2


def test_a_network_of_keras_applications_with_its_own_preprocessing():
    nets.keras()  # chooses the backend, or skips
    import keras

    # Its preprocessing takes [0, 255] and gives [-1, 1]; the model's own pictures are in [0, 1].
    net = keras.applications.MobileNet(
        input_shape=(32, 32, 3), alpha=0.25, weights=None, include_top=False, pooling="avg"
    )
    preprocess = keras.applications.mobilenet.preprocess_input
    model = adapters.from_keras(net, preprocess=preprocess, geometry=perturb.squash(32))
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    # A much darker second picture, so that outputs differ: weights are fresh and look little.
    images[1] **= 8
    expected = net.predict(preprocess(255 * images), verbose=0)
    assert np.abs(expected[0] - expected[1]).max() > 0.03 * np.abs(expected).max()
    # After predict, whose arrays Keras gives away.
    assert perturb.check_parity(model, images, expected) <= 1e-5


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_grouped_transposed_convolutions_of_torch_are_refused(groups):
    torch = pytest.importorskip("torch", reason="torchax is not installed: use `make adapters`")
    pytest.importorskip("torchax", reason="torchax is not installed: use `make adapters`")

    class Up(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.rand(4, 4 // groups, 2, 2))

        def forward(self, x):
            x = torch.cat([x, x.mean(1, keepdim=True)], 1)
            return torch.nn.functional.conv_transpose2d(x, self.weight, stride=2, groups=groups)

    model = adapters.from_torch(Up(), output="segmentation")
    if 1 < groups < 4:
        with pytest.raises(
            ValueError, match="torchax computes conv_transpose2d with groups=2 wron"
        ):
            model(IMAGES)
    else:
        assert model(IMAGES).shape == (2, 32, 32, 4)


@pytest.mark.parametrize(
    ("adapter", "framework", "line"),
    [
        ("from_nnx", "flax.nnx", "pip install flax"),
        ("from_keras", "keras", "pip install 'keras>=3.10'"),
        ("from_equinox", "equinox", "pip install equinox"),
        ("from_torch", "torch", "pip install 'torch<2.13' 'torchax>=0.0.13'"),
    ],
)
def test_a_missing_framework_is_named_with_what_to_install(monkeypatch, adapter, framework, line):
    # None in the table of modules makes an import fail as a package that is not there does.
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ImportError) as caught:
        # What a module of torch has and any other object has not is asked for before the import.
        getattr(adapters, adapter)(types.SimpleNamespace(named_modules=list))
    assert line in str(caught.value)
    assert framework in str(caught.value)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("aten.prod has no overload name 'dim_Dimname'"),
            r"torchax does not import beside torch 2\.13\.0",
        ),
        (
            ModuleNotFoundError("No module named 'torchax'"),
            r"needs torchax: pip install 'torch<2\.13' 'torchax>=0\.0\.13'",
        ),
    ],
)
def test_a_torch_without_torchax_or_that_it_cannot_stand(monkeypatch, error, message):
    class Torch:
        __version__ = "2.13.0"

    def load(name):
        if name == "torchax":
            raise error
        return Torch

    monkeypatch.setattr(importlib, "import_module", load)
    with pytest.raises(ImportError, match=message):
        adapters.from_torch(types.SimpleNamespace(named_modules=list))


@pytest.mark.slow
def test_nnx_modules_that_count_their_calls_scan_or_rematerialise_differentiate():
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(8, 8, (3, 3), rngs=rngs)

        def __call__(self, x):
            return nnx.relu(self.conv(x))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.block, self.head = Block(rngs), nnx.Linear(8, 4, rngs=rngs)
            self.stack = nnx.vmap(Block)(rngs.fork(split=2))
            self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

        def __call__(self, x, scale=1.0):
            self.calls[...] = self.calls[...] + 1
            x = nnx.remat(lambda m, y: m(y))(self.block, self.stem(x))
            axes = {"in_axes": (nnx.Carry, 0), "out_axes": nnx.Carry}
            x = nnx.scan(lambda y, m: m(y), **axes)(x, self.stack)
            return scale * self.head(x.mean((1, 2)))

    net = Net(nnx.Rngs(0))
    definition, state = nnx.split(net)
    want = jax.grad(lambda x: nnx.merge(definition, state, copy=True)(x)[:, 0].sum())(IMAGES)
    model = adapters.from_nnx(net)
    got = jax.jit(jax.grad(lambda m, x: m(x)[:, 0].sum(), argnums=1))(model, IMAGES)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))
    # The module of the caller has counted nothing: what runs is a copy.
    assert int(net.calls[...]) == 0
    twice = adapters.from_nnx(net, call={"scale": 2.0})
    np.testing.assert_allclose(twice(IMAGES), 2 * model(IMAGES), rtol=1e-5)


def test_what_is_missing_is_said_with_the_line_to_write():
    import flax.linen as nn

    module = nn.Dense(4)
    variables = module.init(jax.random.key(0), IMAGES)
    with pytest.raises(ValueError, match=r"from_linen\(module, \{'params': params\}\)"):
        adapters.from_linen(module, variables["params"])

    class Listed(nn.Module):
        widths: list

        def __call__(self, x):
            return x

    with pytest.raises(ValueError, match=r"Listed must be hashable.*tuples for lists") as caught:
        adapters.from_linen(Listed([1, 2]), {})
    assert len(str(caught.value)) < 300


def test_an_unbuilt_keras_model_is_refused():
    nets.keras()
    import keras

    with pytest.raises(ValueError, match="has no weights yet: call it once"):
        adapters.from_keras(keras.Sequential([keras.layers.Dense(3)]))


def test_equinox_keywords_of_the_call():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed: use `make adapters`")

    class Net(eqx.Module):
        head: eqx.nn.Linear

        def __call__(self, x, key):
            return self.head(x.mean((1, 2)))

    net = Net(eqx.nn.Linear(3, 4, key=jax.random.key(0)))
    with pytest.raises(ValueError, match=r"from_equinox\(module, call=\{'key': None\}\)"):
        adapters.from_equinox(net)(IMAGES)
    assert adapters.from_equinox(net, call={"key": None})(IMAGES).shape == (2, 4)
