"""One small network in every framework: convolution, batch norm, relu, grouped convolution, mean,
dense.

Each function returns `(model, own, layer, width)`: the adapted model, the framework's own
`images [B, H, W, 3] in [0, 1] -> (logits, gradient of (logits * TOWARDS).sum())`, in which the same
normalisation is written by hand, and an inner activation with the number of its channels.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import adapters

MEAN, STD = np.float32([0.4, 0.5, 0.6]), np.float32([0.2, 0.3, 0.25])
OPTIONS = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "class_names": tuple("abcde")}
# Weights of either sign: all classes have a part in the gradient, and none the same.
TOWARDS = np.float32([1, -2, 0.5, 3, -1])


def by_jax(logits):
    """The framework's own outputs and gradient, where it differentiates with JAX."""

    def paid(images):
        y = logits((images - MEAN) / STD)
        return (y * TOWARDS).sum(), y

    def own(images):
        gradient, y = jax.grad(paid, has_aux=True)(jnp.asarray(images))
        return np.asarray(y), np.asarray(gradient)

    return own


def linen():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=True):
            x = nn.Conv(8, (3, 3), name="stem")(x)
            x = jax.nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
            x = nn.Conv(8, (3, 3), feature_group_count=4, name="grouped")(x)
            return nn.Dense(5, name="head")(x.mean((1, 2)))

    net, images = Net(), np.random.default_rng(1).random((8, 16, 16, 3), np.float32)
    variables = net.init(jax.random.key(0), images)
    # Moves the statistics off 0 and 1, with which a norm that is left out would hardly show.
    _, stats = net.apply(variables, 3 * images, mutable=["batch_stats"])
    variables = {**variables, **stats}
    model = adapters.from_linen(net, variables, train=False, **OPTIONS)
    return model, by_jax(lambda x: net.apply(variables, x, train=False)), "stem", 8


def nnx():
    from flax import nnx

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.drop = nnx.BatchNorm(8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.grouped = nnx.Conv(8, 8, (3, 3), feature_group_count=4, rngs=rngs)

        def __call__(self, x):
            return self.grouped(jax.nn.relu(self.drop(self.norm(x))))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.blocks = nnx.List([Block(rngs)])
            self.head = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean((1, 2)))

    net = Net(nnx.Rngs(0))
    net(3 * np.random.default_rng(1).random((8, 16, 16, 3), np.float32))  # moves the statistics
    # Adapted while in training, dropout and all: the adapter must look at a copy.
    model = adapters.from_nnx(net, **OPTIONS)
    assert not net.blocks[0].drop.deterministic  # left alone
    net.eval()
    return model, by_jax(net), "blocks.0/norm", 8


def keras():
    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is not installed: use `make adapters`")
    layers = keras.layers
    net = keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(8, 3, padding="same", name="stem"),
            layers.BatchNormalization(name="norm"),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Conv2D(8, 3, padding="same", groups=4, name="grouped"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, name="head"),
        ]
    )
    for _ in range(3):
        net(3 * np.random.default_rng(1).random((8, 16, 16, 3), np.float32), training=True)
    model = adapters.from_keras(net, **OPTIONS)
    return model, by_jax(lambda x: net(x, training=False)), "norm", 8


def equinox():
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed: use `make adapters`")
    keys = jax.random.split(jax.random.key(0), 3)

    class Net(eqx.Module):
        stem: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        drop: eqx.nn.Dropout
        grouped: eqx.nn.Conv2d
        head: eqx.nn.Linear

        def __init__(self):
            self.stem = eqx.nn.Conv2d(3, 8, 3, padding=1, key=keys[0])
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
            self.drop = eqx.nn.Dropout(0.5)
            self.grouped = eqx.nn.Conv2d(8, 8, 3, padding=1, groups=4, key=keys[1])
            self.head = eqx.nn.Linear(8, 5, key=keys[2])

        def __call__(self, x, state):
            x, state = self.norm(self.stem(x), state)
            return self.head(self.grouped(self.drop(jax.nn.relu(x))).mean((1, 2))), state

    net, state = eqx.nn.make_with_state(Net)()
    images = 3 * np.random.default_rng(1).random((8, 3, 16, 16), np.float32)
    run = eqx.nn.inference_mode(net, value=False)
    run = eqx.tree_at(lambda n: n.drop, run, eqx.nn.Identity())
    _, state = jax.vmap(run, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(
        images, state
    )
    still = eqx.nn.inference_mode(net)
    model = adapters.from_equinox(net, state, **OPTIONS)

    def logits(x):
        return jax.vmap(lambda v: still(v, state)[0], axis_name="batch")(x.transpose(0, 3, 1, 2))

    return model, by_jax(logits), "eqx.nn.Conv", 8


def torch():
    torch = pytest.importorskip("torch", reason="torchax is not installed: use `make adapters`")
    pytest.importorskip("torchax", reason="torchax is not installed: use `make adapters`")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 3, padding=1)
            self.block = torch.nn.Sequential(
                torch.nn.BatchNorm2d(8),
                torch.nn.ReLU(),
                torch.nn.Dropout(),
                torch.nn.Conv2d(8, 8, 3, padding=1, groups=4),
            )
            self.up = torch.nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8)
            self.head = torch.nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.up(self.block(self.stem(x))).mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    net(3 * torch.rand(8, 3, 16, 16))
    model = adapters.from_torch(net, **OPTIONS)
    assert net.training  # left alone
    net.eval()

    def own(images):
        x = torch.tensor(np.asarray(images), requires_grad=True)
        y = net(((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2))
        (y * torch.tensor(TOWARDS)).sum().backward()
        return y.detach().numpy(), x.grad.numpy()

    return model, own, "block/0", 8
