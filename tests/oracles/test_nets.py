"""Our nets against torchvision's own classes: random weights and statistics, odd and even sizes."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

from perturb import load_model  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["squeezenet1_0", "squeezenet1_1", "mobilenet_v2"])
@pytest.mark.parametrize("size", [(96, 130), (97, 129)])
def test_outputs_of_torchvision(name, size):
    torch.manual_seed(0)
    source = getattr(torchvision.models, name)(weights=None).eval()
    for key, value in source.state_dict().items():
        # As built, torchvision's statistics and biases are zeros and ones, which hides a swap.
        if value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5) if "var" in key else value.normal_(0.1, 0.3)
    tensors = {k: v.numpy() for k, v in source.state_dict().items()}
    model = load_model(name, weights=tensors)
    images = np.random.default_rng(0).random((2, *size, 3), np.float32)
    x = (images - np.float32(model.apply.mean)) / np.float32(model.apply.std)
    with torch.no_grad():
        expected = source(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()
    got = jax.jit(lambda m, v: m(v))(model, images)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())
