"""A torch network run by torch: outputs, gradients, layers, batches of batches, and many calls."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import adapters, attribution, layouts, taps
from perturb.adapters._torch_excitation import exciting
from perturb.metrics.sanity import data_flow

torch = pytest.importorskip("torch", reason="torch is not installed: use `make adapters`")

IMAGES = np.random.default_rng(0).random((2, 16, 12, 3), np.float32)


class Net(torch.nn.Module):
    """What torchax would not take: Python that looks at values, work in place, a layer called
    twice.
    """

    def __init__(self):
        super().__init__()
        # The first layer is the last by letters and the head the first: order must be that of
        # running.
        self.z_stem = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.act = torch.nn.ReLU(inplace=True)
        self.conv = torch.nn.Conv2d(8, 8, 3, 1, 1)
        self.a_head = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = self.act(self.norm(self.z_stem(x)))
        # After a relu always true, but only a value can tell.
        if float(x.detach().sum()) > -1:
            x = self.conv(x)
        return self.a_head(self.act(self.conv(x)).mean((2, 3)))


def made(seed=0):
    torch.manual_seed(seed)
    net = Net()
    # Moves the statistics off 0 and 1.
    net(3 * torch.rand(8, 3, 16, 16))
    return net.eval()


def own(net, images, layer=None):
    """Outputs, and the activation and gradient of the first class at a layer, by autograd."""
    x = torch.tensor(images, requires_grad=True)
    seen = []
    handle = (layer or net).register_forward_hook(
        lambda _, __, y: seen.append(y.clone()) or seen[-1].clone()
    )
    y = net(((x - 0.5) / 0.25).permute(0, 3, 1, 2))
    handle.remove()
    at = x if layer is None else seen[0]
    (slope,) = torch.autograd.grad(y[:, 0].sum(), at)
    return y.detach().numpy(), at.detach().numpy(), slope.numpy()


def model_of(net, **options):
    return adapters.from_torch(net, engine="torch", mean=0.5, std=0.25, **options)


@jax.jit
def outputs_and_slope(model, images):
    return model(images), jax.grad(lambda x: model(x)[:, 0].sum())(images)


def test_outputs_and_gradients_are_torchs_own():
    net = made()
    model = model_of(net)
    y, _, slope = own(net, IMAGES)
    got, back = outputs_and_slope(model, IMAGES)
    np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back, slope, atol=1e-5 * np.abs(slope).max())
    np.testing.assert_array_equal(model(IMAGES), got)
    perturb.check_model(model, IMAGES)
    # Weights are arguments, not part of the program, and have gradients too.
    other = jax.tree.map(lambda w: 2 * w, model.variables)
    assert float(np.abs(model.apply(other, IMAGES) - got).max()) > 0.1
    slopes = jax.grad(lambda v: model.apply(v, IMAGES)[:, 0].sum())(model.variables)
    # Two pictures, each with a slope of 1 to the bias of class 0.
    np.testing.assert_allclose(slopes["a_head.bias"], [2, 0, 0, 0], atol=1e-6)
    assert float(jnp.abs(slopes["z_stem.weight"]).max()) > 0


class Counting(Net):
    runs = 0

    def forward(self, x):
        type(self).runs += 1
        return super().forward(x)


def test_a_gradient_runs_the_network_once():
    torch.manual_seed(0)
    model = model_of(Counting().eval())
    want = outputs_and_slope(model, IMAGES)[1]
    before = Counting.runs
    y, back = jax.vjp(lambda x: model(x)[:, 0], IMAGES)
    (got,) = back(jnp.ones(2))
    assert Counting.runs == before + 1
    # The graph is used up: what is asked again is worked out again, to the same bits.
    np.testing.assert_array_equal(back(jnp.ones(2))[0], got)
    assert Counting.runs == before + 2
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(y, model(IMAGES)[:, 0])
    # Slopes of more rows than the graph has, and graphs that had to make room.
    both = jax.vmap(back)(jnp.eye(2))[0]
    np.testing.assert_allclose(both.sum(0), got, atol=1e-6 * float(jnp.abs(got).max()))
    assert float(jnp.abs(both[0, 1]).max()) == 0
    several = [jax.vjp(lambda x: model(x)[:, 0], IMAGES / n)[1] for n in range(1, 70)]
    np.testing.assert_array_equal(several[0](jnp.ones(2))[0], got)
    assert len(model.apply.module.graphs._kept) <= (os.cpu_count() or 1)


def test_weights_of_a_graph_are_those_of_its_backward_call():
    class Held(torch.autograd.Function):
        """Someone's own function, which holds its weight itself: its graph is not kept."""

        @staticmethod
        def forward(ctx, x, w):
            ctx.w = w
            return x * w

        @staticmethod
        def backward(ctx, g):
            return g * ctx.w, None

    class Scaled(Counting):
        runs = 0

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return Held.apply(super().forward(x), self.scale)

    torch.manual_seed(0)
    model = model_of(Scaled().eval())
    # Weights that are no longer there after the forward call.
    for double in (1, 2):
        (slope,) = jax.vjp(
            lambda x, d=double: model.apply(jax.tree.map(lambda w: d * w, model.variables), x),
            IMAGES,
        )[1](jnp.eye(4)[:2])
        half = jax.vjp(lambda x: model(x), IMAGES)[1](jnp.eye(4)[:2])[0]
        assert np.isfinite(slope).all()
        if double == 1:
            np.testing.assert_array_equal(slope, half)
        else:
            assert float(jnp.abs(slope - half).max()) > 0


def test_vmap_runs_whole_batches():
    model = model_of(made())
    stack = jnp.stack([IMAGES, 1 - IMAGES, IMAGES**2])
    got = jax.jit(jax.vmap(model))(stack)
    np.testing.assert_allclose(got, jnp.stack([model(x) for x in stack]), rtol=1e-5, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda x: model(x)[:, 0].sum()))(stack)
    alone = jax.grad(lambda x: model(x)[:, 0].sum())(stack[1])
    np.testing.assert_allclose(slope[1], alone, atol=1e-5 * float(jnp.abs(alone).max()))
    weights = jax.tree.map(lambda w: jnp.stack([w, 2 * w]), model.variables)
    each = jax.vmap(lambda v: model.apply(v, IMAGES))(weights)
    np.testing.assert_allclose(each[0], model(IMAGES), rtol=1e-5, atol=1e-6)


def test_layers_are_read_edited_and_attributed():
    net = made()
    model = model_of(net)
    names = taps.names(model, IMAGES)
    assert list(names) == ["z_stem", "norm", "act", "conv", "conv#2", "act#2", "a_head"]
    _, a, slope = own(net, IMAGES, net.norm)
    _, read = taps.read(model, "norm")(IMAGES)
    np.testing.assert_allclose(read["norm"], a, rtol=1e-5, atol=1e-6)
    layout = layouts.layer_layout(model, IMAGES, "norm")
    assert (layout.grid, layout.channels) == ((8, 6), 8)
    want = np.maximum((a * slope.mean((2, 3), keepdims=True)).sum(1), 0)
    got = attribution.grad_cam(model, IMAGES, [0, 0], layer="norm")
    want = attribution._common.enlarge(jnp.asarray(want), (16, 12))
    np.testing.assert_allclose(got, want, atol=1e-5 * want.max())
    off = taps.edit(model, {"norm": jnp.zeros_like, "conv#2": lambda a: a + 1})(IMAGES)
    np.testing.assert_allclose(off[0], off[1], atol=1e-6)
    with pytest.raises(ValueError, match=r"no layer named 'nrm' .*nearest: norm"):
        taps.read(model, "nrm")(IMAGES)
    with pytest.raises(ValueError, match='engine="torchax"'):
        attribution.guided_backprop(model, IMAGES, [0, 0])


def test_excitation_shares_by_what_each_place_and_channel_brings():
    net = made()
    model = model_of(net)
    # The second relu, which the mean and the head follow.
    _, read = taps.read(model, "act#2")(IMAGES)
    a = np.asarray(read["act#2"])
    weight = net.a_head.weight.detach().numpy()[[1, 3]]
    brought = a.mean((2, 3)) * np.maximum(weight, 0)
    shares = brought / brought.sum(1, keepdims=True)
    places = a / np.maximum(a.sum((2, 3), keepdims=True), 1e-20)
    want = (places * shares[:, :, None, None]).sum(1)
    np.testing.assert_allclose(want.sum((1, 2)), 1, rtol=1e-5)
    got = attribution.excitation(model, IMAGES, [1, 3], layer="act#2")
    want = attribution._common.enlarge(jnp.asarray(want), (16, 12))
    np.testing.assert_allclose(got, want, atol=1e-5 * want.max())


def excited(f, x, r):
    """The probability `r` of the outputs of `f` as it reaches `x`."""
    x = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    with exciting(torch, False):
        # Not the leaf itself, which nothing may write to.
        y = f(x * 1)
    return torch.autograd.grad(y, x, torch.tensor(r, dtype=torch.float32))[0].numpy()


class Attention(torch.nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def test_excitation_of_sums_factors_and_attention():
    def written_over(x):
        # In place on both sides, as residual blocks are written.
        y = torch.relu(x) * 2
        y += x
        return y.relu_()

    # 2 of 3 parts, and all of it through the factor, to a unit above 0; a relu stops the other.
    np.testing.assert_allclose(excited(written_over, [2.0, -1.0], [1.0, 1.0]), [1, 0], atol=1e-6)

    def shared(x):
        return torch.add(x[:1], x[1:], alpha=2)

    np.testing.assert_allclose(excited(shared, [2.0, 3.0], [1.0]), [2 / 8, 6 / 8], atol=1e-6)
    statistics = torch.tensor([0.5]), torch.tensor([4.0])
    np.testing.assert_allclose(
        excited(lambda x: torch.nn.functional.batch_norm(x, *statistics), [[3.0]], [[0.7]]), 0.7
    )
    # Of one token attention is 1, and two products are left, of values and of outputs.
    torch.manual_seed(0)
    net = Attention(4, 2, batch_first=True).eval().requires_grad_(False)
    x = np.array([[[1.0, 2.0, 0.5, -1.0]]], np.float32)
    r = np.array([[[0.1, 0.2, 0.3, 0.4]]], np.float32)
    values = net.in_proj_weight.numpy()[8:]
    middle = np.maximum(x @ values.T + net.in_proj_bias.numpy()[8:], 0)
    for a, w in ((middle, net.out_proj.weight.numpy()), (np.maximum(x, 0), values)):
        w = np.maximum(w, 0)
        r = a * ((r / (a @ w.T + 1e-20)) @ w)
    np.testing.assert_allclose(excited(net, x, [[[0.1, 0.2, 0.3, 0.4]]]), r, rtol=1e-5, atol=1e-7)


def test_excitation_refuses_networks_in_one_piece():
    class Recurrent(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.rows = torch.nn.Conv2d(3, 4, 3), torch.nn.LSTM(10, 4, batch_first=True)

        def forward(self, x):
            return self.rows(torch.relu(self.stem(x)).mean(2))[0][:, -1]

    model = model_of(Recurrent().eval())
    with pytest.raises(Exception, match="excitation cannot follow torch's lstm") as caught:
        attribution.excitation(model, IMAGES, [0, 1], layer="stem")
    assert 'engine="torchax"' in str(caught.value)


class Boxes(torch.nn.Module):
    """A detector: of every place and three shapes of boxes the scores of four classes."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 8, 3, 2, 1)
        self.head = torch.nn.Conv2d(8, 3 * 4, 1)
        self.flat = torch.nn.Flatten(2)
        self.corners = torch.nn.Conv2d(8, 3 * 4, 1)

    def forward(self, x):
        x = torch.nn.functional.relu(self.stem(x))
        maps, _ = self.head(x), self.corners(x)
        return torch.sigmoid(self.flat(maps.reshape(len(x), 4, -1)))


def test_boxes_are_no_tokens_and_what_select_does_is_no_layer():
    torch.manual_seed(0)
    model = model_of(Boxes().eval(), select=lambda y: jax.scipy.special.logit(y.max(-1)))
    assert "logit" in taps.names(model, IMAGES)
    known = layouts.layouts(model, IMAGES)
    assert known["head"].grid == (8, 6)
    # The corners come last; no score hangs on them.
    assert attribution._common.last_layer(model, IMAGES) == "head"
    assert attribution.grad_cam(model, IMAGES, [0, 1]).shape == (2, 16, 12)


def test_layers_come_in_the_order_in_which_they_run():
    found = [n.strip("[]'") for n in data_flow(model_of(made()), IMAGES)]
    assert found == ["z_stem", "norm", "conv", "a_head"]


def test_two_hundred_calls_beside_the_programs_own_threads():
    model = model_of(made())
    images = np.random.default_rng(0).random((8, 96, 96, 3), np.float32)
    busy = jax.jit(lambda x: jnp.sin(x @ x).sum())
    square = jnp.ones((256, 256))
    first = outputs_and_slope(model, images)
    # A callback that waits for JAX's threads while they wait for it would hang within some of them.
    for _ in range(200):
        busy(square)
        again = outputs_and_slope(model, images)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_masks_and_channels():
    model = model_of(made())
    found = perturb.extremal(model, IMAGES, [1, 2], areas=0.2, steps=4, operator="fade")
    # A fifth of 192 px.
    np.testing.assert_array_equal((found.masks > 0.5).sum((2, 3)), 38)
    chosen = perturb.channels(model, IMAGES, [1, 2], layer="norm", counts=3, steps=4)
    np.testing.assert_array_equal(chosen.channels.sum(-1), 3)


@pytest.mark.parametrize("how", ["detach", "no_grad"])
def test_outputs_without_a_gradient_are_refused_where_one_is_needed(how):
    class Cut(Net):
        def forward(self, x):
            if how == "detach":
                return super().forward(x).detach()
            with torch.no_grad():
                return super().forward(x)

    torch.manual_seed(0)
    model = model_of(Cut().eval())
    for method in (attribution.gradient, attribution.grad_cam):
        with pytest.raises(
            ValueError, match=r"Cut gives outputs without a gradient.*RISE"
        ) as caught:
            method(model, IMAGES, [0, 1])
        assert len(str(caught.value)) < 300
    assert attribution.rise(model, IMAGES, [0, 1], samples=20).std() > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is")
@pytest.mark.parametrize("engine", ["torch", "torchax"])
def test_what_is_no_module_of_python_is_refused(engine):
    with pytest.raises(ValueError, match=r"must be a torch.nn.Module, got function"):
        adapters.from_torch(lambda x: x, engine=engine)
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(576, 4)))
    with pytest.raises(ValueError, match=r"TorchScript .*traced from"):
        adapters.from_torch(scripted, engine=engine)


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="engine must be 'torchax' or 'torch', got 'onnx'"):
        adapters.from_torch(made(), engine="onnx")
