"""The named nets against goldens of their source frameworks, real photographs and published
sizes.
"""

import csv
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from perturb import check_model, check_parity, load_model, nets
from perturb import weights as weights_lib
from perturb.nets import vgg
from perturb.nets._net import IMAGENET_MEAN, IMAGENET_STD
from perturb.weights import filling
from tests import graphnet

# Net, and the name of its real weights.
REAL = {
    "squeezenet1_1": "squeezenet1_1",
    "mobilenet_v2_tf": "mobilenet_v2_1.0_224",
    "cifar_resnet20": "cifar10_resnet20",
    "cifar_resnet56": "cifar10_resnet56",
}
run = jax.jit(lambda model, images: model(images))


@functools.cache
def drawn(name):
    return load_model(name, key=jax.random.key(0))


def real(data_dir, name, **options):
    weights = data_dir / "weights" / f"{REAL[name]}.safetensors"
    return load_model(name, weights=weights, **options)


def as_file(model, separator="."):
    """The tensors of a model, as its weight file would hold them."""
    tensors = {}
    leaves = filling._leaves(model.variables)
    # From HWIO and IO to OIHW and OI, the order of PyTorch's files.
    back = {4: lambda w: w.transpose(3, 2, 0, 1), 2: lambda w: w.T, 1: lambda w: w}
    for name, slot in weights_lib.slots(model.variables, separator=separator).items():
        tensors[name] = back[leaves[slot.path].ndim](np.asarray(leaves[slot.path]))
    return tensors


@pytest.mark.slow_cases
@pytest.mark.parametrize("name", REAL)
def test_goldens(data_dir, name):
    model = real(data_dir, name)
    golden = np.load(data_dir / "golden" / f"{REAL[name]}.npz")
    mean, std = np.float32(model.apply.mean), np.float32(model.apply.std)
    x = golden["input"].transpose(0, 2, 3, 1) * std + mean
    # Twice the four images: batches of eight run the program that the photographs run.
    got = run(model, np.concatenate([x, x]))
    expected = golden["output"]
    tolerance = 1e-4 * np.abs(expected).max()
    if name.endswith("_tf"):
        expected = expected[:, 1:]  # the background class
    np.testing.assert_allclose(got, np.concatenate([expected] * 2), atol=tolerance, rtol=0)


def photographs(data_dir, geometry):
    with open(data_dir / "imagenet" / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    pixels = []
    for row in rows:
        with PIL.Image.open(data_dir / "imagenet" / row["file"]) as image:
            pixels.append(geometry.apply(image.convert("RGB"))[0])
    return np.stack(pixels), np.array([int(row["index"]) for row in rows])


@pytest.mark.slow_cases
@pytest.mark.parametrize(("name", "correct"), [("squeezenet1_1", 71), ("mobilenet_v2_tf", 94)])
def test_top1_on_photographs(data_dir, name, correct):
    model = real(data_dir, name)
    images, labels = photographs(data_dir, model.geometry)
    assert len(images) == 120
    logits = np.concatenate([run(model, images[i : i + 8]) for i in range(0, 120, 8)])
    # Counted once with these weights; one photograph more or less would be another computation.
    assert (logits.argmax(1) == labels).sum() == correct


@pytest.mark.slow
def test_top1_on_cifar(data_dir):
    data = np.load(data_dir / "cifar10" / "test_1000.npz")
    model = real(data_dir, "cifar_resnet20", class_names=[str(n) for n in data["class_names"]])
    images = np.stack([model.geometry.apply(PIL.Image.fromarray(i))[0] for i in data["images"]])
    logits = np.concatenate([run(model, images[i : i + 250]) for i in range(0, 1000, 250)])
    assert (logits.argmax(1) == data["labels"]).sum() == 804


def test_every_name_has_its_recipe():
    assert len(nets.NAMES) == len(set(nets.NAMES)) >= 17
    for name in nets.NAMES:
        net = nets._builder(name)
        assert net.name == name
        # The size of what each kind of net was trained on.
        side = 32 if "cifar" in name else 64 if "demo" in name else 224
        assert net.geometry.size == (side, side)


# Parameter counts of torchvision's model pages, and of table 6 in He et al., which rounds.
@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("name", "parameters", "largest"),
    [
        ("squeezenet1_0", 1_248_424, "classifier.1.weight"),
        ("squeezenet1_1", 1_235_496, "classifier.1.weight"),
        ("mobilenet_v2", 3_504_872, "classifier.1.weight"),
        ("vgg16", 138_357_544, "classifier.0.weight"),
        ("vgg19", 143_667_240, "classifier.0.weight"),
        ("resnet18", 11_689_512, "layer4.1.conv2.weight"),
        ("resnet34", 21_797_672, "layer4.2.conv2.weight"),
        ("resnet50", 25_557_032, "layer4.2.conv2.weight"),
        ("resnet101", 44_549_160, "layer4.2.conv2.weight"),
        ("resnet152", 60_192_808, "layer4.2.conv2.weight"),
        ("vit_b_16", 86_567_656, "encoder.layers.encoder_layer_11.mlp.3.weight"),
        ("cifar_resnet20", 0.27e6, "layer3.2.conv2.weight"),
        ("cifar_resnet32", 0.46e6, "layer3.4.conv2.weight"),
        ("cifar_resnet44", 0.66e6, "layer3.6.conv2.weight"),
        ("cifar_resnet56", 0.85e6, "layer3.8.conv2.weight"),
    ],
)
def test_published_sizes(name, parameters, largest):
    net = nets._builder(name)
    template = net.shapes({})[1]
    leaves = filling._leaves(template)
    count = sum(leaf.size for path, leaf in leaves.items() if path[0] == "params")
    assert count == pytest.approx(parameters, rel=0 if name[:5] != "cifar" else 0.02)
    sizes = {k: leaves[slot.path].size for k, slot in net.slots(template, net.separator).items()}
    assert sizes[largest] == max(sizes.values())


@pytest.mark.parametrize(
    ("name", "head", "width"),
    [("vgg19", "classifier.6", 4096), ("resnet101", "fc", 2048), ("vit_b_16", "heads.head", 768)],
)
def test_classes_of_large_nets_are_read_from_the_shapes(name, head, width):
    tensors = {f"{head}.weight": np.zeros((7, width)), f"{head}.bias": np.zeros(7)}
    assert nets._builder(name).shapes(tensors)[2].shape == (2, 7)


def test_first_dense_layer_of_vgg_reads_maps_channel_by_channel_in_the_file():
    # What torch computes: flatten [B, C, H, W], then multiply.
    maps = np.random.default_rng(0).random((2, 7, 7, 4), np.float32)
    weight = np.random.default_rng(1).random((3, 4 * 49), np.float32)
    expected = maps.transpose(0, 3, 1, 2).reshape(2, -1) @ weight.T
    np.testing.assert_allclose(maps.reshape(2, -1) @ vgg._rows(weight), expected, rtol=1e-5)


def mobilenet_v1_graph(width, height, side):
    """MobileNetV1 in the graph format, written from table 1 of the paper with TensorFlow's
    padding.
    """
    rng = np.random.default_rng(0)
    nodes, tensors, size = [], {}, np.array([height, side])

    def conv(name, before, out, into, k, stride, groups=1):
        nonlocal size
        after = -(-size // stride)
        # TensorFlow's SAME: as much as the last window needs, the odd pixel at the end.
        total = np.maximum((after - 1) * stride + k - size, 0)
        (top, left), (bottom, right) = total // 2, total - total // 2
        size = after
        shape = (out, into // groups, k, k)
        tensors[f"{name}.weight"] = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        tensors[f"{name}.bias"] = rng.normal(0, 0.1, out)
        nodes.append(
            {
                "id": name,
                "op": "conv2d",
                "inputs": [before],
                "weight": f"{name}.weight",
                "bias": f"{name}.bias",
                "stride": [stride, stride],
                "padding": [int(p) for p in (top, bottom, left, right)],
                "dilation": [1, 1],
                "groups": groups,
            }
        )
        return name

    def relu6(name):
        nodes.append({"id": f"{name}/Relu6", "op": "relu6", "inputs": [name]})
        return f"{name}/Relu6"

    channels = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
    into = int(32 * width)
    x = relu6(conv("MobilenetV1/Conv2d_0", "input", into, 3, 3, 2))
    for i, (out, stride) in enumerate(zip(channels, strides, strict=True), start=1):
        out = int(out * width)
        x = relu6(conv(f"MobilenetV1/Conv2d_{i}_depthwise", x, into, into, 3, stride, into))
        x = relu6(conv(f"MobilenetV1/Conv2d_{i}_pointwise", x, out, into, 1, 1))
        into = out
    nodes.append({"id": "pool", "op": "global_avg_pool_keepdims", "inputs": [x]})
    x = conv("MobilenetV1/Logits/Conv2d_1c_1x1", "pool", 1001, into, 1, 1)
    nodes.append({"id": "logits", "op": "flatten", "inputs": [x]})
    graph = graphnet.Graph(json.dumps({"nodes": nodes, "output": {"node": "logits"}}))
    return graph, {name: t.astype(np.float32) for name, t in tensors.items()}


@pytest.mark.slow
def test_mobilenet_v1_against_its_table():
    height, side = 97, 64  # stride 2 pads odd sides on both ends, even ones at the far end only
    graph, tensors = mobilenet_v1_graph(0.25, height, side)
    model = load_model("mobilenet_v1_tf", weights=tensors)
    images = np.random.default_rng(1).random((2, height, side, 3), np.float32)
    # The preprocessing that the net must bring itself.
    x = (images * 255 - 128) / 128
    expected = jax.jit(graph)(tensors, x.transpose(0, 3, 1, 2))[:, 1:]
    np.testing.assert_allclose(
        run(model, images), expected, atol=1e-5 * float(jnp.abs(expected).max())
    )


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("name", "stem", "blocks", "head"),
    [
        # Widths 0.35 and 1.4 as TensorFlow rounds them (to multiples of 8, never down by a tenth).
        ("0.35", 16, (8, 8, 16, 24, 32, 56, 112), 1280),
        ("1.4", 48, (24, 32, 48, 88, 136, 224, 448), 1792),
    ],
)
def test_mobilenet_v2_widths_are_read_from_the_shapes(name, stem, blocks, head):
    rng, repeats = np.random.default_rng(0), (1, 2, 3, 4, 3, 3, 1)
    tensors, into, i = {}, stem, 0

    def conv(name, out, into, k):
        tensors[f"{name}.weight"] = rng.normal(0, 0.1, (out, into, k, k)).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(out, np.float32)

    conv("MobilenetV2/Conv", stem, 3, 3)
    for out, n in zip(blocks, repeats, strict=True):
        for _ in range(n):
            layer, wide = f"MobilenetV2/expanded_conv{f'_{i}' if i else ''}", into
            if i:
                wide = into * 6
                conv(f"{layer}/expand", wide, into, 1)
            conv(f"{layer}/depthwise", wide, 1, 3)
            conv(f"{layer}/project", out, wide, 1)
            into, i = out, i + 1
    conv("MobilenetV2/Conv_1", head, into, 1)
    conv("MobilenetV2/Logits/Conv2d_1c_1x1", 1001, head, 1)
    model = load_model("mobilenet_v2_tf", weights=tensors)
    assert model.apply.module.stem == stem
    assert [b[1] for b in model.apply.module.blocks] == list(np.repeat(blocks, repeats))

    wrong = dict(tensors)
    wrong["MobilenetV2/expanded_conv_3/project.weight"] = np.zeros((5, 7, 1, 1), np.float32)
    with pytest.raises(ValueError, match=r"mobilenet_v2_tf: 1 mis-shaped\n") as caught:
        load_model("mobilenet_v2_tf", weights=wrong)
    wide, out = blocks[1] * 6, blocks[2]
    assert f"expected [{out}, {wide}, 1, 1], found [5, 7, 1, 1]" in str(caught.value)


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("name", "layer", "separator"),
    [
        ("cifar_resnet20", "linear", "."),
        ("squeezenet1_0", "classifier.1", "."),
        ("mobilenet_v2", "classifier.1", "."),
        ("resnet18", "fc", "."),
        ("mobilenet_v1_tf", "MobilenetV1/Logits/Conv2d_1c_1x1", "/"),
    ],
)
def test_classes_are_read_from_the_shapes(name, layer, separator):
    tensors = as_file(drawn(name), separator)
    for kind in ("weight", "bias"):
        tensors[f"{layer}.{kind}"] = tensors[f"{layer}.{kind}"][:7]
    seven = load_model(name, weights=tensors, class_names="abcdefg")
    images = jax.ShapeDtypeStruct((2, *seven.geometry.size, 3), jnp.float32)
    assert jax.eval_shape(seven, images).shape == (2, 7)
    with pytest.raises(ValueError, match=f"must name the 7 classes of {name}, got 3"):
        load_model(name, weights=tensors, class_names="abc")


def test_other_weights_share_one_program(data_dir):
    traces = []

    @jax.jit
    def count(model, x):
        traces.append(model.name)
        return model(x)

    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    path = data_dir / "weights" / "cifar10_resnet20.safetensors"
    tensors = safetensors.numpy.load_file(path)
    models = [
        load_model("cifar_resnet20", weights=path),
        load_model("cifar_resnet20", weights={k: v * 1.01 for k, v in tensors.items()}),
        load_model("cifar_resnet20", key=jax.random.key(1)),
    ]
    outputs = [np.asarray(count(model, images)) for model in models]
    assert len(traces) == 1
    assert not np.allclose(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2])


@pytest.mark.slow
def test_jit_vmap_and_gradient(data_dir):
    model = real(data_dir, "cifar_resnet20")
    images = np.random.default_rng(0).random((2, 2, 32, 32, 3), np.float32)
    expected = np.stack([run(model, x) for x in images])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(jax.jit(jax.vmap(model))(images), expected, atol=1e-5 * scale)

    # Along its own gradient the logit rises as fast as the gradient says.
    @jax.jit
    def logit_and_gradient(x):
        return jax.value_and_grad(lambda x: model(x)[:, 3].sum())(x)

    before, gradient = logit_and_gradient(images[0])
    # A step of length 1e-3: larger ones cross kinks of relu, smaller ones lose digits of float32.
    step = 1e-3 / jnp.linalg.norm(gradient)
    after, _ = logit_and_gradient(images[0] + step * gradient)
    slope = float((after - before) / (step * jnp.sum(gradient**2)))
    assert slope == pytest.approx(1, abs=0.1)


def test_checks_accept_a_real_net_and_refuse_it_with_another_mean(data_dir):
    model = real(data_dir, "cifar_resnet20")
    golden = np.load(data_dir / "golden" / "cifar10_resnet20.npz")
    x = golden["input"].transpose(0, 2, 3, 1) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    check_model(model, x)
    assert check_parity(model, x, golden["output"]) <= 1e-5
    # Near enough to the right numbers that outputs look sensible.
    apply = dataclasses.replace(model.apply, mean=(0.5,), std=(0.25,))
    with pytest.raises(ValueError, match="parity: model cifar_resnet20 differs from its source"):
        check_parity(dataclasses.replace(model, apply=apply), x, golden["output"])


def test_layers_are_readable_in_the_program():
    model = drawn("mobilenet_v2")
    jaxpr = jax.make_jaxpr(model.apply)(model.variables, jnp.ones((2, 32, 32, 3)))
    scopes = {str(e.source_info.name_stack) for e in jaxpr.eqns}
    layers = {"features.0/0", "features.2/conv.0/0", "features.2/conv.1/0", "features.18/1"}
    assert {f"MobileNetV2/{layer}" for layer in layers} <= scopes


def test_weights_of_another_net_are_refused(data_dir):
    squeezenet = data_dir / "weights" / "squeezenet1_1.safetensors"
    with pytest.raises(ValueError, match="squeezenet1_0: 12 missing, 12 extra, 10 mis-shaped") as e:
        load_model("squeezenet1_0", weights=squeezenet)
    assert "mis-shaped features.0.weight: expected [96, 3, 7, 7], found [64, 3, 3, 3]" in str(
        e.value
    )
    with pytest.raises(ValueError, match="106 missing, 52 extra; no name matches") as e:
        load_model("mobilenet_v2_tf", weights=squeezenet)
    tensors = safetensors.numpy.load_file(squeezenet)
    assert all(f"extra {name} " in str(e.value) for name in tensors)
    with pytest.raises(ValueError, match="cifar_resnet20: 180 extra"):
        load_model("cifar_resnet20", weights=data_dir / "weights" / "cifar10_resnet56.safetensors")


def test_nan_weights_are_refused(data_dir):
    tensors = safetensors.numpy.load_file(data_dir / "weights" / "cifar10_resnet20.safetensors")
    # One of 9,216 numbers, of 32 x 32 kernels of 3 x 3.
    tensors["layer2.1.conv1.weight"][3, 2, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"layer2\.1\.conv1\.weight: 1 of 9216 values are not fin"):
        load_model("cifar_resnet20", weights=tensors)


def test_bad_calls_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"'squeezenet11'; did you mean squeezenet1_1 or"):
        load_model("squeezenet11")
    with pytest.raises(ValueError, match=r"no net is called 'zzz'; known: squeezenet1_0, "):
        load_model("zzz")
    with pytest.raises(ValueError, match=r'needs weights="FILE\.safetensors", .* got neither'):
        load_model("squeezenet1_1")
    with pytest.raises(ValueError, match=r"got neither; perturb\.demo\('demo'\) brings"):
        load_model("demo")
    with pytest.raises(ValueError, match="got both"):
        load_model("squeezenet1_1", weights={}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="pickled checkpoints are never opened"):
        load_model("cifar_resnet20", weights=tmp_path / "resnet20.th")
