"""Both published optimisations for twenty steps on SqueezeNet 1.1 and real photographs.

Where a photograph is flat, features tie and the network's gradient jumps, so that rounding alone parts two
runs: the original in float32 is up to 6e-3 (extremal) and 8e-2 (meaningful, whose Adam gives the least
gradient a full step) from itself in float64. So original and ours both run in float64 here, the arithmetic
in which the trajectory is determined, and agree to 1e-3; the same code in float32 is held to the float64
masks on nine pixels in ten.
"""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch")
original = pytest.importorskip("torchray.attribution.extremal_perturbation")

import perturb  # noqa: E402
from perturb.methods.extremal import IMAGENET_MEAN  # noqa: E402
from tests.oracles.test_meaningful import median  # noqa: E402
from tests.oracles.test_torchray import TinyNet, ported  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
MEAN = np.array(IMAGENET_MEAN)
STD = np.array([0.229, 0.224, 0.225])
STEPS = 20


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


def nchw(x):
    return torch.tensor(np.asarray(x, np.float64)).permute(2, 0, 1)[None]


@pytest.fixture
def double(monkeypatch):
    """Makes the original compute in float64 all through: it names float32 for its kernels and tables."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch, "float", torch.float64)
    with jax.enable_x64(True):
        yield
    monkeypatch.undo()
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("game", ["preserve", "delete", "dual"])
def test_extremal(game, squeezenet, photographs, torch_squeezenet, double):
    """Masks of area 0.1, from the original's own start, both in float64."""
    for pixels, target in photographs:
        theirs = original.extremal_perturbation(
            torch_squeezenet[torch.float64],
            nchw((pixels.astype(np.float64) - MEAN) / STD),
            target,
            areas=[0.1, 0.1],
            max_iter=STEPS,
            variant=game,
        )
        options = {"solver": "torchray", "areas": 0.1, "game": game, "steps": STEPS}
        ours = perturb.extremal(squeezenet, pixels[None], [target], dtype=jnp.float64, **options)
        assert ours.masks.dtype == np.float64
        np.testing.assert_allclose(ours.masks[0, 0], theirs[0][0, 0].numpy(), atol=1e-3)


def port(net, image, target, key):
    """The loop: 28 x 28 ones, corners aligned, L1 0.01, TV 0.2 of power 3, noise 0.2, Adam 0.1."""
    image = image.astype(np.float64)
    x, null = nchw((image - MEAN) / STD), nchw((median(image) - MEAN) / STD)
    m = torch.ones(1, 1, 28, 28, requires_grad=True)
    optimiser = torch.optim.Adam([m], lr=0.1)

    def enlarged():
        enlarge = torch.nn.functional.interpolate
        return enlarge(m, image.shape[:2], mode="bilinear", align_corners=True)

    for step in range(STEPS):
        draw = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, step), 1), image.shape)
        shown = x * enlarged() + null * (1 - enlarged()) + 0.2 * nchw(draw)
        chance = torch.softmax(net(shown), 1)[0, target]
        rough = ((m[..., 1:, :] - m[..., :-1, :]).abs() ** 3).mean()
        rough = rough + ((m[..., 1:] - m[..., :-1]).abs() ** 3).mean()
        loss = 0.01 * (1 - m).abs().mean() + 0.2 * rough + chance
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        m.data.clamp_(0, 1)
    return 1 - enlarged().detach().numpy()[0, 0]


def farthest(model, net, photographs):
    """The largest distance of our mask from the port's, a photograph."""
    key = jax.random.key(3)
    images, targets = zip(*photographs, strict=True)
    options = {"preset": "pytorch_port", "steps": STEPS, "dtype": jnp.float64}
    result = perturb.meaningful(model, np.stack(images), list(targets), key=key, **options)
    assert result.masks.dtype == np.float64
    found = []
    for i, (image, target) in enumerate(photographs):
        theirs = port(net, image, target, jax.random.fold_in(jax.random.fold_in(key, i), 0))
        assert theirs.max() > 0.1  # something has been removed by then
        found.append(np.abs(result.masks[i, 0] - theirs).max())
    return np.array(found)


def test_meaningful_of_a_small_network(double):
    """The `pytorch_port` preset on a smooth network."""
    tiny = TinyNet()
    plain = ported(tiny)
    # Logits steep enough that the network's gradient outweighs the price of the mask.
    model = perturb.Model(
        lambda w, x: 30 * plain.apply(w, ((x - MEAN) / STD).astype(x.dtype)),
        plain.variables,
        channels=3,
    )
    rng = np.random.default_rng(2)
    images = [(rng.random((64, 64, 3), np.float32), t) for t in (1, 4)]
    assert farthest(model, lambda x: 30 * tiny(x), images).max() <= 1e-3


def test_meaningful(squeezenet, photographs, torch_squeezenet, double):
    """The same on SqueezeNet and real photographs."""
    assert farthest(squeezenet, torch_squeezenet[torch.float64], photographs).max() <= 1e-3
