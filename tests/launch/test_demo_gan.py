import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect.nets import demo_reader
from launch import demo
from launch.demo import (
    gan,
    generator,
    latents,
    strokes,
    train_generator,
    train_reader,
    world,
)
from tests.launch.test_page import Parsed, opened

pytestmark = pytest.mark.slow


def test_every_factor_moves_what_it_names():
    # Nothing stands on an edge: the first background, the first object, hues of some angle. Equal
    # cosine and sine would lie between two colours, and rounding would decide.
    middle = np.full(latents.SIZE, 0.2)
    middle[[0, 4]] = 0.5
    middle[latents.FACTORS.index("colour cos")] = 0.3
    start = latents.TURN.T @ middle
    base = latents.scene(start)
    np.testing.assert_allclose(latents.TURN @ latents.TURN.T, np.eye(latents.SIZE), atol=1e-12)

    def moved(name):
        return latents.scene(start + 2 * latents.TURN[latents.FACTORS.index(name)])

    assert moved("x").center[0] > base.center[0] + 0.1
    assert moved("y").center[1] > base.center[1] + 0.1
    assert moved("size").area > base.area + 0.03
    assert moved("background lightness").background_lightness > base.background_lightness + 0.1
    assert [moved(name).background for name in latents.BACKGROUNDS] == list(latents.BACKGROUNDS)
    shown = [world.class_names[moved(name).target] for name in latents.OBJECTS]
    assert shown == list(latents.OBJECTS)
    still = moved("nothing 2")
    assert (still.background, still.target, still.colour) == (
        base.background,
        base.target,
        base.colour,
    )
    np.testing.assert_allclose(still.center, base.center)
    with pytest.raises(ValueError, match=r"\(20,\)"):
        latents.scene(np.zeros(3))


def test_labels_and_numbers_say_what_is_drawn():
    z = np.random.default_rng(3).standard_normal(latents.SIZE)
    picture = world.draw(latents.scene(z))
    labels, numbers = latents.segments(picture), latents.numbers(picture.factors)
    assert len(numbers) == len(latents.NUMBERS)
    present = [latents.NAMES[i] for i in np.unique(labels)]
    assert present == [picture.factors.background, world.class_names[picture.target]]
    assert (labels > 3).mean() == pytest.approx(picture.factors.area, abs=0.02)
    kinds = dict(zip(latents.NUMBERS, numbers, strict=True))
    assert kinds[present[0]] == kinds[present[1]] == 1
    assert numbers[:8].sum() == 2


@pytest.fixture(scope="module")
def given():
    return strokes.draw(0, 0, 8), train_generator.facts(0, 64)


def test_training_learns_and_continues_from_its_file(given, tmp_path):
    sheets, fact = given
    state, losses = train_generator.init(0, 30), []
    for step in range(30):
        if step == 20:
            train_generator._write(tmp_path / "kept", state, "a")
        key = jax.random.key(step)
        state, found = train_generator.advance(state, sheets, fact, key, steps=30)
        losses.append(float(found["plain"]))
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(ValueError, match=r"left by another command \(a\)"):
        train_generator._read(tmp_path / "kept", state, "b")
    again = train_generator._read(tmp_path / "kept", train_generator.init(0, 30), "a")
    for step in range(20, 30):
        key = jax.random.key(step)
        again, _ = train_generator.advance(again, sheets, fact, key, steps=30)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dense_layers_learn_what_latents_decide(given):
    _, fact = given
    state = train_generator.init(0, 30)
    after = train_generator.prepare(state, fact, steps=60)
    before, then = (
        jax.jit(train_generator._misread)((s.variables, s.readout), fact) for s in (state, after)
    )
    assert then < 0.5 * before
    for layer in ("stamps", "up1", "up3", "rgb"):
        a, b = (s.variables["params"][layer] for s in (state, after))
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_facts_are_of_the_same_latents_as_pairs(given):
    sheets, facts = given
    np.testing.assert_array_equal(sheets.latents, facts.latents[:8])
    np.testing.assert_array_equal(sheets.numbers, facts.numbers[:8])
    drawn = world.draw(latents.scene(sheets.latents[3].astype(np.float64)))
    np.testing.assert_allclose(facts.numbers[3], latents.numbers(drawn.factors), rtol=1e-5)
    u, v, size = facts.place[3]
    inside = np.argwhere(sheets.inside[3])
    # The middle of what is drawn, and as far from it as the farthest corner.
    radius = np.exp(size) * 32
    middle = np.array([v + 1, u + 1]) * 32
    assert np.hypot(*(inside + 0.5 - middle).T).max() == pytest.approx(radius, abs=1.5)


def test_weights_are_written_as_they_are_read(tmp_path):
    state = train_generator.init(0, 5)
    demo.save_generator(tmp_path / "g.safetensors", state.variables)
    from gan_dissect import load_generator

    read = load_generator("demo", weights=tmp_path / "g.safetensors").variables
    for a, b in zip(jax.tree.leaves(state.variables), jax.tree.leaves(read), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_the_reader_refuses_pictures_of_another_size():
    with pytest.raises(ValueError, match=r"\[B, 64, 64, 3\]"):
        jax.eval_shape(
            demo_reader.apply, {"params": {}}, jax.ShapeDtypeStruct((2, 32, 32, 3), "float32")
        )


def test_the_embedded_reader_is_as_good_as_its_record():
    record = json.loads(pathlib.Path(demo.__file__).with_name("demo_reader.json").read_text())
    data = strokes.draw(train_reader.HELD_OUT_SEED, 0, 50)
    found = train_reader.measure(generator._reader(), data)
    assert found["iou"]["mean"] > record["iou"]["mean"] - 0.1
    assert found["iou_under_strokes"]["mean"] > record["iou_under_strokes"]["mean"] - 0.1
    assert found["right"]["background"] > 0.8
    assert found["right"]["object"] > 0.9


@pytest.fixture
def page(launched, tmp_path):
    code, err = launched(gan, "--small", f"--out={tmp_path}/out")
    assert code == 0, err
    return tmp_path / "out" / "report" / "index.html"


def test_the_demo_is_one_page_with_what_was_measured(page, tmp_path):
    summary = json.loads((page.parents[1] / "demo-gan.json").read_text())
    assert summary["psnr_db"] > 10
    assert 0 < summary["pixels_as_meant"] <= 1
    assert summary["cosine_of_direction_and_truth"] > 0.3
    parsed = Parsed(page.read_text())
    assert 1 <= parsed.tags.count("article") <= len(latents.SEGMENTS)
    # A page has one main part, for those who jump to it.
    assert parsed.tags.count("main") == 1
    assert "polyline" in parsed.tags
    text = " ".join(parsed.texts)
    for words in ("Switched off and on", "leakage", "background lightness", "AUC"):
        assert words in text
    if shutil.which("chromium"):
        dom, log = opened(page, tmp_path / "profile")
        images = parsed.tags.count("img")
        assert f'data-pictures="{images}/{images}"' in dom
        assert "CONSOLE" not in log


def test_the_embedded_generator_draws_what_its_latents_should_give(tmp_path):
    direction = tmp_path / "direction.npy"
    np.save(direction, latents.TURN[:1])
    summary, _ = gan._truth(100, direction)
    assert summary["shapes_named_by_the_honest_classifier"]["samples"] > 0.85
    assert summary["iou_of_samples_with_what_was_meant"]["mean"] > 0.9
    record = json.loads(pathlib.Path(demo.__file__).with_name("demo_generator.json").read_text())
    assert summary["psnr_db"] == pytest.approx(record["psnr_db"], abs=1)


@pytest.fixture(scope="module")
def chosen():
    table = gan_dissect.dissect(
        demo.load_generator(),
        layer=gan.LAYER,
        concepts=demo.segments(),
        samples=400,
        key=jax.random.key(0),
        quantile=gan.QUANTILE,
        replicates=0,
    )
    sets = {name: gan_dissect.ranked(table, name, 8).tolist() for name in table.concepts}
    return sets, gan.ON_LEVEL * table.on_levels


@pytest.mark.parametrize("concept", ["object", "stripes", "grass"])
def test_the_embedded_generator_can_be_painted_with(chosen, concept):
    sets, levels = chosen
    asked = {
        "layer": gan.LAYER,
        "concept": concept,
        "units": sets[concept],
        "concepts": demo.segments(),
        "samples": 100,
        "key": jax.random.key(977),
    }
    generator = demo.load_generator()
    on = gan_dissect.context_effects(generator, **asked, value=levels, controls=9)
    assert on.change_low > 0.3
    assert on.change > on.control_change.max()
    # It is painted where the brush is, and nowhere else.
    assert np.abs(on.outside).max() < 0.02
    off = gan_dissect.context_effects(generator, **asked, value=0.0)
    assert off.after < 0.5 * off.before
    # A background does not show where the object stands: that hides what lies behind it.
    there = dict(zip(on.contexts, on.context_change, strict=True))
    assert concept == "object" or there["object"] < 0.3 < there["gradient"]
