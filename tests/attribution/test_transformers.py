"""Rules for transformers against closed forms, finite differences and a forward pass written out in
numpy.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import perturb
from launch import demo
from launch.demo import world
from perturb import attribution
from perturb.adapters import from_linen
from perturb.attribution import _common
from perturb.attribution.libragrad import full_gradient
from perturb.attribution.rollout import attention_weights
from perturb.nets.vit import ViT
from perturb.taps.swapping import HOLD, swap

# 16 px in patches of 8: four patches and a class token, few enough to probe one by one.
NET = ViT(classes=3, patch=8, width=8, heads=2, hidden=12, layers=2)
IMAGES = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
TARGETS = np.array([0, 2])


def restless(variables, seed, scale=0.3):
    """The variables with noise on all of them, biases and norms too: fresh ones hide what is left
    out.
    """
    leaves, tree = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.asarray(w + scale * rng.normal(size=w.shape), jnp.float32) for w in leaves]
    )


@pytest.fixture(scope="module")
def model():
    variables = NET.init(jax.random.key(0), jnp.asarray(IMAGES))
    return from_linen(NET, restless(variables, 1), mean=(0.5,) * 3, std=(0.3,) * 3)


def written_out(model, image, probes=None):
    """The same network in numpy, float64: attention weights, tokens after each block, and its
    end.
    """
    w = jax.tree.map(lambda v: np.asarray(v, np.float64), model.variables)["params"]

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def norm(x, layer):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]

    def end(tokens):
        return dense(norm(tokens, w["encoder.ln"])[0], w["heads.head"])

    x = (np.asarray(image, np.float64) - 0.5) / 0.3
    x = x.reshape(2, 8, 2, 8, 3).transpose(0, 2, 1, 3, 4).reshape(4, -1)
    x = x @ w["conv_proj"]["kernel"].reshape(-1, NET.width) + w["conv_proj"]["bias"]
    x = np.concatenate([w["class_token"][0], x]) + w["pos_embedding"][0]
    weights, blocks = [], []
    for i in range(NET.layers):
        block = w[f"encoder.layers.encoder_layer_{i}"]
        # Queries, keys and values lie side by side in one product, as in the published files.
        qkv = dense(norm(x, block["ln_1"]), block["self_attention"]["in_proj"])
        q, k, v = qkv.reshape(5, 3, NET.heads, -1).transpose(1, 2, 0, 3)
        a = scipy.special.softmax(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]), -1)
        a = a if probes is None else a + probes[i]
        weights.append(a)
        mixed = (a @ v).transpose(1, 0, 2).reshape(5, -1)
        x = x + dense(mixed, block["self_attention"]["out_proj"])
        h = dense(norm(x, block["ln_2"]), block["mlp.0"])
        # The exact GELU: x times the normal distribution's share below it.
        x = x + dense(h * scipy.special.ndtr(h), block["mlp.3"])
        blocks.append(x)
    return weights, blocks, end


@pytest.mark.slow
def test_attention_and_rollout_are_those_of_the_network_written_out(model):
    found = attention_weights(model, jnp.asarray(IMAGES))
    rolled = attribution.rollout(model, IMAGES, TARGETS)
    for i, image in enumerate(IMAGES):
        weights, blocks, end = written_out(model, image)
        np.testing.assert_allclose(end(blocks[-1]), model(IMAGES)[i], atol=1e-4)
        np.testing.assert_allclose([w[i] for w in found], weights, atol=1e-5)
        total = np.eye(5)
        for one in weights:
            # Half attention, half the skip connection beside it (Abnar and Zuidema 2020).
            total = (one.mean(0) + np.eye(5)) / 2 @ total
        # Corners of the enlarged map are the patches themselves.
        np.testing.assert_allclose(
            rolled[i, [0, 0, -1, -1], [0, -1, 0, -1]], total[0, 1:], atol=1e-5
        )


def test_legrad_is_the_slope_of_each_block_by_finite_differences(model):
    found = attribution.legrad(model, IMAGES, TARGETS)
    for i, (image, target) in enumerate(zip(IMAGES, TARGETS, strict=True)):
        expected = np.zeros(5)
        for block in range(NET.layers):
            slope = np.zeros((NET.heads, 5, 5))
            for at in np.ndindex(slope.shape):
                ends = []
                # In float64, where a central difference of 1e-5 is good to about 1e-10.
                for step in (1e-5, -1e-5):
                    probes = np.zeros((NET.layers, *slope.shape))
                    probes[(block, *at)] = step
                    _, blocks, end = written_out(model, image, probes)
                    mean = np.broadcast_to(blocks[block].mean(0), blocks[block].shape)
                    ends.append(end(mean)[target])
                slope[at] = (ends[0] - ends[1]) / 2e-5
            expected += np.maximum(slope, 0).mean((0, 1)) / NET.layers
        corners = found[i, [0, 0, -1, -1], [0, -1, 0, -1]]
        np.testing.assert_allclose(corners, expected[1:], atol=1e-4 * expected.max())


def complete(model, images, targets, **options):
    found = full_gradient(model, images, targets, **options)
    off = found.inputs.sum((1, 2)) + found.biases - found.score
    return np.abs(off).max() / np.abs(found.score).max()


def test_libragrad_accounts_for_the_whole_score(model):
    assert complete(model, IMAGES, TARGETS) <= 1e-4
    # The plain gradient does not, so that the test can fail.
    assert complete(model, IMAGES, TARGETS, balanced=False) > 0.05


def test_what_speaks_against_the_class_may_be_left_out(model):
    signed = attribution.libragrad(model, IMAGES, TARGETS)
    positive = attribution.libragrad(model, IMAGES, TARGETS, positive=True)
    assert signed.min() < 0 <= positive.min()
    # Layer by layer, so that what one takes is not set off against what another gives.
    assert (positive >= np.maximum(signed, 0) - 1e-6 * np.abs(signed).max()).all()
    assert (positive > np.maximum(signed, 0) + 1e-3 * np.abs(signed).max()).any()


@pytest.mark.slow
def test_libragrad_is_complete_on_the_embedded_transformer():
    images = world.render_batch(7, range(2)).image
    assert complete(demo.load("demo_vit"), images, [0, 1]) <= 1e-4


@pytest.mark.parametrize(
    "gate",
    [
        lambda x: jax.nn.silu(x[:, :4]) * x[:, 4:],  # as SwiGLU
        lambda x: jax.nn.gelu(x, approximate=True),
        lambda x: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-3),
        lambda x: jnp.clip(x, -0.5, 0.7) + jnp.where(x > 0.2, 1.0, x),
        lambda x: x**3 - jnp.pad(x, ((0, 0), (1, 0)), constant_values=2.0)[:, 1:],
    ],
)
def test_other_gates_and_pieces_are_complete_too(gate):
    rng = np.random.default_rng(1)
    first, second = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 8), (8, 2)))

    def net(w, x):
        # A bias before the gate and one at the end: what a gradient times input leaves out.
        h = gate(x.mean((1, 2)) @ w[0] + 0.3)
        return h @ w[1][: h.shape[-1]] + 0.1

    assert complete(perturb.Model(net, (first, second)), IMAGES, [0, 1]) <= 1e-4


@pytest.mark.slow
def test_libragrad_is_complete_on_vit_b_16():
    # The published size: sums of 768 terms through twelve blocks, still to 1e-4.
    fresh = perturb.load_model("vit_b_16", key=jax.random.key(0))
    full = dataclasses.replace(fresh, variables=restless(fresh.variables, 2, scale=0.02))
    images = np.random.default_rng(3).random((2, 224, 224, 3), np.float32)
    assert complete(full, images, [3, 7]) <= 1e-4


def test_attn_lrp_with_constant_attention_is_the_balanced_gradient(model):
    """The engine for layers with a kernel and the one for biases give the input the same."""
    plain = perturb.Model(lambda v, x: NET.apply(v, x), model.variables)
    found = attribution.attn_lrp(plain, IMAGES, TARGETS, rule="epsilon", attention="constant")
    wanted = full_gradient(plain, IMAGES, TARGETS).inputs
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def test_held_functions_have_no_slope():
    f = swap(lambda x: jnp.exp(x) * x, {"exp": HOLD})
    assert float(jax.grad(f)(1.0)) == pytest.approx(np.e)
    seen = []

    def rule(old, varied, a, b):
        seen.append(varied)
        return old(a, b)

    swap(lambda x: jax.lax.stop_gradient(x) * x + jnp.exp(x) * x, {"mul": rule, "exp": HOLD})(1.0)
    assert seen == [(False, True), (False, True)]


def seeing(w, x):
    """A transformer made by hand: the class token attends to red patches and reads their colour."""
    mean = jnp.broadcast_to(jnp.eye(3) / 64, (8, 8, 3, 3))
    spec = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, mean, (8, 8), "VALID", dimension_numbers=spec)
    tokens = x.reshape(len(x), 16, 3)
    tokens = jnp.concatenate([jnp.zeros((len(x), 1, 3)), tokens], 1)
    tokens = perturb.taps.tag(tokens, "tokens")
    # The class token is 0 and asks by `w` alone; without it, it would attend to all alike.
    queries = jnp.tanh(tokens[..., :1]) + w
    scores = jnp.einsum("bqc,bkc->bqk", queries, 9 * tokens[..., :1])
    tokens = tokens + jnp.einsum("bqk,bkc->bqc", jax.nn.softmax(scores), tokens)
    return tokens[:, 0]


@pytest.mark.parametrize("name", ["libragrad", "legrad", "rollout", "grad_cam", "attn_lrp"])
def test_a_planted_patch_is_found(name):
    # Red of 1 beside 0.2: times 9 in the exponent the patch has 1,300 times another one's weight.
    images = np.full((2, 32, 32, 3), 0.2, np.float32)
    images[0, 8:16, 16:24, 0] = 1.0
    images[1, 24:, :8, 0] = 1.0
    model = perturb.Model(seeing, jnp.ones(()))
    options = {"layer": "tokens"} if name == "grad_cam" else {}
    found = attribution.get(name)(model, images, [0, 0], **options)
    for one, patch in zip(found, [np.s_[8:16, 16:24], np.s_[24:32, :8]], strict=True):
        inside = np.zeros((32, 32), bool)
        inside[patch] = True
        assert one[inside].mean() > 1.5 * np.abs(one[~inside]).mean()


@pytest.mark.slow
def test_the_last_layer_of_a_transformer_is_the_last_whose_places_count(model):
    found = _common.last_layer(model, jnp.asarray(IMAGES))
    assert found == "encoder.layers.encoder_layer_1/ln_1"
    assert np.abs(attribution.grad_cam(model, IMAGES, TARGETS)).max() > 0


@pytest.mark.parametrize("name", ["libragrad", "legrad", "rollout"])
def test_a_network_without_tokens_is_refused(name):
    with pytest.raises(ValueError, match=r"for transformers|no attention"):
        attribution.get(name)(perturb.Model(lambda w, x: x.mean((1, 2)), ()), IMAGES, [0, 1])
