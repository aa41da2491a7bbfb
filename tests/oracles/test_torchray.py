"""Our `solver="torchray"` against torchray 1.0.0.2 itself, piece by piece and over a trajectory."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
original = pytest.importorskip("torchray.attribution.extremal_perturbation")


from perturb import masks, model, operators, rewards, solver  # noqa: E402
from perturb.methods.extremal import _rank_areas, torchray_recipe  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = [(56, 56), (45, 67), (96, 64)]
STEPS = [3, 7, 11]


@pytest.fixture
def double():
    """Runs the original in float64: its own float32 gradient is off by up to 1.7e-5."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def generator(size, step):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return original.MaskGenerator(size, step, 3 * step)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", STEPS)
def test_mask_generator_and_its_gradient(size, step, double):
    """Visible and padded mask, and the gradient of a random functional of both."""
    rng = np.random.default_rng(step)
    # Where the step does not divide a side, the last cell hangs over.
    cells = [-(-n // step) for n in size]
    params = rng.uniform(0, 1, cells).astype(np.float32)
    p = torch.tensor(params, dtype=torch.float64)[None, None].requires_grad_()
    visible, full = generator(size, step).generate(p)
    weights = rng.normal(size=full.shape[-2:]).astype(np.float32)
    (full[0, 0] * torch.tensor(weights, dtype=torch.float64)).sum().backward()

    mask, back = jax.vjp(
        lambda q: masks.smooth_max(q, size, step=step, sigma=3 * step), jnp.asarray(params)
    )
    np.testing.assert_allclose(mask.visible, visible[0, 0].detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mask.inner, full[0, 0].detach(), rtol=1e-5, atol=1e-6)
    (grad,) = back(masks.Mask(jnp.zeros(size), jnp.asarray(weights)))
    scale = np.abs(p.grad.numpy()).max()
    np.testing.assert_allclose(grad, p.grad[0, 0], atol=1e-5 * scale)


@pytest.mark.parametrize("size", SIZES)
def test_pyramid_and_blend(size):
    """Levels, and the image that a mask picks from them, with the gradient for the mask."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*size, 3)).astype(np.float32)
    # Their pixels are normalised, so that a border of 0 is the mean colour: here a padding of 0.
    theirs = original.Perturbation(torch.tensor(image).permute(2, 0, 1)[None])
    blur = operators.Blur(pixels=20.0, padding=0.0)
    levels = blur.prepare(jnp.asarray(image), None)
    want = theirs.pyramid.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(levels, want, atol=1e-5 * np.abs(want).max())

    m = rng.uniform(0, 1, size).astype(np.float32)
    weights = rng.normal(size=(*size, 3)).astype(np.float32)
    mt = torch.tensor(m)[None, None].requires_grad_()
    shown = theirs.apply(mt)
    (shown[0].permute(1, 2, 0) * torch.tensor(weights)).sum().backward()
    got, back = jax.vjp(lambda v: blur.apply(levels, v), jnp.asarray(m))
    np.testing.assert_allclose(
        got, shown[0].permute(1, 2, 0).detach(), atol=1e-5 * np.abs(want).max()
    )
    (grad,) = back(jnp.asarray(weights))
    want = mt.grad[0, 0].numpy()
    np.testing.assert_allclose(grad, want, atol=1e-5 * np.abs(want).max())


class TinyNet(torch.nn.Module):
    """Two convolutions and a mean: smooth enough that gradients are comparable to 1e-5."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = torch.nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.two = torch.nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x):
        return self.two(torch.tanh(self.one(x))).mean((2, 3))


def ported(net):
    one, two = net.one, net.two
    weights = [t.detach().float().numpy() for t in (one.weight, one.bias, two.weight, two.bias)]
    weights = [jnp.asarray(w.transpose(2, 3, 1, 0) if w.ndim == 4 else w) for w in weights]

    def apply(w, x):
        def conv(x, k, b, stride, pad):
            dims = ("NHWC", "HWIO", "NHWC")
            pads = [(pad, pad)] * 2
            return (
                jax.lax.conv_general_dilated(x, k, (stride,) * 2, pads, dimension_numbers=dims) + b
            )

        return conv(jnp.tanh(conv(x, w[0], w[1], 2, 2)), w[2], w[3], 1, 1).mean((1, 2))

    return model.Model(apply, weights)


class Recorder:
    """Stands in for `torch.optim.SGD` and remembers parameters and gradients of every step.

    Starts from random parameters: with the original's all-ones start thousands of mask values tie,
    and the sort of the area loss gives their gradients away in no particular order.
    """

    def __init__(self, monkeypatch):
        self.params, self.grads = [], []
        recorder, sgd = self, torch.optim.SGD

        class Recording(sgd):
            def __init__(self, params, *args, **kwargs):
                params = list(params)
                draw = np.random.default_rng(5).uniform(0.05, 0.95, params[0].shape)
                params[0].data.copy_(torch.tensor(draw))
                super().__init__(params, *args, **kwargs)

            def step(self, *args, **kwargs):
                p = self.param_groups[0]["params"][0]
                recorder.params.append(p.detach().numpy()[:, 0].copy())
                recorder.grads.append(p.grad.numpy()[:, 0].copy())
                return super().step(*args, **kwargs)

        monkeypatch.setattr(original.optim, "SGD", Recording)


def slots(net, image, target, areas, game, steps, params=None, border=0.0):
    """Our solver's slots for one image, one slot an area."""
    size, number = image.shape[:2], len(areas)
    recipe = torchray_recipe(
        size,
        game=game,
        operator=operators.Blur(pixels=20.0, padding=border),
        reward=rewards.logit(),
    )
    inside = _rank_areas(recipe.parametrisation, size, np.array(areas))
    items, state = solver.start(
        net,
        recipe,
        jnp.broadcast_to(image, (number, *image.shape)),
        jnp.full(number, target),
        jnp.asarray(inside, jnp.float32),
        jnp.ones(number, jnp.int32),
        jax.random.split(jax.random.key(0), number),
        jnp.full(number, steps, jnp.int32),
        params,
    )
    return recipe, items, state


@pytest.mark.parametrize("game", ["preserve", "delete", "dual"])
@pytest.mark.parametrize("size", SIZES)
def test_loss_gradient_and_trajectory_of_a_small_network(game, size, monkeypatch, double):
    """Twenty steps: reward and area loss of each, gradient at their parameters, final masks."""
    areas, steps = [0.1, 0.25], 20
    image = np.random.default_rng(1).uniform(0, 1, (*size, 3)).astype(np.float32)
    net, recorder = TinyNet(), Recorder(monkeypatch)
    theirs, history = original.extremal_perturbation(
        net,
        torch.tensor(image).permute(2, 0, 1)[None],
        2,
        areas=areas,
        max_iter=steps,
        variant=game,
    )
    history = history.numpy()
    mine = ported(net)
    # The first two, one on the way and the last of twenty.
    for t in (0, 1, 7, 19):
        params = jnp.asarray(recorder.params[t], jnp.float32)
        recipe, items, state = slots(mine, jnp.asarray(image), 2, areas, game, 10 * steps, params)
        state = state._replace(step=jnp.full(2, t, jnp.int32))
        stepped = solver.advance(mine, recipe, items, state, 1)
        if t < 2:  # Later, parameters clipped to 0 and 1 tie again.
            want = recorder.grads[t]
            np.testing.assert_allclose(stepped.rule.velocity, want, atol=2e-5 * np.abs(want).max())
        np.testing.assert_allclose(stepped.reward, history[:, 0, t], rtol=1e-5, atol=1e-6)
        for j in range(2):
            mask = masks.smooth_max(params[j], size)
            got = recipe.penalty(mask, items.area[j], jnp.int32(t), jnp.int32(steps))
            np.testing.assert_allclose(got, -history[j, 1, t], rtol=1e-5)
    params = jnp.asarray(recorder.params[0], jnp.float32)
    recipe, items, state = slots(mine, jnp.asarray(image), 2, areas, game, steps, params)
    outcome = solver.finish(mine, recipe, items, solver.advance(mine, recipe, items, state, steps))
    np.testing.assert_allclose(outcome.masks, theirs[:, 0].numpy(), atol=1e-4)
