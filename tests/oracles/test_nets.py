"""Our nets against torchvision's own classes, and timm's: random weights and statistics."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from perturb import load_model, nets  # noqa: E402
from perturb.nets._pool import mean_to  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ["squeezenet1_0", "squeezenet1_1", "mobilenet_v2", "resnet18"]
# Even and odd sides, oblong: where padding and pooling round differently.
SIZES = [(96, 130), (97, 129)]
DEEP = ["resnet34", "resnet101", "resnet152", "vgg19"]
# The published size once for the large ones.
CASES = [
    *((name, size) for name in SMALL for size in SIZES),
    *((name, (64, 96)) for name in DEEP),
    *((name, (224, 224)) for name in ("resnet50", "vgg16", "vit_b_16")),
]
TIMM = {"resnet34": "resnet34", "vgg16": "vgg16", "vit_b_16": "vit_base_patch16_224"}


def compare(name, source, size):
    """Our largest difference from `source` in float64, and its own in float32, as shares of the
    largest logit.
    """
    images = np.random.default_rng(0).random((2, *size, 3), np.float32)
    # Stripes, and dark ones: as unlike the first picture as can be.
    images[1] = images[1].mean(1, keepdims=True) ** 4
    mean, std = nets._builder(name).mean, nets._builder(name).std
    x = torch.tensor(((images - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2))
    with torch.no_grad():
        _enliven(source, x)
        own = source(x).numpy()
        expected = source.double()(x.double()).numpy()
        source.float()
    # Two pictures that come out alike would hide a net that does not look.
    assert np.abs(expected[0] - expected[1]).max() > 0.03 * np.abs(expected).max() > 1e-3
    model = load_model(name, weights={k: v.numpy() for k, v in source.state_dict().items()})
    got = jax.jit(lambda m, v: m(v))(model, images)
    return [float(np.abs(y - expected).max() / np.abs(expected).max()) for y in (got, own)]


def _enliven(source, x):
    """Weights as built hide a swap (zeros, ones) and let the signal die in deep nets."""
    for key, value in source.state_dict().items():
        if value.is_floating_point() and value.ndim == 1 and "running" not in key:
            value.uniform_(0.5, 1.5) if key.endswith("weight") else value.normal_(0, 0.1)
            # Trained blocks add little to what passes them by; else 100 layers magnify any
            # rounding.
            if key.endswith("bn3.weight"):
                value.mul_(0.3)
        elif key.endswith(
            ("class_token", "cls_token", "pos_embedding", "pos_embed", "head.weight")
        ):
            value.normal_(0, 0.3)
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            # One pass in training makes the statistics those of these pictures, so signals keep
            # their size.
            module.train().momentum = 1.0
    source(x)
    source.eval()


@pytest.mark.parametrize(("name", "size"), CASES)
def test_outputs_of_torchvision(name, size, record_property):
    torch.manual_seed(0)
    source = getattr(torchvision.models, name)(weights=None).eval()
    error, rounding = compare(name, source, size)
    record_property("ours, theirs", f"{error:.1e}, {rounding:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize("name", TIMM)
def test_files_of_timm(name, record_property):
    timm = pytest.importorskip("timm", reason="timm is not installed: use `make oracles`")
    torch.manual_seed(0)
    source = timm.create_model(TIMM[name], pretrained=False).eval()
    error, rounding = compare(name, source, (224, 224))
    record_property("ours, theirs", f"{error:.1e}, {rounding:.1e}")
    assert error <= 1e-4


@pytest.mark.parametrize("size", [(2, 3), (7, 7), (9, 15)])
def test_means_over_shared_windows(size):
    x = np.random.default_rng(0).random((2, *size, 3), np.float32)
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(x.transpose(0, 3, 1, 2)), 7)
    got = mean_to(jax.numpy.asarray(x), 7)
    np.testing.assert_allclose(got, expected.numpy().transpose(0, 2, 3, 1), atol=1e-6)
