"""Taps on real networks: their names, and their activations against recorded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from tests import graphnet


def test_squeezenet_reads_as_torchvision_names_it():
    model = perturb.load_model("squeezenet1_1", key=jax.random.key(0))
    names = taps.names(model, jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32))
    fires = [f"features.{i}" for i in (3, 4, 6, 7, 9, 10, 11, 12)]
    layers = [f"{fire}/{part}" for fire in fires for part in ("squeeze", "expand1x1", "expand3x3")]
    pools = ("max_pool", "max_pool#2", "max_pool#3")
    expected = {"features.0", "classifier.1", "SqueezeNet", *fires, *layers, *pools}
    assert {n for n in names if "relu" not in n} == expected
    assert names["features.12/expand3x3"].shape == (2, 13, 13, 256)


@pytest.mark.parametrize(
    "network",
    [
        "MegaManOneGANWith12Tiles_5_Epoch5000",
        "cifar10_resnet20",
        "espnet_camvid",
        "mobilenet_v2_1.0_224",
        "squeezenet1_1",
    ],
)
def test_names_of_real_networks_are_their_nodes(data_dir, network):
    graph, variables = graphnet.load(data_dir / "weights" / f"{network}.json")
    batch, *shape = graph.description["inputs"][0]["shape"]
    assert batch == "N"
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    nodes = jax.eval_shape(graph.nodes, variables, x)
    names = taps.names(graph, variables, x)
    assert {n: a.shape for n, a in names.items()} == {n: a.shape for n, a in nodes.items()}


@pytest.mark.slow_cases
@pytest.mark.parametrize("network", ["mnist_lenet5", "svhn_dcgan_generator_frozen"])
def test_activations_of_real_networks(data_dir, network):
    graph, variables = graphnet.load(data_dir / "weights" / f"{network}.json")
    golden = np.load(data_dir / "golden" / f"{network}.npz")
    ids = [str(n) for n in golden["node_ids"]]
    x = golden["input"][:2]
    # In the middle: both halves have layers to get wrong.
    prefix, suffix = taps.split(graph, ids[len(ids) // 2])

    @jax.jit
    def run(variables, x):
        return taps.read(graph, ids)(variables, x)[1], suffix(*prefix(variables, x))

    values, outputs = run(variables, x)
    norms = [np.linalg.norm(np.float64(values[n][0])) for n in ids]
    # Recorded norms of the source framework, float32 with sums in another order.
    np.testing.assert_allclose(norms, golden["node_l2_first_input"], rtol=1e-4)
    expected = golden["output"][:2]
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())
