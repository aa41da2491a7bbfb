"""Maps at a layer of six architectures, through every adapter, against torch's own autograd."""

import dataclasses

import numpy as np
import pytest

from perturb import adapters, attribution
from tests.adapters import twins

torch = pytest.importorskip("torch", reason="torch is not installed: use `make adapters`")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
IMAGES = np.random.default_rng(0).random((2, twins.SIDE, twins.SIDE, 3), np.float32)
CLASSES = [1, 3]
LAYOUTS = {
    "vit": {"probe": "BNC", "late": "BNC"},
    "swin": {"probe": "BHWC", "late": "BHWC"},
    "convnext": {"probe": "BHWC"},
}
ADAPTERS = {
    "torchax": lambda net: adapters.from_torch(twins.torch_net(net)),
    "torch": lambda net: adapters.from_torch(twins.torch_net(net), engine="torch"),
    "equinox": twins.equinox,
    "keras": twins.keras,
    "linen": twins.linen,
}


def by_autograd(net, layer, excite=False):
    """Activation and slope `[B, h, w, K]` of the classes at a layer, by torch."""
    module, seen = twins.torch_net(net, excite), []
    getattr(module, layer).register_forward_hook(lambda _, __, y: seen.append(y))
    y = module(torch.tensor(IMAGES).permute(0, 3, 1, 2).requires_grad_(True))
    (slope,) = torch.autograd.grad(sum(y[i, c] for i, c in enumerate(CLASSES)), seen[0])
    return places(net, layer, seen[0].detach()), places(net, layer, slope)


def places(net, layer, values):
    if net is twins.vit:
        return values[:, 1:].reshape(2, 4, 4, -1)  # 4 x 4 patches behind the class token
    last = net is twins.swin or (net is twins.convnext and layer == "probe")
    return values if last else values.permute(0, 2, 3, 1)


def enlarged(maps):
    size = {"size": IMAGES.shape[1:3], "mode": "bilinear", "align_corners": False}
    return torch.nn.functional.interpolate(maps[:, None], **size)[:, 0].numpy()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", twins.NETS)
def test_maps_are_those_of_autograd(name, adapter, record_property):
    net = twins.NETS[name]
    if adapter == "torchax":
        pytest.importorskip("torchax", reason="torchax is not installed: use `make adapters`")
    model = ADAPTERS[adapter](net)
    if adapter == "torch":
        # There is no trace to follow: a layer that shows no channels is told where they lie.
        model = dataclasses.replace(model, layouts=LAYOUTS.get(name, {}))
    own = twins.torch_net(net)(torch.tensor(IMAGES).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(model(IMAGES), own, atol=1e-4 * np.abs(own).max())
    a, slope = by_autograd(net, "probe")
    wanted = {
        "grad_cam": ("probe", (a * slope.mean((1, 2), keepdim=True)).sum(-1).clamp(min=0)),
        "linear_approx": ("probe", (a * slope).sum(-1)),
        "gradient": ("probe", slope.abs().amax(-1)),
        "excitation": ("late", by_autograd(net, "late", excite=True)[1].sum(-1)),
    }
    for method, (layer, maps) in wanted.items():
        find = attribution.get(method)
        want = enlarged(maps)
        error = float(
            np.abs(find(model, IMAGES, CLASSES, layer=layer) - want).max() / np.abs(want).max()
        )
        record_property(method, f"{error:.1e}")
        print(name, adapter, method, f"{error:.1e}")
        # Two frameworks in float32, through a network of several layers and back.
        assert error <= 1e-4, method


def written_out(net):
    """The module with its softmax and gelu as JAX's program has them: of sums and factors."""
    module = twins.torch_net(net)

    def mixed(self, q, k, v):
        scores = q @ k.transpose(-1, -2) / twins.WIDTH**0.5
        parts = torch.exp(scores - scores.amax(-1, keepdim=True).detach())
        return (parts / parts.sum(-1, keepdim=True)) @ v

    type(module).mixed = mixed
    type(module).gelu = lambda self, x: 0.5 * x * torch.erfc(-x * 0.5**0.5)
    return module


# Behind the layer inside are norms, shortcuts, grouped products, gates and attention. The rule
# meets the sums and factors of a softmax in JAX's program; in torch only where they are written.
@pytest.mark.parametrize("name", twins.NETS)
def test_excitation_inside_is_that_of_linen(name):
    net = twins.NETS[name]
    ours = adapters.from_torch(written_out(net), engine="torch")
    ours, theirs = dataclasses.replace(ours, layouts=LAYOUTS.get(name, {})), ADAPTERS["linen"](net)
    for method, options in (
        ("excitation", {"layer": "probe"}),
        ("contrastive_excitation", {"layer": "probe", "contrast_layer": "late"}),
    ):
        find = attribution.get(method)
        want = find(theirs, IMAGES, CLASSES, **options)
        got = find(ours, IMAGES, CLASSES, **options)
        assert np.isfinite(want).all()
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(), err_msg=method)
