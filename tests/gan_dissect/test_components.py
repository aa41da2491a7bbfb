"""Principal components and the linear encoder without a decomposition of the whole: the same
numbers.
"""

import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import Generator, Normal, _components, sample
from gan_dissect.factors import ganspace, ganspace_layer
from gan_dissect.inversion import linear_encoder
from perturb import taps

RNG = np.random.default_rng(0)
KEY = jax.random.key(3)


def generator(side=16, latents=6):
    def apply(v, z):
        units = taps.tag(jnp.tanh(z @ v), "units")
        return {"image": jax.nn.sigmoid(units).reshape(-1, side, side, 1)}

    weight = RNG.standard_normal((latents, side * side)).astype(np.float32)
    return Generator(apply, jnp.asarray(weight), latent=Normal((latents,)))


@pytest.mark.parametrize("shape", [(40, 300), (300, 40)], ids=["wide", "tall"])
def test_both_systems_are_the_decomposition(shape, monkeypatch):
    monkeypatch.setattr(_components, "_CHUNK", 8 * 300 * 7)  # many slices, the last one short
    # Falling sizes tell the axes apart; a mean of 5 shows where centring is left out.
    x = (RNG.standard_normal(shape) * 0.9 ** np.arange(shape[1])[None] + 5).astype(np.float32)
    found = _components.decompose(x, k=8, axes=True)
    left, values, axes = np.linalg.svd(x - x.mean(0, dtype=np.float64), full_matrices=False)
    np.testing.assert_allclose(found.values, values[:8], rtol=1e-9)
    np.testing.assert_allclose(found.total, (values**2).sum(), rtol=1e-9)
    # Axes have no sign: the cosine is 1 or -1.
    np.testing.assert_allclose(np.abs(np.sum(found.axes * axes[:8], 1)), 1, rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(found.scores * left[:, :8], 0)), 1, rtol=1e-9)


def test_more_components_than_the_samples_have_are_refused():
    # A product of rank 3: what comes after is rounding, and no component.
    flat = RNG.standard_normal((30, 3)) @ RNG.standard_normal((3, 100))
    assert len(ganspace(flat, k=3).values) == 3
    with pytest.raises(ValueError, match="k must be in 1 to 3, for the samples have 3 components"):
        ganspace(flat, k=4)


@pytest.mark.parametrize("batch", [7, 50, 200])
def test_incremental_is_exact_for_few_components(batch):
    # Rank 12 within a rank of 16: nothing is cut off, so what is left is rounding.
    x = RNG.standard_normal((200, 12)) @ RNG.standard_normal((12, 90)) + RNG.standard_normal(90) * 3
    x = x.astype(np.float32)
    passes = []

    def draw():
        passes.append(1)
        return (x[start : start + batch] for start in range(0, len(x), batch))

    found = _components.incremental(draw, 90, k=5, rank=16)
    want = _components.decompose(x, k=5, axes=True)
    # One for the mean and the subspace, one for the numbers.
    assert len(passes) == 2
    np.testing.assert_allclose(found.values, want.values, rtol=1e-5)
    np.testing.assert_allclose(found.mean, want.mean, atol=1e-5)
    np.testing.assert_allclose(found.total, want.total, rtol=1e-5)
    np.testing.assert_allclose(np.abs(np.sum(found.axes * want.axes, 1)), 1, atol=1e-5)


@pytest.mark.slow
def test_ganspace_of_a_layer_held_and_not_held():
    """At 16 px: of activations that are never held at once, the directions of the whole."""
    G = generator()
    z = sample(G, KEY, 500)
    units = np.tanh(np.asarray(z) @ np.asarray(G.variables))
    want = ganspace(units, k=3, latents=z)
    held = ganspace_layer(G, "units", k=3, samples=500, key=KEY)
    # Room for 64 of the 500 rows of 256 numbers in float64.
    little = ganspace_layer(G, "units", k=3, samples=500, key=KEY, memory=256 * 64 * 8 / 2**30)
    for found, tolerance in ((held, 1e-4), (little, 1e-3)):
        np.testing.assert_allclose(found.values, want.values, rtol=tolerance)
        np.testing.assert_allclose(found.share, want.share, rtol=tolerance)
        np.testing.assert_allclose(found.directions, want.directions, atol=10 * tolerance)
    with pytest.raises(ValueError, match=r"memory must be at least .* GiB for 3 components"):
        ganspace_layer(G, "units", k=3, samples=500, key=KEY, memory=1e-6)
    with pytest.raises(ValueError, match="has no layer 'unit'"):
        ganspace_layer(G, "unit", k=3, key=KEY)


@pytest.mark.slow_cases
@pytest.mark.parametrize("samples", [100, 700], ids=["fewer than pixels", "more"])
def test_the_encoder_is_the_ridge_regression(samples):
    """By either system the weights that the normal equations of all pixels give."""
    G = generator()
    z = np.asarray(sample(G, KEY, samples), np.float64)
    x = np.asarray(G(z)["image"], np.float64).reshape(samples, -1)
    x, mean, centre = x - x.mean(0), x.mean(0), z.mean(0)
    # The penalty grows with the samples, as the sum of squares does.
    gram = x.T @ x / x.var() + samples / 100 * np.eye(256)
    weight = np.linalg.solve(gram, x.T @ (z - centre) / x.var())
    found = linear_encoder(G, samples=samples, key=KEY)
    np.testing.assert_allclose(
        found.variables["weight"], weight, atol=2e-6 * np.abs(weight).max() + 1e-7
    )
    np.testing.assert_allclose(found.variables["bias"], centre - mean @ weight, atol=1e-4)
    with pytest.raises(ValueError, match="samples must be at least 2"):
        linear_encoder(G, samples=1, key=KEY)


_LARGE = """
import sys, jax, jax.numpy as jnp, gan_dissect
from gan_dissect.factors import ganspace_layer
from gan_dissect.inversion import linear_encoder
from perturb import taps
def apply(v, z):
    maps = taps.tag(jnp.einsum("bd,dhwc->bhwc", jnp.tanh(z), v["maps"]), "maps")
    image = jax.nn.sigmoid(maps[..., :3])
    return {"image": image.repeat(8, 1).repeat(8, 2)}
maps = jax.random.normal(jax.random.key(0), (8, 32, 32, 256))
G = gan_dissect.Generator(apply, {"maps": maps}, latent=gan_dissect.Normal((8,)))
if sys.argv[1] == "ganspace":
    found = ganspace_layer(G, "maps", k=1, samples=2000, memory=0.2, key=jax.random.key(1))
    assert abs(found.directions).max() <= 1
else:
    linear_encoder(G, samples=2000, key=jax.random.key(1))
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ganspace", "encoder"])
def test_activations_and_pixels_are_never_all_held_at_once(what):
    """A layer of 2.1 GB of activations with 0.2 allowed; the encoder of 196,608 pixels."""
    subprocess.run([sys.executable, "-c", _LARGE, what], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    # An empty process with JAX takes .35 GB; pixels of the encoder, all held, are 1.6 GB.
    assert peak < (1.4 if what == "ganspace" else 4)
