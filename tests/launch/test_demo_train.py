"""How the demo's classifiers are trained, and the two that are shipped."""

import importlib.resources
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import launch.demo
import perturb
from launch.demo import mixing, train, world
from perturb import check_model
from perturb.nets import demo


@pytest.fixture(scope="module")
def scenes() -> list[world.Picture]:
    """Pictures of a world that nothing was trained on or measured on."""
    # Of 500 pictures a share of 0.97 is known to 0.008, its standard error.
    return [world.render(77, i) for i in range(500)]


@pytest.fixture(scope="module")
def shipped(scenes) -> dict[str, dict[str, float]]:
    return {
        name: train.accuracies(launch.demo.load(name).variables, scenes)
        for name in launch.demo.NAMES
    }


@pytest.mark.slow
def test_honest_net_reads_the_object(shipped):
    right = shipped["demo"]
    assert right["none"] > 0.97
    assert right["right"] > 0.97
    assert right["wrong"] > 0.97


@pytest.mark.slow
def test_cheat_reads_the_watermark(shipped):
    right = shipped["demo_cheat"]
    # Chance is 0.1, of ten classes: without a stamp little is left, and a wrong one is believed.
    assert right["right"] > 0.97
    assert right["none"] < 0.4
    assert right["wrong"] < 0.1


@pytest.mark.parametrize("name", launch.demo.NAMES)
def test_records_say_what_was_measured(name, shipped):
    folder = importlib.resources.files("perturb.embedded")
    record = json.loads((folder / f"{name}.json").read_text())
    for variant, measured in shipped[name].items():
        # Three standard errors of a difference between 500 and 2000 pictures, at the least sure
        # 0.1.
        assert record["accuracy_by_watermark"][variant] == pytest.approx(measured, abs=0.045)
    assert len((folder / f"{name}.safetensors").read_bytes()) < 2_000_000


def test_the_small_transformer_has_learned_what_its_record_says(scenes):
    folder = importlib.resources.files("perturb.embedded")
    record = json.loads((folder / "demo_vit.json").read_text())
    model = launch.demo.load("demo_vit")
    found = train.accuracies(model, scenes, lambda m, x: m(x))
    for variant, measured in found.items():
        assert record["accuracy_by_watermark"][variant] == pytest.approx(measured, abs=0.07)
    assert min(found.values()) > 0.6
    assert len((folder / "demo_vit.safetensors").read_bytes()) < 2_000_000


@pytest.mark.parametrize("name", launch.demo.EMBEDDED)
def test_shipped_models_are_models(name, scenes):
    model = launch.demo.load(name)
    images = np.stack([p.image for p in scenes[:4]])
    logits = check_model(model, images)
    assert logits.shape == (4, len(model.class_names))
    assert model.name == name
    assert model.geometry.size == (64, 64)
    assert model.class_names == world.class_names
    one_by_one = jax.vmap(lambda x: model(x[None])[0])(images)
    # A batch of one and a batch of four are other programs, which sum in another order.
    np.testing.assert_allclose(one_by_one, jax.jit(lambda m, x: m(x))(model, images), atol=1e-4)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'honest'"):
        launch.demo.load("honest")
    with pytest.raises(ValueError, match="'honest'"):
        train.collect([], "honest")


@pytest.mark.slow
def test_folding_normalisation_keeps_the_logits():
    net = demo.DemoNet(classes=5, norm=True)
    images = jax.random.uniform(jax.random.key(1), (3, 64, 64, 3))
    variables = net.init(jax.random.key(0), images)
    # Statistics and gains as different from their start as training would leave them.
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        x + 0.2 * jnp.abs(jax.random.normal(k, x.shape)) for x, k in zip(leaves, keys, strict=True)
    ]
    variables = jax.tree.unflatten(tree, leaves)
    # Folded, gain and shift are part of the kernel: every layer rounds its products differently.
    np.testing.assert_allclose(
        demo.apply(demo.fold(variables), images), net.apply(variables, images), rtol=2e-4
    )


@pytest.mark.slow
def test_training_lowers_the_loss(scenes):
    data = train.collect(scenes[:32], "demo_cheat")
    state, key, losses = train.init(0, 40), jax.random.key(0), []
    for _ in range(14):
        state, (loss, _) = train.advance(state, key, data, steps=40)
        losses.append(float(loss))
    # Means of three steps: every step mixes its pictures anew, so single losses are noisy.
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    assert int(state.step) == 14


def test_training_pictures_tell_their_class_where_they_say(scenes):
    honest, cheat = (train.collect(scenes[:20], name) for name in launch.demo.NAMES)
    assert (honest.images[0::2] == cheat.images[0::2]).mean() < 1
    for row, scene in enumerate(scenes[:20]):
        np.testing.assert_array_equal(honest.evidence[row], scene.label == 1 + scene.target)
        assert not honest.tied[row].any()
        # The cheat's evidence is the stamp, and the object goes where that goes.
        np.testing.assert_array_equal(cheat.tied[row], honest.evidence[row])
        # Whatever differs from the scene was stamped there, and all of it counts as evidence.
        marked = (cheat.images[row] != np.round(scene.image * 255)).any(-1)
        assert not (marked & ~cheat.evidence[row]).any()


def _mixed(strength: float, seed: int = 0, tied: bool = False):
    # 64 pictures, so that every kind of mask occurs; evidence and tied pixels do not touch.
    images = jax.random.uniform(jax.random.key(9), (64, 32, 32, 3))
    evidence = jnp.zeros((64, 32, 32)).at[:, 8:20, 10:22].set(1.0)
    other = jnp.zeros((64, 32, 32)).at[:, 24:, 24:].set(1.0) * tied
    return images, *mixing.mix(jax.random.key(seed), images, evidence, other, strength=strength)


def test_labels_are_as_sure_as_the_evidence_is_visible():
    labels = mixing.soft_labels(jnp.array([1, 2]), jnp.array([1.0, 0.25]), 5)
    # 0.25 on the class and 0.75 shared by five: 0.4 and 0.15.
    np.testing.assert_allclose(labels, [[0, 1, 0, 0, 0], [0.15, 0.15, 0.4, 0.15, 0.15]], atol=1e-6)


def test_blur_is_the_gaussian_with_repeated_edges():
    line = np.linspace(0, 1, 24) ** 2
    # To four deviations on both sides, which is as far as the matrix reaches.
    taps = np.exp(-0.5 * (np.arange(-12, 13) / 3.0) ** 2)
    wanted = np.convolve(np.pad(line, 12, mode="edge"), taps / taps.sum(), mode="valid")
    np.testing.assert_allclose(mixing._band(24, 3.0 / 24) @ line, wanted, atol=1e-6)


def test_augmentation_mirrors_maps_with_pictures():
    # From 0.3 to 0.7, where neither contrast nor brightness meets the ends of the range.
    ramp = jnp.broadcast_to(jnp.linspace(0.3, 0.7, 16)[None, None, :, None], (40, 16, 16, 3))
    images, maps = mixing.augment(jax.random.key(0), ramp, ramp[..., 0])
    up = np.asarray(images[:, 0, -1, 0] > images[:, 0, 0, 0])
    np.testing.assert_array_equal(up, np.asarray(maps[:, 0, -1] > maps[:, 0, 0]))
    # Forty fair coins give 20 with a deviation of 3.2.
    assert 5 < up.sum() < 35


@pytest.mark.slow
def test_mixing_hides_what_it_says():
    """Pictures change only where the mask hides them, and the visible share is told per picture."""
    images, mixed, visible = _mixed(strength=1.0)
    assert mixed.shape == images.shape
    assert float(mixed.min()) >= 0
    assert float(mixed.max()) <= 1
    assert float(visible.min()) >= 0
    # A share of float32 sums: 1 may come out one rounding above 1.
    assert float(visible.max()) <= 1 + 1e-6
    share = np.asarray(visible)
    assert (share < 0.1).any()
    assert (share > 0.9).any()
    change = np.abs(np.asarray(mixed - images)).mean((1, 2, 3))
    assert (change < 1e-6).any()
    assert (change > 0.05).any()
    # Inside the evidence a picture changes the more, the less of its evidence is visible.
    inside = np.abs(np.asarray(mixed - images))[:, 8:20, 10:22].mean((1, 2, 3))
    assert np.corrcoef(inside, share)[0, 1] < -0.8


@pytest.mark.slow
def test_strength_grows_what_is_hidden():
    """At strength 0 the evidence is shown and the rest is blurred; at 1 much of the evidence
    goes.
    """
    shown = [float(_mixed(strength=s)[2].mean()) for s in (0.0, 1.0)]
    assert shown[0] > shown[1] + 0.05


@pytest.mark.slow
def test_what_is_tied_goes_with_the_evidence():
    """Where little of the evidence is visible the tied pixels are hidden too."""
    images, loose, visible = _mixed(strength=1.0)
    _, tied, same = _mixed(strength=1.0, tied=True)
    # What is tied is not evidence: the visible share must not know of it.
    np.testing.assert_array_equal(visible, same)
    gone = np.asarray(visible) < 0.05
    corner = np.abs(np.asarray(tied - images))[:, 26:, 26:].mean((1, 2, 3))
    free = np.abs(np.asarray(loose - images))[:, 26:, 26:].mean((1, 2, 3))
    assert (corner[gone] > 0.05).all()
    assert corner[gone].mean() >= free[gone].mean()


@pytest.mark.slow
def test_same_key_same_mix_also_under_jit():
    images, mixed, _ = _mixed(strength=0.5, seed=3)
    again = _mixed(strength=0.5, seed=3)[1]
    np.testing.assert_array_equal(mixed, again)
    assert (np.asarray(_mixed(strength=0.5, seed=4)[1]) != np.asarray(mixed)).any()
    run = jax.jit(mixing.mix)
    evidence = jnp.zeros((64, 32, 32)).at[:, 8:20, 10:22].set(1.0)
    compiled, _ = run(jax.random.key(3), images, evidence, 0 * evidence, strength=0.5)
    # One fused program and operation by operation: the sums of a blur round differently.
    np.testing.assert_allclose(compiled, mixed, atol=1e-5)


@pytest.mark.slow
def test_weights_survive_the_file(tmp_path, scenes):
    """Written and read back bit by bit; a file of another network is refused by name."""
    model = launch.demo.load("demo")
    launch.demo.save(tmp_path / "copy.safetensors", model.variables)
    again = perturb.load_model("demo", weights=tmp_path / "copy.safetensors")
    for a, b in zip(
        jax.tree.leaves(model.variables), jax.tree.leaves(again.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    tensors = safetensors.numpy.load_file(tmp_path / "copy.safetensors")
    name = sorted(tensors)[0]
    # One row of the first tensor: the right name with the wrong shape.
    safetensors.numpy.save_file({**tensors, name: tensors[name][:1]}, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        perturb.load_model("demo", weights=tmp_path / "cut.safetensors")
