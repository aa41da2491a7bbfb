"""Generators against goldens of their source frameworks, and against all that a generator can do
wrong.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gan_dissect
from gan_dissect import Canvas, Generator, Normal, Uniform, check_generator, load_generator
from gan_dissect.nets._layers import ConvTranspose
from perturb import taps
from perturb import weights as weights_lib
from tests import graphnet

TILES = (
    "MegaManOneGANWith12Tiles_5_Epoch5000",
    "Mario1and2_Overworld_30_Epoch5000",
    "LodeRunnerOneGround100LevelsEpoch100000_20_6",
)
# File of weights and goldens, net, options.
REAL = [
    *((name, "tile_dcgan", {}) for name in TILES),
    ("mnist_dcgan_generator", "dcgan", {}),
    ("mnist_gan_mlp_generator", "mlp", {}),
    ("mnist_vae_decoder", "mlp", {"output": "sigmoid"}),
    ("svhn_dcgan_generator_frozen", "svhn_dcgan", {}),
    ("svhn_dcgan_generator", "svhn_dcgan", {"statistics": "batch"}),
]
run = jax.jit(lambda generator, z: generator(z))
read = jax.jit(lambda generator, names, z: taps.read(generator, names)(z)[1], static_argnums=1)
nodes_of = jax.jit(lambda graph, variables, z: graph.nodes(variables, z), static_argnums=0)


def real(data_dir, name, net, **options):
    weights = data_dir / "weights" / f"{name.removesuffix('_frozen')}.safetensors"
    return load_generator(net, weights=weights, **options)


def expected(name, output):
    """A golden as our outputs are: NHWC, images in [0, 1], tile scores as they are."""
    x = output.transpose(0, 2, 3, 1)
    # tanh is in [-1, 1]; sigmoid and the scores of tiles are left as they are.
    return x if name in TILES or "vae" in name else (x + 1) / 2


@pytest.mark.slow_cases
@pytest.mark.parametrize(("name", "net", "options"), REAL, ids=[r[0] for r in REAL])
def test_goldens(data_dir, name, net, options):
    generator = real(data_dir, name, net, **options)
    golden = np.load(data_dir / "golden" / f"{name}.npz")
    outputs = run(generator, golden["input"])
    got = outputs["scores"] if name in TILES else outputs["image"]
    want = expected(name, golden["output"])
    assert got.shape == want.shape
    # The golden's own framework adds up in another order: some hundred roundings of 6e-8.
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    if name in TILES:
        np.testing.assert_array_equal(outputs["labels"], want.argmax(-1))


def test_batch_statistics_over_128(data_dir):
    golden = np.load(data_dir / "golden" / "svhn_dcgan_generator.npz")
    generator = real(data_dir, "svhn_dcgan_generator", "svhn_dcgan", statistics="batch")
    got = run(generator, golden["batch128_input"])["image"][:16]
    want = expected("svhn", golden["batch128_output_first16"])
    assert np.abs(got - want).max() <= 1e-5
    with pytest.raises(ValueError, match="couples the images of a batch"):
        check_generator(generator)


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    ("name", "net"), [(TILES[0], "tile_dcgan"), (TILES[1], "tile_dcgan"), (REAL[3][0], "dcgan")]
)
def test_layers_are_those_of_the_file(data_dir, name, net):
    generator = real(data_dir, name, net)
    graph, variables = graphnet.load(data_dir / "weights" / f"{name}.json")
    z = np.load(data_dir / "golden" / f"{name}.npz")["input"]
    nodes = {k: v for k, v in nodes_of(graph, variables, z).items() if k.endswith(("relu", ".2"))}
    assert len(nodes) == 3
    values = read(generator, tuple(nodes), z)
    for node, value in nodes.items():
        want = value.transpose(0, 2, 3, 1)
        assert gan_dissect.layers(generator)[node] == want.shape[1:]
        assert np.abs(values[node] - want).max() <= 1e-5 * np.abs(want).max()


def test_svhn_layers(data_dir):
    generator = real(data_dir, "svhn_dcgan_generator_frozen", "svhn_dcgan")
    graph, variables = graphnet.load(data_dir / "weights" / "svhn_dcgan_generator_frozen.json")
    z = np.load(data_dir / "golden" / "svhn_dcgan_generator_frozen.npz")["input"]
    nodes = nodes_of(graph, variables, z)
    values = read(generator, ("relu1", "relu2", "relu3"), z)
    for name, value in values.items():
        np.testing.assert_allclose(value, nodes[name].transpose(0, 2, 3, 1), atol=2e-5)
    assert check_generator(generator) == {"image": (32, 32, 3)}


def test_crop_names_and_colours(data_dir):
    tiles = json.loads((data_dir / "gan" / "tiles.json").read_text())
    about = tiles["generators"][TILES[0]]
    kinds = tiles["games"][about["game"]]
    colours = np.array([k["rgb"] for k in kinds]) / 255
    options = {"label_names": [k["name"] for k in kinds], "colours": colours}
    generator = real(data_dir, TILES[0], "tile_dcgan", crop=(14, 16), **options)
    whole = real(data_dir, TILES[0], "tile_dcgan")
    assert generator.canvas == Canvas(32, 32)
    assert generator.label_names[10] == "water"
    assert generator.latent == Uniform((5,))
    z = gan_dissect.sample(generator, jax.random.key(0), 8)
    outputs, full = run(generator, z), run(whole, z)
    np.testing.assert_array_equal(outputs["labels"], full["labels"][:, :14, :16])
    np.testing.assert_allclose(outputs["image"], colours[outputs["labels"]], atol=1e-7)
    assert check_generator(generator)["labels"] == (14, 16)
    # Four numbers: top, left, height, width, all different, so that an exchange shows.
    moved = real(data_dir, TILES[0], "tile_dcgan", crop=(2, 3, 10, 12))
    np.testing.assert_array_equal(run(moved, z)["labels"], full["labels"][:, 2:12, 3:15])
    for bad in ((33, 4), (20, 0, 14, 4), (-1, 0, 4, 4), (4,)):
        with pytest.raises(ValueError, match="crop must be"):
            real(data_dir, TILES[0], "tile_dcgan", crop=bad)
    with pytest.raises(ValueError, match="must name the 12 tiles"):
        real(data_dir, TILES[0], "tile_dcgan", label_names=["a"])
    with pytest.raises(ValueError, match="colours must be RGB"):
        real(data_dir, TILES[0], "tile_dcgan", colours=[(0, 0, 300)] * 12)


@pytest.mark.parametrize(("name", "net", "options"), REAL[:5], ids=[r[0] for r in REAL[:5]])
def test_import_is_strict(data_dir, name, net, options):
    path = data_dir / "weights" / f"{name}.safetensors"
    tensors = weights_lib.read_tensors(path)
    last = list(tensors)[-1]
    with pytest.raises(ValueError, match="1 missing"):
        load_generator(
            net,
            weights={k: v for k, v in tensors.items() if "bias" not in k}
            | {k: v for k, v in tensors.items() if "bias" in k and k != _a_bias(tensors)},
            **options,
        )
    with pytest.raises(ValueError, match=r"1 extra\n  extra spare"):
        load_generator(net, weights=tensors | {"spare": np.zeros(3, np.float32)}, **options)
    with pytest.raises(ValueError, match="not finite"):
        load_generator(net, weights=tensors | {last: tensors[last] * np.nan}, **options)
    load_generator(net, weights=tensors | {"x.num_batches_tracked": np.zeros((), int)}, **options)


def _a_bias(tensors):
    # The convolutions of `dcgan` may have no bias: then theirs is not missing but absent.
    return next(
        n for n in tensors if n.endswith("bias") and tensors[n].shape != (1,) and ".0." not in n
    )


def test_other_layouts():
    # PyTorch's example: main.N, bias-free, 1 -> 4 -> 8 -> 16, the last convolution given padding 1.
    shapes = {0: (10, 16, 4, 4), 3: (16, 8, 4, 4), 6: (8, 3, 4, 4)}
    rng = np.random.default_rng(0)
    tensors = {f"main.{i}.weight": rng.standard_normal(s, np.float32) for i, s in shapes.items()}
    for i, width in ((1, 16), (4, 8)):
        for kind in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"main.{i}.{kind}"] = rng.uniform(0.5, 1, width).astype(np.float32)
    generator = load_generator("dcgan", weights=tensors)
    assert check_generator(generator) == {"image": (16, 16, 3)}
    assert gan_dissect.layers(generator)["main.2"] == (4, 4, 16)
    z = rng.standard_normal((2, 10), np.float32)
    # By hand: what the first stage scatters is the latent times the kernel.
    values = read(generator, ("main.0", "main.2"), z)
    want = np.einsum("bi,iohw->bhwo", z, tensors["main.0.weight"])
    np.testing.assert_allclose(values["main.0"], want, atol=1e-5)
    with pytest.raises(ValueError, match="strides must be one for each of the 3"):
        load_generator("dcgan", weights=tensors, strides=(1, 2))
    # An epsilon of .8 is not a momentum: it changes the picture.
    other = load_generator("dcgan", weights=tensors, epsilon=0.8)
    eased = read(other, ("main.2",), z)
    scale = np.sqrt((tensors["main.1.running_var"] + 1e-5) / (tensors["main.1.running_var"] + 0.8))
    shift = tensors["main.1.bias"]
    inside = np.asarray(values["main.2"]) > 0
    want = (np.asarray(values["main.2"]) - shift) * scale + shift
    np.testing.assert_allclose(
        np.asarray(eased["main.2"])[inside & (want > 0)], want[inside & (want > 0)], rtol=1e-4
    )


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match="did you mean tile_dcgan"):
        load_generator("tile_dgan", weights={})
    with pytest.raises(ValueError, match="no option 'cropp'; its options: crop"):
        load_generator("tile_dcgan", key=jax.random.key(0), cropp=(1, 1))
    for net in ("tile_dcgan", "dcgan", "mlp", "svhn_dcgan"):
        with pytest.raises(ValueError, match=r"needs weights=.*got neither"):
            load_generator(net)
        with pytest.raises(ValueError, match="weights do not fit"):
            load_generator(net, weights={"a.weight": np.zeros((1, 2, 3, 4), np.float32)})
        check_generator(load_generator(net, key=jax.random.key(0)))
    with pytest.raises(FileNotFoundError):
        load_generator("dcgan", weights=tmp_path / "none.safetensors")
    (tmp_path / "netG.pth").write_bytes(b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00lsq\x00\x85R.")
    with pytest.raises(ValueError, match=r"netG\.pth"):  # read opcode by opcode, never run
        load_generator("dcgan", weights=tmp_path / "netG.pth")
    with pytest.raises(ValueError, match="statistics must be"):
        load_generator("svhn_dcgan", key=jax.random.key(0), statistics="running")


def test_a_sample_is_its_index():
    generator = Generator(lambda v, z: {"image": z["z"]}, {}, latent=_pair)
    key = jax.random.key(3)
    ten, part = (
        gan_dissect.sample(generator, key, 10),
        # Under jit, with a start that is traced, as a worker that takes a share of a run does.
        jax.jit(lambda s: gan_dissect.sample(generator, key, 4, start=s))(5),
    )
    assert set(ten) == {"z", "label"}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[5:9], b), ten, part)
    assert len(np.unique(ten["z"][:, 0])) == 10
    # 15,000 numbers of [-2, 1): the mean of -.5 has a standard error of .007.
    many = gan_dissect.sample(Generator(_identity, {}, latent=Uniform((3,), -2, 1)), key, 5000)
    assert many.min() >= -2
    assert many.max() < 1
    assert abs(float(many.mean()) + 0.5) < 0.03


def _pair(key):
    return {"z": jax.random.normal(key, (2,)), "label": jax.random.randint(key, (), 0, 10)}


def _identity(variables, z):
    return {"image": z}


@pytest.mark.parametrize(
    ("apply", "match"),
    [
        (lambda v, z: z, "must return a dict with an image, got"),
        (lambda v, z: {"picture": z}, r"got \['picture'\]"),
        (lambda v, z: {"image": z}, r"\[B, H, W, C\], got shape \(4, 4\)"),
        (lambda v, z: {"image": 2 + jnp.tanh(z).reshape(-1, 2, 2, 1)}, r"in \[0, 1\]"),
        (lambda v, z: {"image": jnp.nan * z.reshape(-1, 2, 2, 1)}, "finite"),
        (lambda v, z: _labelled(z, jnp.zeros((len(z), 3, 3), int)), "of the image's size"),
        (lambda v, z: _labelled(z, jnp.zeros((len(z), 2, 2))), "as integers"),
        (lambda v, z: _labelled(z, jnp.full((len(z), 2, 2), 2)), "2 names for labels 2 to 2"),
    ],
)
def test_generators_that_are_refused(apply, match):
    with pytest.raises(ValueError, match=match):
        check_generator(Generator(apply, {}, latent=Normal((4,)), label_names=["a", "b"]))


def _labelled(z, labels):
    return {"image": jax.nn.sigmoid(z).reshape(-1, 2, 2, 1), "labels": labels}


@pytest.mark.slow
def test_weights_are_arguments(data_dir):
    count = 0

    def traced(generator, z):
        nonlocal count
        count += 1
        return generator(z)["image"]

    f, z = jax.jit(traced), jnp.ones((2, 64))
    a, b = (f(load_generator("dcgan", key=jax.random.key(k)), z) for k in (0, 1))
    assert count == 1
    assert np.abs(a - b).max() > 0
    # One latent by itself is what it is in a batch.
    g = load_generator("dcgan", key=jax.random.key(0))
    np.testing.assert_allclose(jax.vmap(lambda v: g(v[None])["image"][0])(z), a, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "crop"),
    [
        (4, 2, (1, 1, 1, 1)),
        (3, 2, (0, 1, 1, 0)),
        (5, 2, (2, 1, 2, 1)),
        (2, 3, (0,) * 4),
        (3, 1, (1,) * 4),
    ],
)
def test_transposed_convolution_scatters(kernel, stride, crop):
    """By its definition: every input pixel adds its kernel to the output, `stride` apart."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    w = rng.standard_normal((kernel, kernel, 5, 6)).astype(np.float32)
    full = np.zeros((2, 2 * stride + kernel, 3 * stride + kernel, 6))
    for i in range(3):
        for j in range(4):
            patch = np.einsum("bc,yxco->byxo", x[:, i, j], w)
            full[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel] += patch
    top, bottom, left, right = crop
    want = full[:, top : full.shape[1] - bottom, left : full.shape[2] - right]
    module = ConvTranspose(6, kernel, stride, crop)
    # The layer holds the kernel turned around, as a correlation with the stretched input has it.
    variables = {"params": {"kernel": w[::-1, ::-1]}}
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), want, atol=1e-5)
    each = jax.vmap(lambda one: module.apply(variables, one[None])[0])(x)
    np.testing.assert_allclose(each, want, atol=1e-5)
