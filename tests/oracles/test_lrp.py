"""Layer-wise relevance propagation against zennit on SqueezeNet 1.1 with the real weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
zennit = pytest.importorskip("zennit", reason="pip install zennit==1.0.0")

from zennit import rules  # noqa: E402
from zennit.attribution import Gradient  # noqa: E402
from zennit.composites import LayerMapComposite  # noqa: E402
from zennit.types import Activation, AvgPool, Convolution  # noqa: E402

import perturb  # noqa: E402
from perturb.attribution.lrp import Epsilon, Gamma, ZPlus, lrp  # noqa: E402
from perturb.nets._net import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def nets(data_dir):
    """Ours, torchvision's with the same weights, and a photograph."""
    torchvision = pytest.importorskip("torchvision")
    from safetensors.torch import load_file

    weights = data_dir / "weights" / "squeezenet1_1.safetensors"
    ours = perturb.load_model("squeezenet1_1", weights=weights)
    theirs = torchvision.models.squeezenet1_1(weights=None)
    theirs.load_state_dict(load_file(weights))
    # zennit's hooks on modules do not survive in-place relu.
    for module in theirs.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    # The nets take any size; a small window is enough for a comparison of rules.
    paths = sorted((data_dir / "imagenet" / "images").iterdir())[:2]
    pictures = [ours.geometry.apply(Image.open(p).convert("RGB"))[0][80:144, 80:144] for p in paths]
    return ours, theirs.eval(), np.stack(pictures).astype(np.float32)


@pytest.mark.parametrize(
    ("ours_rule", "theirs_rule", "first"),
    [
        (Epsilon(epsilon=1e-6), lambda: rules.Epsilon(1e-6), None),
        (Epsilon(epsilon=0.25), lambda: rules.Epsilon(0.25), None),
        (ZPlus(), rules.ZPlus, None),
        (Gamma(gamma=0.25), lambda: rules.Gamma(0.25), None),
        (ZPlus(), rules.ZPlus, "box"),
    ],
    ids=["epsilon 1e-6", "epsilon 0.25", "z+", "gamma", "z+ and box"],
)
def test_equals_zennit(nets, ours_rule, theirs_rule, first):
    """In float64 on both sides: the rules divide by sums that cancel."""
    ours, theirs, pictures = nets
    with jax.enable_x64(True):
        double = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), ours)
        outputs = np.asarray(double(jnp.asarray(pictures, jnp.float64)))
        targets = outputs.argmax(1)
        found = lrp(double, pictures.astype(np.float64), targets, rule=ours_rule, first=first)
    mean, std = (np.array(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = torch.tensor((pictures.transpose(0, 3, 1, 2) - mean) / std, dtype=torch.float64)
    low, high = (torch.tensor((v - mean) / std, dtype=torch.float64)[None] for v in (0, 1))
    layers = [(Activation, rules.Pass()), (AvgPool, rules.Norm()), (Convolution, theirs_rule())]
    composite = LayerMapComposite(layers)
    theirs = theirs.double()
    if first:
        from zennit.composites import SpecialFirstLayerMapComposite

        composite = SpecialFirstLayerMapComposite(layers, [(Convolution, rules.ZBox(low, high))])
    start = torch.zeros(outputs.shape, dtype=torch.float64)
    start[range(len(targets)), targets] = torch.tensor(outputs[range(len(targets)), targets])
    x.requires_grad_()
    with Gradient(model=theirs, composite=composite) as attributor:
        _, relevance = attributor(x, start)
    wanted = relevance.detach().numpy().sum(1)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
