"""AttnLRP against LXT and LeGrad against torchcam, on torchvision's vision transformer with random
weights.
"""

import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lxt", reason="pip install lxt==2.1 torchcam==0.5.0")
pytest.importorskip("torchcam", reason="pip install lxt==2.1 torchcam==0.5.0")

from launch import rival  # noqa: E402
from perturb import attribution  # noqa: E402
from perturb import weights as weights_lib  # noqa: E402
from perturb.adapters import from_linen  # noqa: E402
from perturb.attribution import _common  # noqa: E402
from perturb.attribution.lrp import Epsilon  # noqa: E402
from perturb.nets import vit  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
NET = vit.ViT(classes=5, patch=8, width=32, heads=4, hidden=64, layers=3)


@pytest.fixture(scope="module")
def nets():
    """Ours and torchvision's with the same weights, and pictures."""
    vision = rival.torchvision().models.vision_transformer
    torch.manual_seed(0)
    theirs = vision.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=3,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=5,
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    template = jax.eval_shape(NET.init, jax.random.key(0), jnp.asarray(images))
    tensors = {name: w.numpy() for name, w in theirs.state_dict().items()}
    variables = weights_lib.fill(template, tensors, vit._slots(template, "."), net="vit")
    ours = from_linen(NET, variables, mean=(0.0,), std=(1.0,))
    return ours, theirs, images


def scores(theirs, x, targets):
    out = theirs(x)
    return out[range(len(targets)), targets].sum()


def test_legrad_equals_torchcam(nets):
    from torchcam.methods import LeGrad

    ours, theirs, images = nets
    found = attribution.legrad(ours, images, [1, 3])
    for i, target in enumerate([1, 3]):
        x = torch.tensor(images[i : i + 1].transpose(0, 3, 1, 2))
        with LeGrad(theirs, list(theirs.encoder.layers)) as extract:
            theirs(x)
            maps = extract(target, normalized=False)
        # One a block; ours is their mean.
        wanted = np.mean([m.detach().numpy().reshape(4, 4) for m in maps], 0)
        large = _common.enlarge(jnp.asarray(wanted)[None], (32, 32))[0]
        np.testing.assert_allclose(found[i], large, atol=1e-4 * large.max())


def test_attn_lrp_equals_lxt(nets):
    """Last: LXT changes torchvision's classes themselves."""
    folder = importlib.util.find_spec("lxt").submodule_search_locations[0]
    # Its language models want a transformers of their time; the rules for torchvision do not.
    models = types.ModuleType("lxt.efficient.models")
    models.__path__, models.get_default_map = [f"{folder}/efficient/models"], None
    sys.modules.setdefault("lxt.efficient.models", models)
    from lxt.efficient.core import monkey_patch
    from lxt.efficient.models.vit_torch import cp_LRP

    ours, theirs, images = nets
    vision = rival.torchvision().models.vision_transformer
    monkey_patch(vision, cp_LRP)
    # LXT's map for torchvision holds the attention weights constant.
    found = attribution.attn_lrp(
        ours, images, [1, 3], rule=Epsilon(epsilon=0.0), attention="constant"
    )
    x = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    scores(theirs, x, [1, 3]).backward()
    wanted = (x * x.grad).detach().numpy().sum(1)
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
