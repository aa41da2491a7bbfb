"""Our attributions against captum and torchray on one small network of the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
captum = pytest.importorskip("captum.attr")
torchray = pytest.importorskip("torchray.attribution")

from torchray.attribution import (  # noqa: E402
    deconvnet,
    excitation_backprop,
    grad_cam,
    gradient,
    guided_backprop,
    linear_approx,
    rise,
)

from perturb import attribution, operators  # noqa: E402
from tests import relunet  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
WEIGHTS = relunet.random_weights()
TARGETS = np.array([1, 3])
# Even, for a stride of 2; windows of 8 px fit into it, those of 6 in steps of 5 do not.
SIZE = 40


class Net(torch.nn.Module):
    """The network of tests.relunet in PyTorch."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.low = torch.nn.ReLU()
        self.two = torch.nn.Conv2d(8, 6, 3, padding=1)
        self.high = torch.nn.ReLU()
        self.pool = torch.nn.AdaptiveAvgPool2d(1)
        self.last = torch.nn.Linear(6, 5)
        for layer, name in ((self.one, "one"), (self.two, "two"), (self.last, "last")):
            kernel, bias = WEIGHTS[name]
            # HWIO to OIHW, and IO to OI.
            outwards = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            layer.weight.data = torch.tensor(kernel.transpose(outwards), dtype=torch.float32)
            layer.bias.data = torch.tensor(bias, dtype=torch.float32)

    def forward(self, x):
        x = self.high(self.two(self.low(self.one(x))))
        return self.last(self.pool(x).flatten(1))


@pytest.fixture
def nets():
    """Ours, theirs, the images NHWC and NCHW."""
    torch.manual_seed(0)
    images = np.random.default_rng(1).uniform(0, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    theirs = torch.tensor(images.transpose(0, 3, 1, 2))
    return relunet.model(WEIGHTS), Net().eval(), images, theirs


def agree(ours, theirs):
    """To 1e-4 of the largest value, which must not be nothing."""
    theirs = theirs.detach().numpy() if hasattr(theirs, "detach") else theirs
    assert np.abs(theirs).max() > 1e-6
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_outputs(nets):
    ours, theirs, images, x = nets
    agree(ours(jnp.asarray(images)), theirs(x))


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gradient", gradient.gradient),
        ("guided_backprop", guided_backprop.guided_backprop),
        ("deconvnet", deconvnet.deconvnet),
    ],
)
@pytest.mark.parametrize("layer", [None, "low"])
def test_gradients_of_torchray(nets, name, module, layer):
    ours, theirs, images, x = nets
    found = attribution.get(name)(ours, images, TARGETS, layer=layer)
    x = x.clone().requires_grad_()
    wanted = module(
        theirs, x, torch.tensor(TARGETS), saliency_layer=layer or "", resize=bool(layer)
    )
    agree(found, wanted[:, 0])


@pytest.mark.parametrize("layer", ["low", "high"])
def test_activation_maps_of_torchray(nets, layer):
    ours, theirs, images, x = nets
    for name, module in (
        ("grad_cam", grad_cam.grad_cam),
        ("linear_approx", linear_approx.linear_approx),
        ("excitation", excitation_backprop.excitation_backprop),
    ):
        wanted = module(theirs, x, torch.tensor(TARGETS), saliency_layer=layer, resize=True)
        agree(attribution.get(name)(ours, images, TARGETS, layer=layer), wanted[:, 0])


def test_contrastive_excitation_of_torchray(nets):
    ours, theirs, images, x = nets
    wanted = excitation_backprop.contrastive_excitation_backprop(
        theirs,
        x,
        torch.tensor(TARGETS),
        saliency_layer="low",
        contrast_layer="high",
        resize=True,
    )
    found = attribution.contrastive_excitation(
        ours, images, TARGETS, layer="low", contrast_layer="high"
    )
    agree(found, wanted[:, 0])


def test_rise_of_torchray_with_the_same_masks(nets):
    """torchray weighs by the sigmoid of the output and fills with zeros; so does this call."""
    ours, theirs, images, x = nets
    masks = np.random.default_rng(2).uniform(0, 1, (60, SIZE, SIZE)).astype(np.float32)
    wanted = rise.rise_class(
        theirs, x, num_masks=60, filter_masks=torch.tensor(masks)[:, None], target=TARGETS
    )

    def apply(w, x):
        return jax.nn.sigmoid(relunet.apply(w, x))

    import perturb

    plain = perturb.Model(apply, ours.variables, output="probabilities")
    agree(attribution.rise(plain, images, TARGETS, masks=masks), wanted[:, 0])


def test_gradients_of_captum(nets):
    ours, theirs, images, x = nets
    target = torch.tensor(TARGETS)
    saliency = captum.Saliency(theirs).attribute(x, target=target, abs=True)
    agree(attribution.gradient(ours, images, TARGETS), saliency.amax(1))
    product = captum.InputXGradient(theirs).attribute(x, target=target)
    agree(attribution.input_gradient(ours, images, TARGETS), product.sum(1))
    guided = captum.GuidedBackprop(theirs).attribute(x, target=target)
    agree(attribution.guided_backprop(ours, images, TARGETS), guided.abs().amax(1))
    deconv = captum.Deconvolution(theirs).attribute(x, target=target)
    agree(attribution.deconvnet(ours, images, TARGETS), deconv.abs().amax(1))


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_integrated_gradients_of_captum(nets, baseline):
    ours, theirs, images, x = nets
    # The same points of the path: the middle of each of 25 steps.
    wanted = captum.IntegratedGradients(theirs).attribute(
        x, baselines=baseline, target=torch.tensor(TARGETS), n_steps=25, method="riemann_middle"
    )
    found = attribution.integrated_gradients(ours, images, TARGETS, steps=25, baseline=baseline)
    agree(found, wanted.sum(1))


def test_smoothgrad_of_captum_with_the_same_noise(nets):
    ours, theirs, images, _ = nets
    key = jax.random.key(4)
    draws = np.stack(
        [
            np.stack(
                [
                    jax.random.normal(
                        jax.random.fold_in(jax.random.fold_in(key, i), s), images.shape[1:]
                    )
                    for s in range(5)
                ]
            )
            for i in range(2)
        ]
    )
    # Smilkov et al. take the noise as a share of the picture's own range.
    width = (images.max((1, 2, 3)) - images.min((1, 2, 3))) * 0.2
    noisy = images[:, None] + width[:, None, None, None, None] * draws
    flat = torch.tensor(noisy.reshape(-1, *images.shape[1:]).transpose(0, 3, 1, 2)).float()
    target = torch.tensor(np.repeat(TARGETS, 5))
    # Signed, and made absolute after the mean, as ours.
    each = captum.Saliency(theirs).attribute(flat, target=target, abs=False)
    wanted = each.reshape(2, 5, *each.shape[1:]).mean(1).abs().amax(1)
    found = attribution.smoothgrad(ours, images, TARGETS, samples=5, noise=0.2, key=key)
    agree(found, wanted)


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 4), (6, 5)])
def test_occlusion_of_captum(nets, window, stride):
    ours, theirs, images, x = nets
    wanted = captum.Occlusion(theirs).attribute(
        x,
        sliding_window_shapes=(3, window, window),
        strides=(3, stride, stride),
        baselines=0.5,
        target=torch.tensor(TARGETS),
    )
    found = attribution.occlusion(
        ours, images, TARGETS, window=window, stride=stride, operator=operators.Fade(colour=0.5)
    )
    agree(found, wanted.mean(1))


def test_grad_cam_of_captum(nets):
    ours, theirs, images, x = nets
    layer = captum.LayerGradCam(theirs, theirs.high)
    small = layer.attribute(x, target=torch.tensor(TARGETS), relu_attributions=True)
    wanted = captum.LayerAttribution.interpolate(small, (SIZE, SIZE), "bilinear")
    agree(attribution.grad_cam(ours, images, TARGETS, layer="high"), wanted[:, 0])


def test_cam_by_the_classifiers_own_weights(nets):
    """The definition, in torch: the last layer's weights on the last activation, up to the mean."""
    ours, theirs, images, x = nets
    high = theirs.high(theirs.two(theirs.low(theirs.one(x))))
    weight = theirs.last.weight[torch.tensor(TARGETS)]
    small = (high * weight[:, :, None, None]).sum(1, keepdim=True) / (high.shape[2] * high.shape[3])
    wanted = torch.nn.functional.interpolate(small, (SIZE, SIZE), mode="bilinear")
    agree(attribution.cam(ours, images, TARGETS, layer="high"), wanted[:, 0])
