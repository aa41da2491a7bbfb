"""The graph runner itself: goldens of every real network, and the ops that none of them uses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import check_model
from tests import graphnet

NETWORKS = [
    "LodeRunnerOneGround100LevelsEpoch100000_20_6",
    "Mario1and2_Overworld_30_Epoch5000",
    "MegaManOneGANWith12Tiles_5_Epoch5000",
    "cifar10_resnet20",
    "cifar10_resnet56",
    "espnet_camvid",
    "mnist_dcgan_discriminator",
    "mnist_dcgan_generator",
    "mnist_gan_mlp_generator",
    "mnist_lenet5",
    "mnist_vae_decoder",
    "mnist_vae_encoder",
    "mobilenet_v2_1.0_224",
    "squeezenet1_1",
    "svhn_dcgan_generator",
    "svhn_dcgan_generator_frozen",
]


def test_no_network_is_left_out(data_dir):
    assert sorted(path.stem for path in (data_dir / "weights").glob("*.json")) == NETWORKS


@pytest.mark.slow_cases
@pytest.mark.parametrize("name", NETWORKS)
def test_goldens_of_output_and_of_every_node(data_dir, name):
    graph, variables = graphnet.load(data_dir / "weights" / f"{name}.json")
    golden = np.load(data_dir / "golden" / f"{name}.npz")

    @jax.jit
    def outputs_and_first_rows(variables, x):
        nodes = graph.nodes(variables, x)
        output = graph.description["output"]["node"]
        kept = [output] if isinstance(output, str) else output
        # To return 196 nodes takes long to compile, and ResNet-56 has the blocks of ResNet-20.
        rows = {} if name == "cifar10_resnet56" else {n: v[0] for n, v in nodes.items()}
        return {n: nodes[n] for n in kept}, rows

    count = 2 if golden["input"].shape[-1] == 224 else None  # photographs take long
    outputs, rows = outputs_and_first_rows(variables, golden["input"][:count])
    for node, got in outputs.items():
        expected = golden["output" if len(outputs) == 1 else f"output_{node}"][:count]
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
    if not rows:
        return
    assert sorted(rows) == sorted(golden["node_ids"])
    for node, l2, mean in zip(
        *(golden[k] for k in ("node_ids", "node_l2_first_input", "node_mean_first_input")),
        strict=True,
    ):
        row = np.asarray(rows[str(node)], np.float64)
        assert np.linalg.norm(row) == pytest.approx(l2, rel=1e-4), node
        # The norm over the root of the size is the root mean square: a mean near 0 has no digits of
        # its own to compare.
        assert row.mean() == pytest.approx(mean, abs=1e-4 * l2 / row.size**0.5), node


@pytest.mark.slow
def test_batch_statistics_follow_the_batch(data_dir):
    graph, variables = graphnet.load(data_dir / "weights" / "svhn_dcgan_generator.json")
    golden = np.load(data_dir / "golden" / "svhn_dcgan_generator.npz")
    images = jax.jit(graph)(variables, golden["batch128_input"])
    # Statistics of all 128: those of the sixteen that are compared would give other pictures.
    np.testing.assert_allclose(images[:16], golden["batch128_output_first16"], atol=1e-4)


def test_classifier_as_a_model(data_dir):
    model = graphnet.model(data_dir / "weights" / "mnist_lenet5.json", channels=1)
    golden = np.load(data_dir / "golden" / "mnist_lenet5.npz")
    outputs = check_model(model, golden["input"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(outputs, golden["output"], atol=1e-4)
    # Read twice, it must be one function to jit: equal and with the same hash.
    again = graphnet.model(data_dir / "weights" / "mnist_lenet5.json", channels=1)
    assert again.apply == model.apply
    assert hash(again.apply) == hash(model.apply)


def test_segmentation_as_a_model(data_dir):
    mean, std = np.array([110.3314, 108.4092, 105.0335]), np.array([72.1252, 72.6885, 69.9026])
    model = graphnet.model(
        data_dir / "weights" / "espnet_camvid.json",
        # (255 x - mean) / std / 255, as its description has it.
        mean=mean / 255,
        std=std,
        bgr=True,
        output="segmentation",
    )
    golden = np.load(data_dir / "golden" / "espnet_camvid.npz")
    bgr = golden["input"].transpose(0, 2, 3, 1) * std.astype(np.float32) + np.float32(mean / 255)
    outputs = jax.jit(lambda m, x: m(x))(model, bgr[..., ::-1])
    expected = golden["output"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())


def test_nodes_are_scopes(data_dir):
    graph, variables = graphnet.load(data_dir / "weights" / "mnist_lenet5.json")
    jaxpr = jax.make_jaxpr(graph)(variables, jnp.ones((2, 1, 32, 32)))
    scopes = {str(eqn.source_info.name_stack) for eqn in jaxpr.eqns}
    assert scopes == {n["id"] for n in graph.description["nodes"]}


def run(op, *inputs, tensors=None, **fields):
    """One node, through the whole format."""
    names = [f"input_{i}" for i in range(1, len(inputs))]
    node = {"id": "y", "op": op, "inputs": ["input", *names], **fields}
    graph = graphnet.Graph(json.dumps({"nodes": [node], "output": {"node": "y"}}))
    x, *others = map(jnp.asarray, inputs)
    return np.asarray(jax.jit(graph)(tensors or {}, x, **dict(zip(names, others, strict=True))))


X = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)


def test_pools_that_hang_over_the_edge():
    x = np.arange(5 * 4, dtype=np.float32).reshape(1, 1, 5, 4)
    pool = {"kernel": [2, 3], "stride": [2, 2]}
    # By hand: floor leaves row 4 and column 3 out; ceil lets the last windows hang over.
    floor = run("max_pool2d", x, **pool, padding=[0, 0], ceil_mode=False)
    np.testing.assert_array_equal(floor, [[[[6], [14]]]])
    ceil = run("max_pool2d", x, **pool, padding=[0, 0], ceil_mode=True)
    np.testing.assert_array_equal(ceil, [[[[6, 7], [14, 15], [18, 19]]]])
    # All values below 0: padded with 0 in place of minus infinity, the border would win.
    negative = run("max_pool2d", -x - 1, **pool, padding=[1, 1], ceil_mode=False)
    np.testing.assert_array_equal(negative, [[[[-1, -2], [-5, -6], [-13, -14]]]])
    average = {**pool, "padding": [1, 1], "ceil_mode": False}
    # Windows over rows (-1, 0), (1, 2), (3, 4) and columns (-1, 0, 1), (1, 2, 3).
    sums = [[1, 1 + 2 + 3], [26, 5 + 6 + 7 + 9 + 10 + 11], [58, 13 + 14 + 15 + 17 + 18 + 19]]
    got = run("avg_pool2d", x, **average, count_include_pad=True)[0, 0]
    np.testing.assert_allclose(got, np.divide(sums, 6), rtol=1e-6)
    got = run("avg_pool2d", x, **average, count_include_pad=False)[0, 0]
    np.testing.assert_allclose(got, np.divide(sums, [[2, 3], [4, 6], [4, 6]]), rtol=1e-6)


def test_max_pool_hangs_over_by_the_rule_of_caffe():
    x = np.arange(7, dtype=np.float32).reshape(1, 1, 7, 1)
    pool = {"kernel": [3, 1], "stride": [2, 1], "padding": [1, 0], "ceil_mode": True}
    np.testing.assert_array_equal(run("max_pool2d", x, **pool)[0, 0, :, 0], [1, 3, 5, 6])
    pool = {"kernel": [1, 1], "stride": [4, 1], "padding": [0, 0], "ceil_mode": True}
    # ceil(6 / 4) + 1 = 3 windows, but the third would start behind the image.
    np.testing.assert_array_equal(run("max_pool2d", x, **pool)[0, 0, :, 0], [0, 4])


def test_transposed_convolution_by_its_definition():
    rng = np.random.default_rng(1)
    w, bias = rng.normal(size=(3, 2, 3, 2)), rng.normal(size=2)
    # Everything differs between the two axes, so that swapped ones show.
    stride, crop = (2, 3), [1, 0, 0, 2]
    full = np.zeros((2, 2, (5 - 1) * 2 + 3, (4 - 1) * 3 + 2))
    for y in range(5):
        for x in range(4):
            patch = np.einsum("nc,coij->noij", X[:, :, y, x], w)
            full[:, :, y * 2 : y * 2 + 3, x * 3 : x * 3 + 2] += patch
    expected = full[:, :, 1:, :-2] + bias[None, :, None, None]
    tensors = {"w": np.float32(w), "b": np.float32(bias)}
    fields = {"weight": "w", "bias": "b", "stride": stride, "crop": crop}
    got = run("conv_transpose2d", X, tensors=tensors, **fields)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_convolution_by_its_definition():
    w = np.random.default_rng(1).normal(size=(6, 1, 2, 2)).astype(np.float32)
    # As above: stride, padding and dilation differ between the axes, and top from bottom.
    padded = np.pad(X, [(0, 0), (0, 0), (1, 0), (0, 2)])
    expected = np.zeros((2, 6, 2, 2))
    for o in range(6):
        for y in range(2):
            for x in range(2):
                patch = padded[:, o // 2, 2 * y : 2 * y + 4 : 3, 3 * x : 3 * x + 2]
                expected[:, o, y, x] = (patch * w[o, 0]).sum((1, 2))
    fields = {"stride": [2, 3], "padding": [1, 0, 0, 2], "dilation": [3, 1], "groups": 3}
    got = run("conv2d", X, tensors={"w": w}, weight="w", bias=None, **fields)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_bilinear_resizing_by_hand():
    ramp = np.arange(4, dtype=np.float32).reshape(1, 1, 1, 4)
    # Corners on corners: four values over seven places are half a step apart.
    corners = run("resize_bilinear", ramp, size=[1, 7], align_corners=True)
    np.testing.assert_allclose(corners[0, 0, 0], np.arange(7) / 2)
    halves = run("resize_bilinear", ramp, size=[2, 8], align_corners=False)
    by_hand = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    np.testing.assert_allclose(halves[0, 0], [by_hand, by_hand])
    # Half-pixel centres, no wider kernel: each of two pixels is the mean of the two under it.
    down = run("resize_bilinear", ramp, size=[1, 2], align_corners=False)
    np.testing.assert_allclose(down[0, 0, 0], [0.5, 2.5])


@pytest.mark.parametrize(
    ("op", "fields", "expected"),
    [
        ("upsample_nearest", {"scale": 3}, np.kron(X, np.ones((3, 3)))),
        # The two constants of Klambauer et al. 2017, which the format does not store.
        ("selu", {}, 1.0507009873554805 * np.where(X > 0, X, 1.6732632423543772 * np.expm1(X))),
        ("leaky_relu", {"slope": 0.3}, np.where(X > 0, X, 0.3 * X)),
        ("relu6", {}, np.clip(X, 0, 6)),
        ("transpose_hwc_to_chw", {}, np.moveaxis(X, 3, 1)),
        ("reshape", {"shape": [6, 10]}, X.reshape(2, 6, 10)),
        ("flatten", {}, X.reshape(2, 60)),
        ("global_avg_pool", {}, X.mean((2, 3))),
        ("global_avg_pool_keepdims", {}, X.mean((2, 3), keepdims=True)),
        (
            "subsample_pad_channels",
            {"pad_front": 1, "pad_back": 2},
            np.concatenate([X[:, :1] * 0, X, X[:, :2] * 0], 1)[:, :, ::2, ::2],
        ),
    ],
)
def test_small_ops_by_their_definition(op, fields, expected):
    np.testing.assert_allclose(run(op, X, **fields), expected, rtol=1e-5, atol=1e-6)


def test_ops_of_two_inputs_and_of_tensors():
    small = X.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(run("broadcast_spatial_like", small, X), small + 0 * X, rtol=1e-6)
    np.testing.assert_array_equal(run("concat", X, -X, axis=1), np.concatenate([X, -X], 1))
    np.testing.assert_array_equal(run("add", X, 2 * X), 3 * X)
    w = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = run("embedding", np.array([2, 0, 2]), tensors={"w": w}, weight="w")
    np.testing.assert_array_equal(rows, w[[2, 0, 2]])
    slopes = np.float32([0.1, 0.2, 0.3])
    prelu = run("prelu", X, tensors={"w": slopes}, weight="w")
    np.testing.assert_allclose(prelu, np.where(X > 0, X, X * slopes[:, None, None]), rtol=1e-6)
