"""Files that PyTorch itself wrote, read without it."""

import collections

import numpy as np
import pytest

from perturb.weights import torchfile

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
def test_every_tensor_of_a_state_dict_comes_out_bit_by_bit(tmp_path, new):
    torch.manual_seed(0)
    state = collections.OrderedDict(
        a=torch.randn(3, 4),
        half=torch.randn(5).half(),
        # A view whose strides are exchanged, a part of a longer storage, a number without axes, and
        # types that NumPy has or has not.
        turned=torch.randn(4, 6).t(),
        count=torch.tensor(3),
        part=torch.arange(10.0)[2:7],
        brain=torch.randn(3).bfloat16(),
    )
    torch.save(state, tmp_path / "f.pth", _use_new_zipfile_serialization=new)
    found = torchfile.read_torch(tmp_path / "f.pth")
    assert sorted(found) == sorted(state)
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(found[name].astype(np.float32), tensor.float().numpy())


def test_a_checkpoint_of_two_networks_has_two_parts(tmp_path):
    nets = {name: torch.nn.Conv2d(3, 4, 3).state_dict() for name in ("g", "d")}
    torch.save({**nets, "epoch": 7}, tmp_path / "f.pt")
    parts = torchfile.parts(torchfile.read_torch(tmp_path / "f.pt"))
    assert sorted(parts) == ["d", "g"]
    np.testing.assert_array_equal(parts["d"]["weight"], nets["d"]["weight"].numpy())
