"""Layer-wise maps of real architectures against torch's own autograd, through both engines."""

import numpy as np
import pytest

from perturb import adapters, attribution, layouts

timm = pytest.importorskip("timm", reason="timm is not installed: use `make adapters`")
torch = pytest.importorskip("torch", reason="torch is not installed: use `make adapters`")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
IMAGES = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
# Network, options, its layer in torch, and how that layer is laid out. None of them feeds a layer
# normalisation alone: there activation and gradient are at right angles, and their product is
# rounding.
CASES = {
    "resnet": ("resnet10t", {}, "layer3", "BCHW"),
    "convnext": ("convnext_atto", {}, "stages.2.blocks.1.mlp.fc1", "BCHW"),
    "densenet": (
        "densenet121",
        {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
        "features.denseblock3",
        "BCHW",
    ),
    "vit": (
        "vit_tiny_patch16_224",
        {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2},
        "blocks.1.norm1",
        "BNC",
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)},
        "layers.0.blocks.1.norm1",
        "BHWC",
    ),
}


def by_autograd(net, layer):
    """Activation and gradient `[B, h, w, K]` of class 1 at a layer."""
    seen = []
    handle = net.get_submodule(layer).register_forward_hook(
        # A copy goes on: work in place behind the layer must not change what was seen.
        lambda _, __, y: seen.append(y.clone()) or seen[0].clone()
    )
    y = net(torch.tensor(IMAGES).permute(0, 3, 1, 2).requires_grad_(True))
    handle.remove()
    (slope,) = torch.autograd.grad(y[:, 1].sum(), seen[0])
    return seen[0].detach(), slope


def places(values, letters):
    if letters == "BCHW":
        return values.permute(0, 2, 3, 1)
    # Patches of 16 px of 64: 4 x 4 places behind the class token.
    return values[:, 1:].reshape(2, 4, 4, -1) if letters == "BNC" else values


def enlarged(maps):
    size = {"size": IMAGES.shape[1:3], "mode": "bilinear", "align_corners": False}
    return torch.nn.functional.interpolate(maps[:, None], **size)[:, 0].numpy()


@pytest.mark.parametrize("engine", ["torchax", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_maps_are_those_of_autograd(case, engine, record_property):
    if engine == "torchax":
        pytest.importorskip("torchax", reason="torchax is not installed: use `make adapters`")
    name, options, layer, letters = CASES[case]
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5, **options).eval()
    model = adapters.from_torch(net, engine=engine)
    known = layouts.layouts(model, IMAGES)
    (found,) = [n for n in known if n.replace("/", ".") == layer]
    a, slope = (places(v, letters) for v in by_autograd(net, layer))
    assert known[found].channels == a.shape[-1]
    wanted = {
        "grad_cam": (a * slope.mean((1, 2), keepdim=True)).sum(-1).clamp(min=0),
        "linear_approx": (a * slope).sum(-1),
        "gradient": slope.abs().amax(-1),
    }
    for method, maps in wanted.items():
        want = enlarged(maps)
        got = attribution.get(method)(model, IMAGES, [1, 1], layer=found)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        record_property(method, f"{error:.1e}")
        print(case, engine, method, f"{error:.1e}")
        # Two frameworks in float32, through a network of several layers and back.
        assert error <= 1e-4, method
