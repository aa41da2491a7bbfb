"""Wrong calls of the library: one short line with the argument and what would be right."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gan_dissect
import perturb
from gan_dissect import factors, inversion, walks
from perturb import adapters, defence, evidence, metrics, operators, rewards, taps, text
from perturb import attribution as maps_by

X = np.random.default_rng(0).random((2, 12, 12, 3)).astype(np.float32)
SIGNALS = np.random.default_rng(0).random((2, 24, 3)).astype(np.float32)
T = [0, 1]
MAPS = X.mean(-1)
W = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
TRUTH = np.ones((2, 12, 12), bool)
KEY = jax.random.key(0)


def net(w, x):
    return taps.tag(x * 1.0, "features").mean((1, 2)) @ w


MODEL = perturb.Model(net, W, name="net")
NAMED = perturb.Model(net, W, class_names=("no", "yes"), name="net")
OF_SIGNALS = perturb.Model(lambda w, x: x.mean(1) @ w, W)
G = gan_dissect.Generator(
    lambda v, z: {"image": jax.nn.sigmoid(taps.tag(z @ v, "first")).reshape(-1, 4, 4, 1)},
    jnp.ones((4, 16)),
    latent=gan_dissect.Normal((4,)),
)
Z = np.zeros((3, 4), np.float32)
PICTURES = np.zeros((2, 4, 4, 1), np.float32)
SPREAD = np.random.default_rng(2).normal(size=(100, 4)).astype(np.float32)
TEXT = text.text_model(lambda w, x: x.sum(1), (), np.eye(3, dtype=np.float32), pad=0)
PAD = text.fill(TEXT, "pad")
EDGES = perturb.units.concepts.edges()
KEY_WORDS = r"key must be a random key such as jax.random.key\(3\), got 3"


def extremal(**options):
    perturb.extremal(MODEL, X, T, **({"areas": 0.2, "steps": 1} | options))


def channels(**options):
    perturb.channels(MODEL, X, T, **({"layer": "features", "counts": 1} | options))


# What is wrong, in a lambda; and words of the answer, the cure among them.
CALLS = [
    (lambda: extremal(areas=0.0), r"areas must be in \(0, 1\)"),
    (lambda: extremal(areas=2.0), r"areas must be in \(0, 1\)"),
    (lambda: extremal(areas=()), r"areas must be a number, \[A\]"),
    (lambda: extremal(areas="small"), r"as in 0.1 or \(0.05, 0.1\)"),
    (lambda: extremal(steps=0), "at least 1"),
    (lambda: extremal(steps="many"), "a whole number"),
    (lambda: extremal(steps=2.5), "a whole number"),
    (lambda: extremal(reward="logitt"), "did you mean logit"),
    (lambda: extremal(operator="blurr"), "did you mean blur"),
    (lambda: extremal(solver="adam"), "exact, torchray"),
    (lambda: extremal(key=3), r"jax.random.key\(3\)"),
    (lambda: operators.Noise().prepare(X[0], 3), KEY_WORDS),
    (lambda: text.erasure(TEXT, [[0, 1]], [0], [[1, 2]], operator=PAD, key=3), KEY_WORDS),
    (lambda: text.card(TEXT, [0, 1], 0, [1, 0], {"pad": PAD}, key=3), KEY_WORDS),
    (lambda: text.fill(TEXT, "random", length=2, key=3), KEY_WORDS),
    (
        lambda: perturb.units.unit_effects(G, layer="first", concepts=EDGES, samples=2, key=3),
        KEY_WORDS,
    ),
    (lambda: inversion.invert(G, PICTURES, steps=1, key=3), KEY_WORDS),
    (lambda: gan_dissect.attribute_direction(SPREAD, SPREAD[:, 0], key=3), KEY_WORDS),
    (lambda: channels(layer="conv9"), "nearest: .*taps.names"),
    (lambda: channels(counts=9), "from 1 to 2 for layer 'features'"),
    (lambda: channels(counts=0), "whole numbers from 1"),
    (lambda: channels(counts=1.5), "whole numbers from 1"),
    (lambda: perturb.meaningful(MODEL, X, T, steps=-1), "at least 1"),
    (lambda: perturb.importance_map(MODEL, X, T, areas=()), "areas must be"),
    (lambda: perturb.Model(net, W, output="logit"), "did you mean logits"),
    (lambda: perturb.load_model("resnet_18"), "did you mean resnet18"),
    (lambda: perturb.load_model("resnet18"), 'needs weights="FILE.safetensors", or key='),
    (lambda: perturb.load_model("resnet18", weights="/no/such.pth"), "no file /no/such.pth"),
    (lambda: operators.get("bllur"), "did you mean blur"),
    (lambda: rewards.get("probabilty"), "did you mean probability"),
    (lambda: taps.read(MODEL, "conv9")(X), "nearest: .*taps.names"),
    (lambda: adapters.from_torch(None, engine="cuda"), "'torchax' or 'torch'"),
    (lambda: adapters.from_linen(None, {}, mean=(1, 2)), "one for each of 3 channels"),
    (lambda: adapters.from_linen(net, W), r"perturb.Model\(function, variables\)"),
    (lambda: adapters.from_linen(nn.Dense, {"params": W}), r"write Dense\(...\)"),
    (lambda: adapters.from_linen(None, {"kernel": W}), r"\{'params': params\}"),
    (lambda: maps_by.get("gradcam"), "did you mean grad_cam"),
    (lambda: maps_by.get("saliency"), "attribution must be one of gradient"),
    (lambda: maps_by.grad_cam(MODEL, X, T, layer="layer4"), "nearest: .*taps.names"),
    (lambda: maps_by.integrated_gradients(MODEL, X, T, steps=0), "at least 1"),
    (
        lambda: maps_by.integrated_gradients(MODEL, X, T, baseline=np.zeros((5, 5, 3))),
        r"a colour \[3\]",
    ),
    (lambda: maps_by.occlusion(MODEL, X, T, window=99), "<= window <= 12"),
    (lambda: maps_by.occlusion(MODEL, X, T, stride=0), "1 <= stride"),
    (lambda: maps_by.rise(MODEL, X, T, samples=0), "at least 1"),
    (lambda: maps_by.rise(MODEL, X, T, cells=13), "from 1 to the picture's longer side, 12 px"),
    (lambda: maps_by.rise(MODEL, X, T, cells=0), "longer side, 12 px, got 0"),
    (lambda: maps_by.gradient(NAMED, X, T), "4 classes but 2 class names: give class_names one"),
    (lambda: perturb.extremal(NAMED, X, T, areas=0.2), "4 classes but 2 class names"),
    (lambda: evidence.card(MODEL, X, T, MAPS), "SimpleNamespace"),
    (lambda: defence.fgsm(MODEL, X, T, epsilon=-1), "epsilon must be above 0"),
    (lambda: metrics.deletion(MODEL, X, T, MAPS[:, :5]), "for maps"),
    (lambda: metrics.deletion(MODEL, X, T, MAPS[:1]), "for maps"),
    (lambda: metrics.deletion(MODEL, X, T, X), "one map an image"),
    (lambda: metrics.deletion(MODEL, X, T, MAPS, preset="rize"), "did you mean rise"),
    (lambda: metrics.deletion(OF_SIGNALS, SIGNALS, T, SIGNALS.mean(-1)), r"images\[:, None\]"),
    (lambda: metrics.road(OF_SIGNALS, SIGNALS, T, SIGNALS.mean(-1)), r"images\[:, None\]"),
    (lambda: metrics.road(MODEL, X, T, MAPS, percentages=(0,)), "between 0 and 100"),
    (lambda: metrics.sufficient_area(MODEL, X, T, MAPS, areas=(2.0,)), r"shares in \(0, 1\)"),
    (lambda: metrics.sensitivity_n(MODEL, X, T, MAPS, n=0), "from 1 to 144"),
    (lambda: metrics.sensitivity_n(MODEL, X, T, MAPS, n=999), "from 1 to 144"),
    (lambda: metrics.infidelity(MODEL, X, T, MAPS, samples=0), "at least 1"),
    (lambda: metrics.pointing(MAPS, TRUTH[:, :5]), "like the maps"),
    (lambda: metrics.pointing(MAPS, TRUTH, tolerance=-1), "above 0 px"),
    (lambda: metrics.top_share(MAPS, TRUTH, 0), "from 1 to 144"),
    (lambda: metrics.ssim(MAPS, MAPS[:, :6]), r"must be \[2, 12, 12\]"),
    (lambda: metrics.box_hits(MAPS, [np.zeros((1, 3))] * 2), "left, top, right and bottom"),
    (lambda: metrics.box_hits(MAPS, [np.zeros((1, 4))]), "one array a map"),
    (lambda: metrics.degrade(X, MAPS, 3.0), r"in \[0, 1\]"),
    (lambda: gan_dissect.load_generator("dcgam"), "did you mean dcgan"),
    (lambda: gan_dissect.load_generator("dcgan"), "or key= for random weights"),
    (lambda: gan_dissect.load_generator("dcgan", weights={}, key=KEY), "got both"),
    (lambda: gan_dissect.load_generator("stylegan2", key=KEY, spac="w"), "its options: space"),
    (lambda: gan_dissect.load_generator("dcgan", weights="/no/such.pth"), "no file /no/such.pth"),
    (lambda: gan_dissect.walk(G, Z[0], np.ones(5)), "direction of its size"),
    (lambda: gan_dissect.walk(G, Z[0], Z[0]), "finite and not 0"),
    (lambda: gan_dissect.walk(G, Z[0], np.ones(4), steps=1), "at least 2 frames"),
    (lambda: walks.through(G, Z[:1], frames=3), r"\[P, 4\] with P at least 2"),
    (lambda: gan_dissect.sefa(np.eye(3), k=9), "in 1 to 3"),
    (lambda: gan_dissect.sefa(np.eye(3) * np.nan, k=1), "a finite matrix"),
    (lambda: gan_dissect.ganspace(Z, k=9), "in 1 to 2"),
    (lambda: gan_dissect.ganspace(Z * np.nan, k=1), "finite"),
    (lambda: gan_dissect.ganspace(Z, k=1, latents=Z[:2]), r"\[3, D\] beside the samples"),
    (lambda: factors.ganspace_layer(G, "firts", k=1, key=KEY), "nearest: first"),
    (lambda: gan_dissect.attribute_direction(Z, np.zeros(2)), r"latents must be \[N, D\]"),
    (lambda: gan_dissect.attribute_direction(Z, np.zeros(3)), "score more samples"),
    (
        lambda: gan_dissect.attribute_direction(np.eye(4)[T * 200], np.arange(400.0), loss="svm"),
        "'logistic' or 'hinge'",
    ),
    (lambda: gan_dissect.project(np.ones(4), [np.ones(5)]), r"others \[N, D\]"),
    (lambda: gan_dissect.mix(Z, Z[:1], layers=[0]), r"\[B, layers, D\]"),
    (lambda: gan_dissect.invert(G, PICTURES[:, :2], steps=1), r"must be \[4, 4, 1\]"),
    (lambda: gan_dissect.invert(G, PICTURES + 200, steps=1), r"in \[0, 1\]"),
    (lambda: gan_dissect.invert(G, PICTURES, steps=0), "at least 1"),
    (lambda: inversion.linear_encoder(G, samples=1, key=KEY), "at least 2"),
]


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_a_wrong_call_is_answered_in_one_line(call, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as caught:
        call()
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


def test_there_are_at_least_sixty():
    assert len(CALLS) >= 60
