"""Weights between two layers of one stack in every framework: the composed kernel."""

import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import adapters, taps
from perturb.internals import circuits

pytestmark = pytest.mark.filterwarnings("ignore")

SIDE, WIDTHS = 12, (3, 4, 5, 6)
OPTIONS = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def kernels():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(3, 3, a, b)).astype(np.float32) for a, b in itertools.pairwise(WIDTHS)]


def linen():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, width in enumerate(WIDTHS[1:]):
                x = nn.Conv(width, (3, 3), use_bias=False, name=f"conv{i}")(x)
            return x.mean((1, 2))

    params = {f"conv{i}": {"kernel": k} for i, k in enumerate(kernels())}
    return adapters.from_linen(Net(), {"params": params}, **OPTIONS)


def nnx():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self):
            self.convs = nnx.List(
                [
                    nnx.Conv(a, b, (3, 3), use_bias=False, rngs=nnx.Rngs(0))
                    for a, b in itertools.pairwise(WIDTHS)
                ]
            )
            for conv, kernel in zip(self.convs, kernels(), strict=True):
                conv.kernel = nnx.Param(jnp.asarray(kernel))

        def __call__(self, x):
            for conv in self.convs:
                x = conv(x)
            return x.mean((1, 2))

    return adapters.from_nnx(Net(), **OPTIONS)


def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="use `make adapters`")
    layers = keras.layers
    convs = [layers.Conv2D(w, 3, padding="same", use_bias=False) for w in WIDTHS[1:]]
    net = keras.Sequential([layers.Input((SIDE, SIDE, 3)), *convs, layers.GlobalAveragePooling2D()])
    for layer, kernel in zip(net.layers, kernels(), strict=False):
        layer.set_weights([kernel])
    return adapters.from_keras(net, **OPTIONS)


def torch():
    torch = pytest.importorskip("torch", reason="use `make adapters`")
    pytest.importorskip("torchax", reason="use `make adapters`")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = torch.nn.Sequential(
                *(
                    torch.nn.Conv2d(a, b, 3, padding=1, bias=False)
                    for a, b in itertools.pairwise(WIDTHS)
                )
            )
            for conv, kernel in zip(self.convs, kernels(), strict=True):
                conv.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))

        def forward(self, x):
            return self.convs(x).mean((2, 3))

    return adapters.from_torch(Net(), **OPTIONS)


@pytest.mark.slow_cases
@pytest.mark.parametrize("framework", [linen, nnx, keras, torch])
def test_expanded_weights_are_the_composed_kernel(framework):
    model = framework()
    x = np.random.default_rng(1).random((2, SIDE, SIDE, 3), np.float32)
    # By shape, since every framework has names of its own: what the first and the last layer give.
    found = {
        n: s.shape for n, s in taps.names(model, jax.ShapeDtypeStruct(x.shape, x.dtype)).items()
    }
    axis = 1 if model.channels_first else 3
    lower, upper = (
        next(n for n, s in found.items() if len(s) == 4 and s[axis] == w)
        for w in (WIDTHS[1], WIDTHS[3])
    )
    got = circuits.expanded_weights(model, x, lower=lower, upper=upper, unit=2).weights
    got = np.moveaxis(got, 0, -1) if model.channels_first else got
    _, two, three = kernels()
    wanted, middle = np.zeros((SIDE, SIDE, WIDTHS[1])), SIDE // 2 - 2
    for dy, dx, ey, ex in np.ndindex(3, 3, 3, 3):
        path = two[ey, ex].astype(np.float64) @ three[dy, dx, :, 2]
        wanted[middle + dy + ey, middle + dx + ex] += path
    assert np.abs(got - wanted).max() <= 1e-6 * np.abs(wanted).max()
