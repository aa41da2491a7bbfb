"""Six small architectures written once, and built in every framework with the same weights.

An architecture is a function `(o, x) -> [B, 5]` in words that the module in torch and `Jax` both
speak: `o.conv` and so on. Weights come from their names. "probe" is a layer inside, "late" the last
one with places.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import taps

SIDE, WIDTH = 32, 8


def drawn(name, shape):
    """Weights of a name, whoever asks; of the size that keeps signals about as large."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    scale = np.sqrt(2 / max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 0.3
    return (scale * rng.standard_normal(shape)).astype(np.float32)


def resnet(o, x):
    x = o.relu(o.affine("n0", o.conv("stem", x, stride=2)))
    y = o.relu(o.affine("n1", o.conv("a1", x)))
    x = o.tag("probe", o.relu(x + o.conv("a2", y)))
    y = o.conv("b2", o.relu(o.conv("b1", x, stride=2)))
    return o.end(o.relu(y + o.conv("by", x, stride=2, k=1)))


def densenet(o, x):
    x = o.relu(o.conv("stem", x, stride=2))
    for name in "ab":
        x = o.cat(x, o.relu(o.affine(f"n{name}", o.conv(name, x))))
    x = o.relu(o.conv("transition", o.tag("probe", x), stride=2, k=1))
    return o.end(o.cat(x, o.relu(o.conv("c", x))))


def mobilenet(o, x):
    x = o.relu(o.conv("stem", x, stride=2))
    y = o.relu(o.conv("up", x, out=2 * WIDTH, k=1))
    y = o.tag("probe", o.relu(o.conv("deep", y, out=2 * WIDTH, groups=2 * WIDTH)))
    # Squeeze and excitation: a gate a channel.
    gate = o.sigmoid(o.dense("s2", o.relu(o.dense("s1", o.mean(y), 4)), 2 * WIDTH))
    x = x + o.conv("down", o.gated(y, gate), k=1)
    return o.end(o.relu(o.conv("last", x, stride=2)))


def convnext(o, x):
    x = o.conv("patch", x, stride=4, k=4)
    for name in "ab":
        y = o.norm(f"n{name}", o.last(o.conv(f"deep{name}", x, groups=WIDTH)))
        y = o.gelu(o.dense(f"up{name}", y, 2 * WIDTH))
        y = o.tag("probe", y) if name == "a" else y
        x = x + o.back(o.dense(f"down{name}", y, WIDTH))
    return o.end(o.relu(o.conv("end", x, k=1)))


def attended(o, name, x):
    """Tokens `[..., N, C]`, one head."""
    q, k, v = (o.dense(f"{name}{part}", x, WIDTH) for part in "qkv")
    return o.dense(f"{name}o", o.mixed(q, k, v), WIDTH)


def block(o, name, x, probe=False):
    y = o.norm(f"{name}n1", x)
    x = x + attended(o, name, o.tag("probe", y) if probe else y)
    y = o.relu(o.dense(f"{name}up", o.norm(f"{name}n2", x), 2 * WIDTH))
    return x + o.dense(f"{name}down", y, WIDTH)


def vit(o, x):
    x = o.last(o.conv("patch", x, stride=8, k=8))
    x = o.with_class("class", x.reshape(len(x), 16, WIDTH))
    x = block(o, "b", block(o, "a", x), probe=True)
    # By the mean of all tokens: with the class token alone no place would answer behind it.
    return o.end(o.relu(o.dense("up", x, WIDTH)), tokens=True)


def swin(o, x):
    x = o.last(o.conv("patch", x, stride=4, k=4))
    for name, shift in (("a", 0), ("b", 2)):
        y = o.norm(f"{name}n", x)
        y = o.tag("probe", y) if shift else y
        y = o.roll(y, -shift).reshape(len(x), 2, 4, 2, 4, WIDTH)
        y = o.swapped(y, 2, 3).reshape(len(x), 4, 16, WIDTH)
        y = o.swapped(attended(o, name, y).reshape(len(x), 2, 2, 4, 4, WIDTH), 2, 3)
        x = x + o.roll(y.reshape(len(x), 8, 8, WIDTH), shift)
    # Four neighbours become one place.
    x = o.joined([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    return o.end(o.relu(o.dense("merge", x, WIDTH)), tokens=True)


NETS = {f.__name__: f for f in (resnet, densenet, mobilenet, convnext, vit, swin)}


class Jax:
    """The words in JAX; `first` where channels are the second axis."""

    def __init__(self, weight, first):
        self.weight, self.first = weight, first
        self.letters = "NCHW" if first else "NHWC"

    relu = staticmethod(jax.nn.relu)
    sigmoid = staticmethod(jax.nn.sigmoid)

    def tag(self, name, x):
        return taps.tag(x, name)

    def gelu(self, x):
        return jax.nn.gelu(x, approximate=False)

    def conv(self, name, x, out=WIDTH, k=3, stride=1, groups=1):
        into = x.shape[1 if self.first else 3]
        w = self.weight(name, (out, into // groups, k, k))
        pad = 0 if k == stride else (k - 1) // 2
        y = jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=(self.letters, "OIHW", self.letters),
            feature_group_count=groups,
        )
        return y + self.lifted(self.weight(f"{name}_b", (out,)))

    def lifted(self, v):
        return v[..., None, None] if self.first else v

    def affine(self, name, x):
        size = (x.shape[1 if self.first else 3],)
        scale, shift = (self.lifted(self.weight(f"{name}_{p}", size)) for p in "sb")
        return x * (1 + scale) + shift

    def dense(self, name, x, out):
        return x @ self.weight(name, (out, x.shape[-1])).T + self.weight(f"{name}_b", (out,))

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return x * (1 + self.weight(f"{name}_s", x.shape[-1:])) + self.weight(
            f"{name}_b", x.shape[-1:]
        )

    def last(self, x):
        return x.transpose(0, 2, 3, 1) if self.first else x

    def back(self, x):
        return x.transpose(0, 3, 1, 2) if self.first else x

    def mean(self, x):
        return x.mean((2, 3) if self.first else (1, 2))

    def gated(self, x, gate):
        return x * (gate[..., None, None] if self.first else gate[:, None, None])

    def cat(self, *parts):
        return jnp.concatenate(parts, 1 if self.first else 3)

    def joined(self, parts):
        return jnp.concatenate(parts, -1)

    def mixed(self, q, k, v):
        return jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(WIDTH), -1) @ v

    def swapped(self, x, a, b):
        return x.swapaxes(a, b)

    def roll(self, x, by):
        return jnp.roll(x, (by, by), (1, 2))

    def with_class(self, name, x):
        token = self.weight(name, (1, WIDTH))
        return jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, WIDTH)), x], 1)

    def end(self, x, tokens=False):
        x = self.tag("late", x)
        x = x.mean(tuple(range(1, x.ndim - 1))) if tokens else self.mean(x)
        return self.dense("head", self.relu(self.dense("neck", x, WIDTH)), 5)


def equinox(net):
    eqx = pytest.importorskip("equinox", reason="Equinox is not installed: use `make adapters`")
    from perturb import adapters

    class Net(eqx.Module):
        values: tuple
        names: tuple = eqx.field(static=True)

        def __call__(self, x):
            w = dict(zip(self.names, self.values, strict=True))
            # Equinox's modules take one picture.
            return net(Jax(lambda n, _: w[n], first=True), x[None])[0]

    given = weights(net)
    return adapters.from_equinox(Net(tuple(given.values()), tuple(given)))


def keras(net):
    import os

    os.environ.setdefault("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras", reason="Keras is not installed: use `make adapters`")
    from perturb import adapters

    class Net(keras.layers.Layer):
        def build(self, shape):
            self.w = {}
            for name, value in weights(net).items():
                self.w[name] = self.add_weight(shape=value.shape, name=name)
                self.w[name].assign(value)

        def compute_output_shape(self, shape):
            # Said, for a batch of unknown size cannot be traced through windows.
            return shape[0], 5

        def call(self, x):
            return net(Jax(lambda n, _: self.w[n].value, first=False), x)

    model = keras.Sequential([keras.layers.Input((SIDE, SIDE, 3)), Net(name="net")])
    return adapters.from_keras(model)


def linen(net):
    import flax.linen as nn

    from perturb import adapters

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            given = weights(net)
            return net(Jax(lambda n, _: self.param(n, lambda key: given[n]), first=False), x)

    return adapters.from_linen(Net(), {"params": weights(net)})


def weights(net):
    """All weights of an architecture, by name."""
    found = {}

    def weight(name, shape):
        # NumPy's: an array that JAX made while tracing could not leave the trace.
        return found.setdefault(name, drawn(name, shape))

    jax.eval_shape(lambda x: net(Jax(weight, first=False), x), jnp.zeros((1, SIDE, SIDE, 3)))
    return {name: jnp.asarray(value) for name, value in found.items()}


def torch_net(net, excite=False):
    """The module in torch; with `excite` its last products have the rule of excitation."""
    torch = pytest.importorskip("torch", reason="torch is not installed: use `make adapters`")
    F = torch.nn.functional

    class Flow(torch.autograd.Function):
        """`x w^T`, whose derivative hands shares on by what they bring (Zhang et al. 2016)."""

        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w.T

        @staticmethod
        def backward(ctx, r):
            x, w = (t.clamp(min=0) for t in ctx.saved_tensors)
            return x * ((r / (x @ w.T + 1e-20)) @ w), None

    def product(x, w):
        return Flow.apply(x, w) if excite else x @ w.T

    class Mark(torch.nn.Module):
        """A layer that has a name and changes nothing; an Identity would not be in a trace."""

        def forward(self, x):
            return x * 1.0

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.ParameterDict(
                {n: torch.nn.Parameter(torch.tensor(np.array(v))) for n, v in weights(net).items()}
            )
            self.probe, self.late = Mark(), Mark()

        relu, sigmoid = staticmethod(F.relu), staticmethod(torch.sigmoid)
        gelu, cat = staticmethod(F.gelu), staticmethod(lambda *parts: torch.cat(parts, 1))
        joined = staticmethod(lambda parts: torch.cat(parts, -1))
        roll = staticmethod(lambda x, by: torch.roll(x, (by, by), (1, 2)))
        swapped = staticmethod(lambda x, a, b: x.transpose(a, b))
        last = staticmethod(lambda x: x.permute(0, 2, 3, 1))
        back = staticmethod(lambda x: x.permute(0, 3, 1, 2))
        gated = staticmethod(lambda x, gate: x * gate[:, :, None, None])

        def tag(self, name, x):
            return getattr(self, name)(x)

        def conv(self, name, x, out=WIDTH, k=3, stride=1, groups=1):
            pad = 0 if k == stride else (k - 1) // 2
            return F.conv2d(x, self.w[name], self.w[f"{name}_b"], stride, pad, 1, groups)

        def affine(self, name, x):
            scale, shift = (self.w[f"{name}_{p}"][:, None, None] for p in "sb")
            return x * (1 + scale) + shift

        def dense(self, name, x, out):
            return product(x, self.w[name]) + self.w[f"{name}_b"]

        def norm(self, name, x):
            return F.layer_norm(
                x, x.shape[-1:], 1 + self.w[f"{name}_s"], self.w[f"{name}_b"], eps=1e-5
            )

        def mean(self, x):
            return self.averaged(x.flatten(2))

        def averaged(self, x):
            if not excite:
                return x.mean(-1)
            # A mean is a sum, each place of which gets its share, and a factor that passes all on.
            ones = torch.ones(1, x.shape[-1])
            y = Flow.apply(x, ones)[..., 0]
            return y + (y / x.shape[-1] - y).detach()

        def mixed(self, q, k, v):
            return torch.softmax(q @ k.transpose(-1, -2) / WIDTH**0.5, -1) @ v

        def with_class(self, name, x):
            return torch.cat([self.w[name].expand(len(x), 1, WIDTH), x], 1)

        def end(self, x, tokens=False):
            x = self.late(x)
            x = x.flatten(1, -2).transpose(1, 2) if tokens else x.flatten(2)
            return self.dense("head", self.relu(self.dense("neck", self.averaged(x), WIDTH)), 5)

        def forward(self, x):
            return net(self, x)

    return Net().eval()
