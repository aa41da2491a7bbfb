"""Our `pytorch_port` preset against a PyTorch loop with the constants of the widely used port."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

torch = pytest.importorskip("torch")

import perturb  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def median(image: np.ndarray, side: int = 11) -> np.ndarray:
    """Median filter of `[H, W, C]` with repeated borders."""
    reach = side // 2
    padded = np.pad(image, [(reach, reach)] * 2 + [(0, 0)], mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(0, 1))
    return np.median(windows, axis=(-2, -1))


def port(net, image: np.ndarray, target: int, key, steps: int) -> np.ndarray:
    """The loop: 28 x 28 ones, corners aligned, L1 0.01, TV 0.2 of power 3, noise 0.2, Adam 0.1."""

    def nchw(x):
        return torch.tensor(np.asarray(x, np.float32)).permute(2, 0, 1)[None]

    x, null = nchw((image - MEAN) / STD), nchw((median(image) - MEAN) / STD)
    m = torch.ones(1, 1, 28, 28, requires_grad=True)
    optimiser = torch.optim.Adam([m], lr=0.1)
    for step in range(steps):
        draw = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, step), 1), image.shape)
        large = torch.nn.functional.interpolate(
            m, image.shape[:2], mode="bilinear", align_corners=True
        )
        shown = x * large + null * (1 - large) + 0.2 * nchw(draw)
        chance = torch.softmax(net(shown), 1)[0, target]
        rough = ((m[..., 1:, :] - m[..., :-1, :]).abs() ** 3).mean()
        rough = rough + ((m[..., 1:] - m[..., :-1]).abs() ** 3).mean()
        loss = 0.01 * (1 - m).abs().mean() + 0.2 * rough + chance
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        m.data.clamp_(0, 1)
    return 1 - large_of(m, image.shape[:2])


def large_of(m, size) -> np.ndarray:
    large = torch.nn.functional.interpolate(m, size, mode="bilinear", align_corners=True)
    return large.detach().numpy()[0, 0]


def test_twenty_steps_agree(data_dir, torch_squeezenet):
    """Two photographs, twenty steps: masks within 1e-3."""
    net = perturb.load_model(
        "squeezenet1_1", weights=data_dir / "weights" / "squeezenet1_1.safetensors"
    )
    records = [np.load(p) for p in sorted((data_dir / "torchray_masks").glob("*.npz"))[:2]]
    images, targets = [], [int(r["target"]) for r in records]
    for r in records:
        with PIL.Image.open(data_dir / "imagenet" / str(r["image"])) as photograph:
            images.append(net.geometry.apply(photograph.convert("RGB"))[0])
    key = jax.random.key(3)
    result = perturb.meaningful(
        net, np.stack(images), targets, preset="pytorch_port", steps=20, key=key
    )
    for i in range(2):
        mine = jax.random.fold_in(jax.random.fold_in(key, i), 0)
        want = port(torch_squeezenet, images[i], targets[i], mine, 20)
        np.testing.assert_allclose(result.masks[i, 0], want, atol=1e-3)
        assert want.max() > 0.1  # something has been removed by then


def test_median_operator():
    """The median filter of the preset, even over images smaller than a photograph."""
    image = np.random.default_rng(0).uniform(0, 1, (17, 23, 3)).astype(np.float32)
    np.testing.assert_array_equal(perturb.operators.median(jnp.asarray(image)), median(image))
