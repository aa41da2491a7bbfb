"""The graph format of the real networks as a JAX function, for tests.

A description `NAME.json` lists nodes in execution order, its tensors lie in `NAME.safetensors`; the
meaning of every op stands in GRAPH_FORMAT.md of the data folder. Arrays are NCHW as described;
every node runs under `jax.named_scope(its id)`.

    apply, variables = graphnet.load(data_dir / "weights" / "mnist_lenet5.json")
    logits = apply(variables, digits)  # [N, 1, 32, 32] -> [N, 10]
    model = graphnet.model(data_dir / "weights" / "mnist_lenet5.json", channels=1)  # images NHWC
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from perturb import weights as weights_lib
from perturb.model import Model

NCHW = ("NCHW", "OIHW", "NCHW")


@dataclasses.dataclass(frozen=True)
class Graph:
    """A description as a function `(variables, input, **inputs) -> outputs`, hashable by its
    text.
    """

    text: str = dataclasses.field(repr=False)

    @property
    def description(self) -> dict[str, Any]:
        return _parse(self.text)

    def __call__(self, variables, x, **inputs):
        """Returns the output node's value, or `{node: value}` where the network has several."""
        values = self.nodes(variables, x, **inputs)
        name = self.description["output"]["node"]
        return values[name] if isinstance(name, str) else {n: values[n] for n in name}

    def nodes(self, variables, x, **inputs):
        """Returns `{node id: value}` of every node, in execution order."""
        values = {"input": jnp.asarray(x), **inputs}
        for node in self.description["nodes"]:
            fields = {k: v for k, v in node.items() if k not in ("id", "op", "inputs")}
            fields |= {k: variables[name] for k, name in _tensors(node).items()}
            with jax.named_scope(node["id"]):
                args = [values[name] for name in node["inputs"]]
                values[node["id"]] = OPS[node["op"]](*args, **fields)
        return {node["id"]: values[node["id"]] for node in self.description["nodes"]}


def load(path):
    """Returns `(apply, variables)` of a description: the `Graph`, and `{tensor name: array}`."""
    path = pathlib.Path(path)
    graph = Graph(path.read_text())
    # The name may hold folders of where it was written: the file lies beside the description.
    weights = path.parent / pathlib.Path(graph.description["weights_file"]).name
    tensors = weights_lib.read_tensors(weights)
    used = {name for node in graph.description["nodes"] for name in _tensors(node).values()}
    return graph, {name: jnp.asarray(tensors[name]) for name in sorted(used)}


@dataclasses.dataclass(frozen=True)
class GraphModel:
    """A graph on images `[B, H, W, C]` in [0, 1]; maps come back as `[B, H, W, classes]`."""

    graph: Graph
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool

    def __call__(self, variables, images):
        x = images[..., ::-1] if self.bgr else images
        x = (x - np.float32(self.mean).reshape(1, 1, 1, -1)) / np.float32(self.std).reshape(
            1, 1, 1, -1
        )
        y = self.graph(variables, x.transpose(0, 3, 1, 2))
        return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


def model(path, *, mean=(0.0,), std=(1.0,), bgr=False, **fields):
    """Returns a classifier or a segmentation network as a `Model`.

    Args:
      path: of the description.
      mean, std: one value or one a channel; the graph sees `(images - mean) / std`, after `bgr`.
      bgr: reverse the channels first.
      **fields: further fields of `Model`.
    """
    graph, variables = load(path)
    fields = {"name": graph.description["name"], **fields}
    return Model(GraphModel(graph, tuple(mean), tuple(std), bgr), variables, **fields)


@functools.lru_cache(maxsize=64)
def _parse(text):
    return json.loads(text)


def _tensors(node):
    """The fields of a node that name tensors; the `scale` of an upsampling is a number."""
    named = ("weight", "bias", "scale", "mean", "var")
    return {field: node[field] for field in named if isinstance(node.get(field), str)}


def _channels(v):
    """A per-channel vector, to be broadcast over [N, C, H, W]."""
    return v[None, :, None, None]


def _conv2d(x, weight, bias, stride, padding, dilation, groups):
    top, bottom, left, right = padding
    y = lax.conv_general_dilated(
        x,
        weight,
        stride,
        [(top, bottom), (left, right)],
        rhs_dilation=dilation,
        dimension_numbers=NCHW,
        feature_group_count=groups,
    )
    return y if bias is None else y + _channels(bias)


def _conv_transpose2d(x, weight, bias, stride, crop):
    # Scattering a kernel is correlating the stretched input with the kernel turned around.
    kernel = weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    edges = [(k - 1, k - 1) for k in weight.shape[2:]]
    y = lax.conv_general_dilated(
        x, kernel, (1, 1), edges, lhs_dilation=stride, dimension_numbers=NCHW
    )
    top, bottom, left, right = crop
    y = y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]
    return y if bias is None else y + _channels(bias)


def _norm(x, mean, var, scale, bias, eps):
    lift = _channels if x.ndim == 4 else lambda v: v[None]
    y = (x - lift(mean)) / jnp.sqrt(lift(var) + eps)
    y = y if scale is None else y * lift(scale)
    return y if bias is None else y + lift(bias)


def _batch_norm_batch_stats(x, scale, bias, eps):
    axes = (0,) if x.ndim == 2 else (0, 2, 3)
    return _norm(x, x.mean(axes), x.var(axes), scale, bias, eps)


def _linear(x, weight, bias):
    y = x @ weight.T
    return y if bias is None else y + bias[None]


def _windows(n, kernel, stride, padding, ceil_mode):
    """(before, after) padding of one axis so that VALID windows are those that the op means."""
    span = n + 2 * padding - kernel
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= n + padding:
        count -= 1  # a window must not start behind the image
    return padding, (count - 1) * stride + kernel - n - padding


def _pool(x, kernel, stride, padding, ceil_mode, start, op):
    edges = [
        _windows(*axis, ceil_mode)
        for axis in zip(x.shape[2:], kernel, stride, padding, strict=True)
    ]
    # Negative padding cuts off what no window reaches.
    x = lax.pad(x, np.float32(start), [(0, 0, 0), (0, 0, 0), *[(a, b, 0) for a, b in edges]])
    return lax.reduce_window(x, start, op, (1, 1, *kernel), (1, 1, *stride), "VALID")


def _max_pool2d(x, kernel, stride, padding, ceil_mode):
    return _pool(x, kernel, stride, padding, ceil_mode, -np.inf, lax.max)


def _avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad):
    pool = functools.partial(
        _pool,
        kernel=kernel,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        start=0.0,
        op=lax.add,
    )
    if count_include_pad:
        return pool(x) / (kernel[0] * kernel[1])
    # Windows that hang over the edge hold fewer pixels: a pool of ones counts them.
    return pool(x) / pool(jnp.ones_like(x))


def _subsample_pad_channels(x, pad_front, pad_back):
    return jnp.pad(x[:, :, ::2, ::2], [(0, 0), (pad_front, pad_back), (0, 0), (0, 0)])


def _resize_bilinear(x, size, align_corners):
    for axis, to in zip((2, 3), size, strict=True):
        n = x.shape[axis]
        if align_corners:
            at = np.arange(to) * ((n - 1) / max(to - 1, 1))
        else:
            # Beyond the outermost centres the outermost value goes on, as in torch.
            at = np.clip((np.arange(to) + 0.5) * (n / to) - 0.5, 0, n - 1)
        low = np.minimum(np.floor(at).astype(int), n - 1)
        high, share = np.minimum(low + 1, n - 1), (at - low).astype(np.float32)
        share = share.reshape([-1 if i == axis else 1 for i in range(4)])
        x = jnp.take(x, low, axis) * (1 - share) + jnp.take(x, high, axis) * share
    return x


def _upsample_nearest(x, scale):
    return x.repeat(scale, 2).repeat(scale, 3)


OPS = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "batch_norm": _norm,
    "batch_norm_batch_stats": _batch_norm_batch_stats,
    "linear": _linear,
    "embedding": lambda x, weight: weight[x],
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": lambda x: x.mean((2, 3)),
    "global_avg_pool_keepdims": lambda x: x.mean((2, 3), keepdims=True),
    "broadcast_spatial_like": lambda x, like: jnp.broadcast_to(x, (*x.shape[:2], *like.shape[2:])),
    "subsample_pad_channels": _subsample_pad_channels,
    "concat": lambda *xs, axis: jnp.concatenate(xs, axis),
    "add": lambda a, b: a + b,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "selu": jax.nn.selu,
    "flatten": lambda x: x.reshape(len(x), -1),
    "relu6": jax.nn.relu6,
    "leaky_relu": lambda x, slope: jax.nn.leaky_relu(x, slope),
    "prelu": lambda x, weight: jnp.where(x >= 0, x, x * _channels(weight)),
    "reshape": lambda x, shape: x.reshape(len(x), *shape),
    "transpose_hwc_to_chw": lambda x: x.transpose(0, 3, 1, 2),
    "upsample_nearest": _upsample_nearest,
    "resize_bilinear": _resize_bilinear,
}
