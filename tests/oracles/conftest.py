"""Fixtures of the comparisons with the originals, which run in an environment with PyTorch."""

import os
import pathlib

import pytest

torch = pytest.importorskip("torch", reason="the originals need PyTorch: use `make oracles`")

from launch import rival  # noqa: E402

rival.torchvision()  # torchray imports it


@pytest.fixture(scope="session")
def torch_squeezenet(data_dir: pathlib.Path):
    """SqueezeNet 1.1 in PyTorch with the real weights, by dtype; the input is normalised NCHW."""
    from safetensors.torch import load_file

    stored = load_file(os.fspath(data_dir / "weights" / "squeezenet1_1.safetensors"))
    functional = torch.nn.functional

    class SqueezeNet(torch.nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.stored = {name: w.to(dtype) for name, w in stored.items()}

        def forward(self, x):
            def conv(x, name, **kwargs):
                kernel, bias = self.stored[f"{name}.weight"], self.stored[f"{name}.bias"]
                return functional.relu(functional.conv2d(x, kernel, bias, **kwargs))

            x = conv(x, "features.0", stride=2)
            for i in range(2, 13):
                if i in (2, 5, 8):
                    x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
                    continue
                s = conv(x, f"features.{i}.squeeze")
                one = conv(s, f"features.{i}.expand1x1")
                x = torch.cat([one, conv(s, f"features.{i}.expand3x3", padding=1)], 1)
            return conv(x, "classifier.1").mean((2, 3))

    return {dtype: SqueezeNet(dtype).eval() for dtype in (torch.float32, torch.float64)}
