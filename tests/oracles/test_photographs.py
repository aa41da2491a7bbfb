"""Both published optimisations for twenty steps on SqueezeNet 1.1 and real photographs.

The original runs twice, in float32 and in float64. Where a photograph is flat, features tie and the
network's gradient jumps, so rounding alone parts the two: the original in float32 is up to 6e-3
(extremal) and 8e-2 (meaningful, whose Adam gives the least gradient a full step) from itself in float64.
Ours is held to 1e-3 of the float64 masks, or to a few times that distance of the original from itself:
two float32 paths are two draws of one noise.
"""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch")
original = pytest.importorskip("torchray.attribution.extremal_perturbation")

import perturb  # noqa: E402
from perturb import solver  # noqa: E402
from perturb.methods.extremal import IMAGENET_MEAN  # noqa: E402
from tests.oracles.test_meaningful import median  # noqa: E402
from tests.oracles.test_torchray import TinyNet, ported, slots  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
MEAN = np.array(IMAGENET_MEAN, np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
STEPS = 20
DTYPES = (torch.float32, torch.float64)


@pytest.fixture(scope="module")
def squeezenet(data_dir):
    weights = data_dir / "weights" / "squeezenet1_1.safetensors"
    return perturb.load_model("squeezenet1_1", weights=weights)


@pytest.fixture(scope="module")
def photographs(data_dir, squeezenet):
    """Four photographs `[224, 224, 3]` with their targets."""
    found = []
    for path in sorted((data_dir / "torchray_masks").glob("*.npz"))[:4]:
        record = np.load(path)
        with PIL.Image.open(data_dir / "imagenet" / str(record["image"])) as photograph:
            pixels, _ = squeezenet.geometry.apply(photograph.convert("RGB"))
        found.append((pixels, int(record["target"])))
    return found


def nchw(x, dtype):
    return torch.tensor(np.asarray(x, np.float32), dtype=dtype).permute(2, 0, 1)[None]


@pytest.mark.parametrize("game", ["preserve", "delete", "dual"])
def test_extremal(game, squeezenet, photographs, torch_squeezenet, monkeypatch):
    """Masks of area 0.1, from the original's own start."""
    smooth = original.imsmooth  # builds its kernel in float32, whatever the image
    monkeypatch.setattr(original, "imsmooth", lambda x, **k: smooth(x.float(), **k).to(x.dtype))
    for pixels, target in photographs:
        theirs = {}
        for dtype in DTYPES:
            torch.set_default_dtype(dtype)
            try:
                theirs[dtype] = original.extremal_perturbation(
                    torch_squeezenet[dtype],
                    nchw((pixels - MEAN) / STD, dtype),
                    target,
                    areas=[0.1, 0.1],
                    max_iter=STEPS,
                    variant=game,
                )[0][:, 0].numpy()
            finally:
                torch.set_default_dtype(torch.float32)
        recipe, items, state = slots(
            squeezenet,
            jnp.asarray(pixels),
            target,
            [0.1, 0.1],
            game,
            STEPS,
            border=IMAGENET_MEAN,
        )
        state = solver.advance(squeezenet, recipe, items, state, STEPS)
        ours = np.asarray(solver.finish(squeezenet, recipe, items, state).masks)
        exact = theirs[torch.float64]
        own = np.abs(theirs[torch.float32] - exact)
        away = np.abs(ours - exact)
        assert away.max() <= max(1e-3, 3 * own.max()), (away.max(), own.max())
        assert (away <= 1e-3).mean() >= 0.9
        if game == "delete":  # starts from the blurred picture, where nothing ties
            assert away.max() <= 1e-3


def port(net, image, target, key, dtype):
    """The loop: 28 x 28 ones, corners aligned, L1 0.01, TV 0.2 of power 3, noise 0.2, Adam 0.1."""
    x, null = nchw((image - MEAN) / STD, dtype), nchw((median(image) - MEAN) / STD, dtype)
    m = torch.ones(1, 1, 28, 28, requires_grad=True, dtype=dtype)
    optimiser = torch.optim.Adam([m], lr=0.1)

    def enlarged():
        enlarge = torch.nn.functional.interpolate
        return enlarge(m, image.shape[:2], mode="bilinear", align_corners=True)

    for step in range(STEPS):
        draw = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, step), 1), image.shape)
        shown = x * enlarged() + null * (1 - enlarged()) + 0.2 * nchw(draw, dtype)
        chance = torch.softmax(net(shown), 1)[0, target]
        rough = ((m[..., 1:, :] - m[..., :-1, :]).abs() ** 3).mean()
        rough = rough + ((m[..., 1:] - m[..., :-1]).abs() ** 3).mean()
        loss = 0.01 * (1 - m).abs().mean() + 0.2 * rough + chance
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        m.data.clamp_(0, 1)
    return 1 - enlarged().detach().numpy()[0, 0]


def agree(model, net, photographs):
    """Distances of our masks from the port's in float64, and of the port in float32 from itself."""
    key = jax.random.key(3)
    images, targets = zip(*photographs, strict=True)
    result = perturb.meaningful(
        model, np.stack(images), list(targets), preset="pytorch_port", steps=STEPS, key=key
    )
    ours, own = [], []
    for i, (image, target) in enumerate(photographs):
        mine = jax.random.fold_in(jax.random.fold_in(key, i), 0)
        rough, exact = (port(net[d], image, target, mine, d) for d in DTYPES)
        assert exact.max() > 0.1  # something has been removed by then
        ours.append(np.abs(result.masks[i, 0] - exact))
        own.append(np.abs(rough - exact).max())
    return np.stack(ours), np.array(own)


def test_meaningful_of_a_small_network():
    """The `pytorch_port` preset on a smooth network: to 1e-3 without excuses."""
    tiny = TinyNet()
    # Logits steep enough that the network's gradient outweighs the price of the mask.
    copies = {d: copy.deepcopy(tiny).to(d) for d in DTYPES}
    nets = {d: lambda x, d=d: 30 * copies[d](x) for d in DTYPES}
    plain = ported(tiny)
    model = perturb.Model(
        lambda w, x: 30 * plain.apply(w, (x - MEAN) / STD), plain.variables, channels=3
    )
    rng = np.random.default_rng(2)
    images = [(rng.random((64, 64, 3), np.float32), t) for t in (1, 4)]
    ours, _ = agree(model, nets, images)
    assert ours.max() <= 1e-3


def test_meaningful(squeezenet, photographs, torch_squeezenet):
    """The same on SqueezeNet: half of every mask to 1e-3, the worst pixel as the port's own noise."""
    ours, own = agree(squeezenet, torch_squeezenet, photographs)
    worst = ours.max((1, 2))
    assert (worst <= np.maximum(1e-3, 5 * own)).all(), (worst, own)
    assert (np.median(ours, (1, 2)) <= 1e-3).all()
