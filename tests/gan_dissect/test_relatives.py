"""DCGANs of other frameworks, against the graph interpreter and against sums written out."""

import json

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect import check_generator, load_generator
from perturb import weights as weights_lib
from tests import graphnet

RNG = np.random.default_rng(0)
run = jax.jit(lambda g, z: g(z))


def norm(name, width):
    kinds = {
        "weight": (0.5, 1.5),
        "bias": (-1, 1),
        "running_mean": (-1, 1),
        "running_var": (0.2, 2),
    }
    return {f"{name}.{k}": RNG.uniform(*r, width).astype(np.float32) for k, r in kinds.items()}


def normal(*shape):
    # Signals keep their size, so that tanh at the end is not all -1 and 1.
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def pytorch_tensors(side=2, size=7):
    found = {"l1.0.weight": normal(16 * side**2, size), "l1.0.bias": normal(16 * side**2)}
    for conv, (o, i) in {2: (16, 16), 6: (8, 16), 9: (3, 8)}.items():
        found[f"conv_blocks.{conv}.weight"] = normal(o, i, 3, 3)
        found[f"conv_blocks.{conv}.bias"] = normal(o)
    for number, width in ((0, 16), (3, 16), (7, 8)):
        found |= norm(f"conv_blocks.{number}", width)
    return found


def described(side=2):
    """The same network in the graph format, whose interpreter is checked on its own."""
    nodes, last = [], "input"

    def add(name, op, **fields):
        nonlocal last
        nodes.append({"id": name, "op": op, "inputs": [last], **fields})
        last = name

    def conv(k):
        both = {"weight": f"conv_blocks.{k}.weight", "bias": f"conv_blocks.{k}.bias"}
        ones = {"stride": [1, 1], "dilation": [1, 1], "padding": [1] * 4, "groups": 1}
        add(f"conv_blocks.{k}", "conv2d", **both, **ones)

    def normed(k, eps):
        at = f"conv_blocks.{k}."
        names = {"mean": "running_mean", "var": "running_var", "scale": "weight", "bias": "bias"}
        add(f"conv_blocks.{k}", "batch_norm", eps=eps, **{a: at + b for a, b in names.items()})

    add("l1.0", "linear", weight="l1.0.weight", bias="l1.0.bias")
    add("reshape", "reshape", shape=[16, side, side])
    normed(0, 1e-5)
    for k in (2, 6):
        # The norm behind each convolution has .8 for an epsilon, as published; the first has the
        # usual one.
        add(f"up{k}", "upsample_nearest", scale=2)
        conv(k)
        normed(k + 1, 0.8)
        add(f"conv_blocks.{k + 2}", "leaky_relu", slope=0.2)
    conv(9)
    add("conv_blocks.10", "tanh")
    return graphnet.Graph(json.dumps({"nodes": nodes, "output": {"node": last}}))


def test_pytorch_gan():
    tensors = pytorch_tensors()
    generator = load_generator("pytorch_gan", weights=tensors)
    z = normal(4, 7) * 3
    graph = described()
    values = jax.jit(graph.nodes)(tensors, z)
    want = np.asarray(values["conv_blocks.10"]).transpose(0, 2, 3, 1)
    got = run(generator, z)["image"]
    np.testing.assert_allclose(got, (want + 1) / 2, atol=1e-5)
    assert check_generator(generator) == {"image": (8, 8, 3)}
    assert gan_dissect.layers(generator)["conv_blocks.8"] == (8, 8, 8)
    # .8 is the norms' epsilon: with PyTorch's default another picture comes out.
    usual = load_generator("pytorch_gan", weights=tensors, epsilon=1e-5)
    assert np.abs(run(usual, z)["image"] - got).max() > 0.01
    with pytest.raises(ValueError, match="1 missing"):
        load_generator(
            "pytorch_gan", weights={k: v for k, v in tensors.items() if k != "l1.0.bias"}
        )
    with pytest.raises(ValueError, match="no square of 16 channels"):
        load_generator(
            "pytorch_gan",
            weights=tensors | {"l1.0.weight": normal(16 * 3, 7), "l1.0.bias": normal(16 * 3)},
        )


def scatter(x, kernel, stride):
    """Keras's transposed convolution with "same" padding, from its definition; kernel (kh, kw, O,
    I).
    """
    b, h, w, _ = x.shape
    k = len(kernel)
    full = np.zeros((b, h * stride + k, w * stride + k, kernel.shape[2]))
    for i in range(h):
        for j in range(w):
            patch = np.einsum("bc,yxoc->byxo", x[:, i, j], kernel)
            full[:, i * stride : i * stride + k, j * stride : j * stride + k] += patch
    # It is the gradient of a convolution whose padding has its extra row at the end.
    begin = (k - stride) // 2
    return full[:, begin : begin + h * stride, begin : begin + w * stride]


@pytest.mark.parametrize("norms", [0, 1, 2])
def test_keras(norms):
    # The numbers of the layers begin at 4, as in a Keras session that built others before.
    tensors = {
        "dense/kernel": normal(5, 3 * 3 * 6),
        "dense/bias": normal(54),
        "conv2d_transpose_4/kernel": normal(5, 5, 4, 6),
        "conv2d_transpose_4/bias": normal(4),
        "conv2d_transpose_5/kernel": normal(4, 4, 2, 4),
    }
    widths = {0: [], 1: [4], 2: [54, 4]}[norms]
    for i, width in enumerate(widths):
        at = f"batch_normalization_{i}" if i else "batch_normalization"
        for theirs, low in (
            ("gamma", 0.5),
            ("beta", -1),
            ("moving_mean", -1),
            ("moving_variance", 0.5),
        ):
            tensors[f"{at}/{theirs}"] = RNG.uniform(low, 1.5, width).astype(np.float32)
    generator = load_generator("keras_dcgan", weights=tensors, activation="selu")
    z = normal(3, 5) * 3

    def normed(x, i):
        if i >= len(widths):
            return x
        at = f"batch_normalization_{i}" if i else "batch_normalization"
        t = {k: tensors[f"{at}/{k}"] for k in ("gamma", "beta", "moving_mean", "moving_variance")}
        # Keras's own epsilon is 1e-3, a hundred times PyTorch's.
        return (x - t["moving_mean"]) / np.sqrt(t["moving_variance"] + 1e-3) * t["gamma"] + t[
            "beta"
        ]

    def selu(x):
        return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))

    x = z @ tensors["dense/kernel"] + tensors["dense/bias"]
    x = selu(normed(x, 0) if norms == 2 else x).reshape(3, 3, 3, 6)
    x = scatter(x, tensors["conv2d_transpose_4/kernel"], 2) + tensors["conv2d_transpose_4/bias"]
    x = selu(normed(x, 1) if norms == 2 else normed(x, 0))
    x = np.tanh(scatter(x, tensors["conv2d_transpose_5/kernel"], 2))
    np.testing.assert_allclose(run(generator, z)["image"], (x + 1) / 2, atol=1e-5)
    assert gan_dissect.layers(generator)["conv2d_transpose_4:out"] == (6, 6, 4)


def test_keras_errors():
    tensors = {"dense/kernel": normal(5, 54), "conv2d_transpose/kernel": normal(5, 5, 4, 6)}
    for options, match in (
        ({"strides": (2, 2)}, "strides must be one for each of the 1"),
        ({"activation": "gelu"}, "activation must be one of relu"),
        ({"last": "relu"}, "last tanh or sigmoid"),
    ):
        with pytest.raises(ValueError, match=match):
            load_generator("keras_dcgan", weights=tensors, **options)
    with pytest.raises(ValueError, match="no tensors dense/kernel"):
        load_generator("keras_dcgan", weights={"a": normal(2)})
    extra = {f"batch_normalization_{i}/gamma": normal(4) for i in range(2)}
    with pytest.raises(ValueError, match="2 norms for 1 convolutions"):
        load_generator("keras_dcgan", weights=tensors | extra)
    with pytest.raises(ValueError, match="no square of 6 channels"):
        load_generator("keras_dcgan", weights=tensors | {"dense/kernel": normal(5, 50)})


def test_kernels_of_theano(data_dir):
    """The arrays as Theano saved them are the file's turned around; taken as they are, another
    picture.
    """
    tensors = weights_lib.read_tensors(data_dir / "weights" / "svhn_dcgan_generator.safetensors")
    raw = {k: v[:, :, ::-1, ::-1] if v.ndim == 4 else v for k, v in tensors.items()}
    golden = np.load(data_dir / "golden" / "svhn_dcgan_generator_frozen.npz")
    want = (golden["output"].transpose(0, 2, 3, 1) + 1) / 2
    got = run(load_generator("svhn_dcgan", weights=raw, turned=False), golden["input"])["image"]
    np.testing.assert_allclose(got, want, atol=1e-5)
    # The other reading must be another picture, or the option would do nothing.
    wrong = run(load_generator("svhn_dcgan", weights=raw), golden["input"])["image"]
    assert np.abs(wrong - want).max() > 0.1
