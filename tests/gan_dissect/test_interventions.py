"""Units off and on against the formula by hand, a planted unit, and the tile references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import Generator, Normal, dissect, ranked, sample, set_units, unit_effects
from perturb import taps
from perturb.units.concepts import attributes
from perturb.units.interventions import Edit, edit_units, random_sets
from perturb.units.linear import head
from tests.gan_dissect import planted
from tests.gan_dissect.test_generator import TILES
from tests.gan_dissect.test_units import given_latents, read, reference, tiles

KEY = jax.random.key(3)
run = jax.jit(lambda g, z: g(z))
# Generator, layer; the rest of the nine are slow.
CASES = [
    (TILES[0], "main.pyramid:128:relu"),
    (TILES[1], "main.pyramid.64.relu"),
    (TILES[2], "main.pyramid:64:relu"),
]
REST = [
    (TILES[0], "main.initial:256:relu"),
    (TILES[0], "main.pyramid:64:relu"),
    (TILES[1], "main.initial.256.relu"),
    (TILES[1], "main.pyramid.128.relu"),
    (TILES[2], "main.initial:256:relu"),
    (TILES[2], "main.pyramid:128:relu"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in REST)]
)
def test_tile_reference(data_dir, name, layer):
    """What is left of each tile without its best 8 units, and the band of 20 random sets: within 1
    %.
    """
    generator = tiles(data_dir, name)
    about = reference(data_dir)["generators"][name]
    facts = about["layers"][layer]
    z = given_latents(generator)
    table = dissect(generator, layer=layer, latents=z, replicates=0)
    here = {int(k): v for k, v in facts["threshold_domain"]["all_cells"]["tiles"].items()}
    units = [ranked(table, tile, 8) for tile in here]
    for tile, found in zip(here, units, strict=True):
        np.testing.assert_allclose(table.iou[found, tile], here[tile]["top8_iou"], atol=1e-3)
    effect = unit_effects(
        generator,
        layer=layer,
        units=units,
        latents=z,
        controls=facts["random_sets"],
        batch_size=128,
    )
    np.testing.assert_array_equal(np.round(effect.before * about["n_pixels"]), about["tile_pixels"])
    for i, (tile, fact) in enumerate(here.items()):
        # Where ranks 8 and 9 tie within rounding, another set is as right: none does here.
        assert set(units[i]) == set(fact["top8_units"])
        # Within 1 %, or one pixel of a tile that has few.
        slack = 0.01 + 1.5 / fact["pixels_before"]
        assert abs(effect.ratio[i, tile] - fact["ratio"]) <= slack * max(1, fact["ratio"])
        leak = fact["area_fraction_after"]
        np.testing.assert_allclose(effect.after[i], leak, atol=0.01 * max(leak))
        band = effect.control_ratio[0, :, tile]
        want = facts["random"][str(tile)]["ratios"]
        np.testing.assert_allclose(band, want, rtol=0.01, atol=slack)
        for q, theirs in ((5, "random_p05"), (95, "random_p95")):
            assert abs(np.percentile(band, q) - fact[theirs]) <= slack * max(1, fact[theirs])
        if not fact["few_images"]:
            low, high = fact["ratio_ci95"]
            ours = effect.ratio_high[i, tile] - effect.ratio_low[i, tile]
            assert 0.6 * (high - low) <= ours <= 1.6 * (high - low)
            at_or_below = (band <= effect.ratio[i, tile]).sum()
            assert abs(at_or_below - fact["random_sets_at_or_below"]) <= 1
            assert effect.images[tile] >= 20


@pytest.mark.slow
def test_planted_square_is_switched_off_exactly():
    generator = planted.generator()
    z = sample(generator, KEY, 50)
    before, off = run(generator, z), set_units(generator, z, {"units": {3: 0.0}})
    drawn = np.asarray(before["labels"]) == 1
    # A latent above 0 draws it: half of fifty, with a deviation of 3.5.
    assert drawn[:, *planted.SQUARE].any((1, 2)).sum() > 15
    assert not (np.asarray(off["labels"]) == 1).any()
    # Where there was no square nothing changes, and where there was one, the background shows.
    np.testing.assert_array_equal(off["image"][~drawn], before["image"][~drawn])
    assert (np.asarray(off["image"])[drawn][:, 0] < 1).all()
    effect = unit_effects(generator, layer="units", samples=200, key=KEY, controls=30)
    square = effect.concepts.index("square")
    assert effect.after[3, square] == 0
    assert effect.ratio[3, square] == 0
    assert effect.ratio_high[3, square] == 0
    others = np.delete(np.arange(planted.UNITS), 3)
    np.testing.assert_array_equal(effect.ratio[others, square], 1)
    np.testing.assert_array_equal(effect.change[others, square], 0)
    # Leakage: what was square is background or light now, in equal measure.
    np.testing.assert_allclose(effect.change.sum(-1), 0, atol=1e-6)
    assert effect.control_ratio.shape == (1, 30, 3)


def test_on_and_in_a_place():
    generator = planted.generator()
    z = sample(generator, KEY, 40)
    place = np.zeros((8, 8), np.float32)
    # A cell of the layer outside the square; each is 4 x 4 px of the picture.
    place[1, 1] = 1
    on = np.asarray(set_units(generator, z, {"units": {3: 2.0}}, where=place)["labels"])
    before = np.asarray(run(generator, z)["labels"])
    assert (on[:, 4:8, 4:8] == 1).all()
    outside = np.ones((32, 32), bool)
    outside[4:8, 4:8] = False
    np.testing.assert_array_equal(on[:, outside], before[:, outside])
    # One mask an image, and values that differ from place to place.
    masks = np.zeros((40, 8, 8), np.float32)
    masks[7] = place
    one = np.asarray(
        set_units(generator, z, {"units": {3: 2 * place}}, where={"units": masks})["labels"]
    )
    np.testing.assert_array_equal(np.delete(one, 7, 0), np.delete(before, 7, 0))
    np.testing.assert_array_equal(one[7], on[7])


@pytest.mark.slow
def test_the_formula(data_dir):
    generator, layer = tiles(data_dir), "main.pyramid:64:relu"
    z = sample(generator, KEY, 6)
    rng = np.random.default_rng(0)
    x, a, v = (rng.random(s).astype(np.float32) for s in ((6, 16, 16, 64), (16, 16, 64), (64,)))
    np.testing.assert_allclose(
        edit_units(jnp.asarray(x), Edit(a, v)), x * (1 - a) + v * a, rtol=1e-6
    )
    # By hand: the last layer, run on the edited activation.
    _, values = read(generator, (layer,), z)
    edited = np.asarray(values[layer]).copy()
    # Strength .5 is halfway to the value of 3.
    edited[..., 5] = 0.5 * edited[..., 5] + 0.5 * 3
    kernel = np.asarray(generator.variables["params"]["main.final:64-12:convt"]["kernel"])
    scores = jax.lax.conv_general_dilated(
        edited,
        kernel,
        (1, 1),
        [(2, 2), (2, 2)],
        lhs_dilation=(2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    got = set_units(generator, z, {layer: {5: 3.0}}, strength=0.5)
    np.testing.assert_allclose(got["scores"], np.maximum(scores, 0)[:, :14, :16], atol=1e-4)
    nothing = set_units(generator, z, {layer: {5: 3.0}}, strength=0.0)
    np.testing.assert_allclose(nothing["scores"], run(generator, z)["scores"], atol=1e-5)
    # Two layers at once: the later one is made from the earlier one's new values.
    early = "main.pyramid:128:relu"
    both = set_units(generator, z, {early: {0: 0.0, 101: 0.0}, layer: {5: 0.0}})
    alone = set_units(generator, z, {early: {0: 0.0, 101: 0.0}})
    assert np.abs(both["scores"] - alone["scores"]).max() > 1e-3
    f = jax.jit(lambda g, latents: set_units(g, latents, {layer: {5: 3.0}}, strength=0.5))
    np.testing.assert_allclose(f(generator, z)["scores"], got["scores"], atol=1e-4)
    g = jax.vmap(
        lambda one: set_units(generator, one[None], {layer: {5: 3.0}}, strength=0.5)["scores"][0]
    )
    np.testing.assert_allclose(g(z), got["scores"], atol=1e-4)


@pytest.mark.slow
def test_sweep_is_set_units(data_dir):
    generator, layer = tiles(data_dir), "main.pyramid:64:relu"
    z = given_latents(generator)[:50]
    effect = unit_effects(
        generator, layer=layer, latents=z, units=[3, 60, 7], value=1.5, batch_size=32
    )
    for i, unit in enumerate((3, 60, 7)):
        outputs = set_units(generator, z, {layer: {unit: 1.5}})
        areas = (np.asarray(outputs["labels"])[..., None] == np.arange(12)).mean((0, 1, 2))
        np.testing.assert_allclose(effect.after[i], areas, atol=1e-6)
    assert effect.control_ratio.shape == (1, 0, 12)
    assert np.isnan(effect.p_value).all()
    # Attributes of whole images are measured in the same way, and the whole layer by default.
    mean = attributes(lambda o: o["scores"].mean((1, 2, 3))[:, None], ["mean"])
    every = unit_effects(
        generator, layer=layer, latents=z, concepts=mean, batch_size=32, replicates=0
    )
    assert every.after.shape == (64, 1)
    off = set_units(generator, z, {layer: {60: 0.0}})["scores"].mean()
    np.testing.assert_allclose(every.after[60, 0], off, rtol=1e-4)
    assert np.isnan(every.ratio_low).all()


@pytest.mark.slow
def test_controls_and_p_values(data_dir):
    generator, layer = tiles(data_dir), "main.pyramid:128:relu"
    water = [
        int(u)
        for u in reference(data_dir)["generators"][TILES[0]]["layers"][layer]["threshold_domain"][
            "all_cells"
        ]["tiles"]["10"]["top8_units"]
    ]
    common = {"layer": layer, "samples": 128, "key": KEY, "batch_size": 128}
    effect = unit_effects(
        generator, **common, units=[water, [0, 1], [5, 6]], controls=39, replicates=20
    )
    np.testing.assert_array_equal(effect.control_sizes, [2, 8])
    np.testing.assert_array_equal(effect.control_sets.sum(-1), [[2] * 39, [8] * 39])
    # Beyond all 39 controls: (1 + 0) / (39 + 1), two-sided.
    np.testing.assert_allclose(effect.p_value[0, 10], 2 / 40)
    assert effect.p_value[1:].min() > 0
    again = unit_effects(generator, **common, units=[water], controls=39, replicates=20)
    np.testing.assert_array_equal(again.control_sets[0], effect.control_sets[1])
    sets = random_sets(30, 5, 4000, KEY)
    assert (sets.sum(-1) == 5).all()
    # 4,000 sets: a unit's share has a standard error of .006.
    np.testing.assert_allclose(sets.mean(0), 5 / 30, atol=0.03)


def test_dense_layers():
    def apply(w, z):
        return {"image": jax.nn.sigmoid(jax.nn.relu(z @ w)).reshape(-1, 2, 2, 1)}

    generator = Generator(apply, jnp.eye(4), latent=Normal((4,)))
    z = jnp.ones((3, 4))
    off = set_units(generator, z, {"relu": {2: 0.0}})["image"]
    # Unit 2 of four is the pixel (1, 0), and the sigmoid of 0 is a half.
    np.testing.assert_allclose(off[:, 1, 0, 0], 0.5)
    light = attributes(lambda o: o["image"].mean((1, 2, 3))[:, None], ["light"])
    effect = unit_effects(generator, layer="relu", latents=z, concepts=light)
    # Four alike units, each of which draws one pixel.
    assert np.ptp(effect.change) < 1e-6
    assert (effect.change < 0).all()


@pytest.mark.parametrize(
    ("edits", "options", "match"),
    [
        ({"unit": {0: 0.0}}, {}, "no layer 'unit'; nearest: units"),
        ({"units": {12: 0.0}}, {}, "units of 'units' are 0 to 11, got 12"),
        ({"units": {-1: 0.0}}, {}, "got -1"),
        ({"units": {1.0: 0.0}}, {}, "got 1.0"),
        ({"units": {0: np.zeros((4, 4))}}, {}, r"must be a number or \[8, 8\], got shape \(4, 4\)"),
        ({"units": {0: 0.0}}, {"where": np.ones((4, 4))}, r"where must be \[8, 8\]"),
        (
            {"units": {0: 0.0}},
            {"where": {"unit": np.ones((8, 8))}},
            "for layers of edits, got 'unit'",
        ),
        ({"units": {0: 0.0}}, {"strength": 2.0}, r"strength must be in \[0, 1\], got 2"),
    ],
)
def test_errors(edits, options, match):
    generator = planted.generator()
    with pytest.raises(ValueError, match=match):
        set_units(generator, jnp.zeros((2, 6)), edits, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"units": [12]}, "are 0 to 11, got 12"),
        ({"units": []}, "at least one unit or set"),
        ({"value": np.zeros(5)}, r"value must be a number, \[12\] or \[8, 8, 12\]"),
        ({"where": np.ones((4, 4))}, r"where must be \[8, 8\]"),
        ({"controls": [[1], [1, 2]]}, "sets of one size"),
        ({"layer": "relus"}, "no layer 'relus'"),
    ],
)
def test_effect_errors(options, match):
    options = {"layer": "units", "samples": 4, "key": KEY} | options
    with pytest.raises(ValueError, match=match):
        unit_effects(planted.generator(), **options)


@pytest.mark.slow
def test_few_units_are_a_small_convolution(data_dir):
    """The shortcut through the first convolution gives what the whole suffix gives."""
    generator, layer = tiles(data_dir), "main.pyramid:128:relu"
    z = sample(generator, KEY, 5)
    prefix, suffix = taps.split(generator, layer)
    x, live = prefix(z)
    found = head(suffix, x, live)
    d = jnp.asarray(np.random.default_rng(0).standard_normal((5, 8, 8, 3)), jnp.float32)
    units = jnp.array([5, 0, 127])
    whole = suffix(x.at[..., units].add(d), live)
    short = found.tail(found.plain + found.change(d, units))
    np.testing.assert_allclose(short["scores"], whole["scores"], atol=1e-4)
    np.testing.assert_array_equal(short["labels"], whole["labels"])
    # What is no convolution alone, or is read twice, has no shortcut.
    for after in (lambda x: jnp.tanh(x), lambda x: x + x.sum((1, 2), keepdims=True)):
        assert head(lambda x, live, f=after: {"image": f(x)}, x, ()) is None
    # Sets of more than a quarter of the units take the long way: the same effect.
    common = {"layer": layer, "latents": z, "replicates": 0}
    one = unit_effects(generator, **common, units=[[3], [9, 4]])
    both = unit_effects(generator, **common, units=[[3], [9, 4], list(range(40))])
    np.testing.assert_allclose(one.after, both.after[:2], atol=1e-6)
