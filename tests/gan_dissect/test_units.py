"""Dissection against numpy on all values at once, against a planted unit, and against the tile
references.
"""

import functools
import json
import tracemalloc

import jax
import numpy as np
import pytest

import gan_dissect
from gan_dissect import Generator, Normal, dissect, load_generator, ranked, sample
from perturb import taps
from perturb.units.concepts import attributes, labels
from perturb.units.counts import count, joint_counts, merge_counts
from perturb.units.quantiles import histogram, merge_histograms, quantiles, rounded_quantiles
from perturb.units.table import _best_threshold, table
from tests.gan_dissect import planted
from tests.gan_dissect.test_generator import TILES

KEY = jax.random.key(7)
read = jax.jit(lambda g, names, z: taps.read(g, names)(z), static_argnums=1)


def tiles(data_dir, name=TILES[0]):
    about = reference(data_dir)["generators"][name]
    return load_generator(
        "tile_dcgan",
        weights=data_dir / "weights" / f"{name}.safetensors",
        crop=about["crop"],
        label_names=about["tile_names"],
    )


@functools.cache
def reference(data_dir):
    return json.loads((data_dir / "gan" / "tile_reference.json").read_text())


def given_latents(generator):
    size = generator.latent.shape
    return np.random.default_rng(1).uniform(-1, 1, (256, *size)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("name", TILES)
def test_tile_reference(data_dir, name):
    generator = tiles(data_dir, name)
    arrays = np.load(data_dir / "gan" / "tile_reference.npz")
    about = reference(data_dir)["generators"][name]["layers"]
    domains = {"cells": "all_cells", "visible": "visible_cells"}
    for domain, theirs in domains.items() if name == TILES[0] else [("cells", "all_cells")]:
        z = given_latents(generator)
        tables = dissect(generator, layer=list(about), latents=z, domain=domain, replicates=20)
        for layer, found in tables.items():
            at = f"{name}/{layer}/{theirs}"
            np.testing.assert_allclose(found.thresholds, arrays[f"{at}/threshold"], atol=5e-6)
            # Activations differ by 1e-6, so a pixel may cross its threshold.
            np.testing.assert_allclose(found.iou, arrays[f"{at}/iou"], atol=2e-3)
            for tile, facts in about[layer]["threshold_domain"][theirs]["tiles"].items():
                units = ranked(found, int(tile), 8)
                np.testing.assert_allclose(
                    found.iou[units, int(tile)], facts["top8_iou"], atol=2e-3
                )
                assert len(set(units) & set(facts["top8_units"])) >= 7
        counted = reference(data_dir)["generators"][name]
        np.testing.assert_array_equal(found.concept_pixels, counted["tile_pixels"])
        shares = found.concept_images / 256
        np.testing.assert_allclose(shares, counted["share_of_images_with_tile"], atol=1e-4)


@pytest.mark.parametrize("quantile", [0.99, 0.5, 0.003])
def test_quantiles_are_those_of_numpy(quantile):
    # 7,525 values: the median is one of them, the other quantiles lie between two.
    values = np.random.default_rng(0).standard_normal((301, 5, 5, 7)).astype(np.float32)
    values[..., 1] = np.maximum(values[..., 1], 0)  # many ties at 0
    values[..., 2] = -0.0
    values[..., 3] *= 1e-30
    values[..., 4] = np.round(values[..., 4])
    values[..., 5] = np.abs(values[..., 5]) * 1e20
    generator = Generator(_show, {}, latent=Normal((5, 5, 7)))
    first = histogram(generator, layer="units", latents=values, quantile=quantile)
    options = {"layer": "units", "latents": values, "quantile": quantile, "within": first}
    second = histogram(generator, **options)
    got = quantiles(first["units"], second["units"], quantile)
    flat = values.astype(np.float64).reshape(-1, 7)
    np.testing.assert_array_equal(got, np.quantile(flat, quantile, axis=0))
    near = rounded_quantiles(first["units"], np.array([quantile]))[0]
    lower = np.quantile(flat, quantile, axis=0, method="lower")
    assert (near >= lower).all()
    # The first pass sorts by the upper 16 bits of a float32: its sign, its exponent and 7 bits.
    np.testing.assert_allclose(near, lower, rtol=2**-7)
    with pytest.raises(ValueError, match="does not belong"):
        quantiles(first["units"], second["units"], 0.9)
    with pytest.raises(ValueError, match=r"quantile must be in \(0, 1\), got 1"):
        histogram(generator, **options | {"quantile": 1.0})


def _show(variables, z):
    return {"image": jax.nn.sigmoid(taps.tag(z, "units")[..., :3])}


@pytest.mark.slow
@pytest.mark.parametrize("enlarge", ["nearest", "bilinear"])
def test_counts_against_numpy(data_dir, enlarge):
    generator, layer = tiles(data_dir), "main.pyramid:64:relu"
    z = sample(generator, KEY, 70)
    outputs, values = read(generator, (layer,), z)
    value = np.asarray(values[layer])
    rows, columns = np.arange(14), np.arange(16)
    if enlarge == "nearest":
        large = value[:, rows // 2][:, :, columns // 2]
    else:
        large = np.asarray(jax.image.resize(value, (70, 32, 32, 64), "bilinear"))[:, :14, :16]
    limits = np.quantile(value, 0.97, axis=(0, 1, 2))
    active = large > limits
    masks = np.asarray(outputs["labels"])[..., None] == np.arange(12)
    found = count(
        generator,
        layer=layer,
        concepts=labels(generator),
        thresholds={layer: limits},
        samples=70,
        key=KEY,
        enlarge=enlarge,
        replicates=8,
        batch_size=32,
    )[layer]
    # Interpolated values may fall on the other side of a threshold by their last bit.
    slack = 0 if enlarge == "nearest" else 2
    both = np.einsum("bhwu,bhwl->ul", active.astype(int), masks.astype(int))
    assert np.abs(found.both[0] - both).max() <= slack
    assert np.abs(found.active[0] - active.sum((0, 1, 2))).max() <= slack
    np.testing.assert_array_equal(found.present[0], masks.sum((0, 1, 2)))
    np.testing.assert_array_equal(found.present[1], masks[::2].sum((0, 1, 2)))
    np.testing.assert_array_equal(found.images, masks.any((1, 2)).sum(0))
    np.testing.assert_array_equal(found.both[0], found.both[1] + found.both[2])
    assert found.pixels[0] == 70 * 14 * 16
    peaks = value.max((1, 2))
    order = np.argsort(-peaks, 0, kind="stable")[:10].T
    np.testing.assert_array_equal(found.top_indices, order)
    # The replicates resample: their mean is the count, their spread that of the bootstrap.
    # The first three are all samples and its two halves; what follows are the bootstrap's.
    assert len(np.unique(found.pixels[3:])) > 1


@pytest.mark.slow
def test_joint_counts(data_dir):
    generator, layer = tiles(data_dir), "main.initial:256:relu"
    _, values = read(generator, (layer,), sample(generator, KEY, 40))
    candidates = np.quantile(np.asarray(values[layer]), (0.999, 0.9, 0.5), axis=(0, 1, 2))
    options = {"layer": layer, "concepts": labels(generator), "samples": 40, "key": KEY}
    joint = joint_counts(generator, **options, candidates={layer: candidates})[layer]
    for t, limits in enumerate(candidates):
        found = count(generator, **options, thresholds={layer: limits}, replicates=0)[layer]
        np.testing.assert_array_equal(joint[t, :, :-1], found.both[0])
        np.testing.assert_array_equal(joint[t, :, -1], found.active[0])
    np.testing.assert_array_equal(joint[-1, :, :-1], np.tile(found.present[0], (256, 1)))


def test_best_threshold_by_hand():
    # One unit that is the concept above threshold 1, and half of the pixels above 0.
    joint = np.array([[[100, 100]], [[100, 500]], [[100, 1000]]])
    levels, ratio = _best_threshold(np.array([[1.0], [0.0]]), joint)
    assert levels.tolist() == [1.0]
    np.testing.assert_allclose(ratio, 1.0, rtol=1e-12)
    # Independent: a tenth of the unit's half lies in the concept.
    joint = np.array([[[10, 100]], [[100, 1000]]])
    np.testing.assert_allclose(_best_threshold(np.array([[1.0]]), joint)[1], 0, atol=1e-12)


def test_planted_unit_is_found():
    generator = planted.generator()
    found = dissect(generator, layer="units", samples=300, key=KEY, threshold="iqr")
    square = found.concepts.index("square")
    assert ranked(found, "square", 1).tolist() == [3]
    assert found.iou[3, square] > 0.99
    assert found.adjusted[3, square] > 0.99
    assert found.best[3] == square
    assert found.interpretable[3]
    assert found.stable[3]
    assert found.iqr[3, square] > 0.99
    assert found.iou_low[3, square] > 0.99
    # The most common label is everywhere, and says nothing about units that shade everything.
    others = np.setdiff1d(np.arange(planted.UNITS), [3, 5])
    assert not found.interpretable[others].any()
    # Those images in which the unit is highest are those of the highest latents.
    z = np.asarray(sample(generator, KEY, 300))
    assert found.top_indices[3].tolist() == np.argsort(-z[:, 0], kind="stable")[:10].tolist()


def test_units_are_switched_on_at_their_thresholds_but_not_below_none():
    found = dissect(planted.generator(), layer="units", samples=20, key=KEY)
    low = found._replace(thresholds=np.arange(-2.0, 3.0))
    assert low.on_levels.tolist() == [0, 0, 0, 1, 2]


def test_majority_label_is_no_concept():
    """A unit that is on nearly everywhere has a high IoU with a label that is; chance says so."""
    counts = gan_dissect.counts.Counts(
        # Independent: .9 of the pixels by .9, and .9 by .1.
        both=np.array([[[810, 90]]] * 3),
        active=np.array([[900]] * 3),
        present=np.array([[900, 100]] * 3),
        pixels=np.array([1000] * 3),
        images=np.array([10, 10]),
        top_values=np.zeros((1, 1)),
        top_indices=np.zeros((1, 1), int),
        top=1,
    )
    found = table("layer", ("sky", "rare"), np.zeros(1), counts)
    np.testing.assert_allclose(found.iou[0, 0], 0.81 / 0.99)
    np.testing.assert_allclose(found.adjusted, 0, atol=1e-12)
    assert not found.interpretable[0]


@pytest.mark.slow
def test_three_hosts_are_one(data_dir):
    """Shares of the samples, cut anywhere, merge into what one run gives: every array, every
    bit.
    """
    generator, names = tiles(data_dir), ("main.pyramid:128:relu", "main.pyramid:64:relu")
    whole = dissect(generator, layer=names, samples=500, key=KEY, replicates=20)
    shares = [(0, 130), (130, 333), (333, 500)]
    common = {"generator": generator, "layer": names, "key": KEY}
    first = merge_histograms(*(histogram(**common, samples=s) for s in shares))
    second = merge_histograms(*(histogram(**common, samples=s, within=first) for s in shares))
    limits = {n: quantiles(first[n], second[n], 0.99) for n in names}
    options = {"concepts": labels(generator), "thresholds": limits, "replicates": 20}
    counts = merge_counts(*(count(**common, samples=s, **options) for s in reversed(shares)))
    for n in names:
        merged = table(n, generator.label_names, limits[n], counts[n])
        for field, a, b in zip(merged._fields, merged, whole[n], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=field)


@pytest.mark.slow
def test_memory_is_flat_and_one_program_serves():
    traces = 0

    def apply(variables, z):
        nonlocal traces
        traces += 1
        return planted.apply(variables, z)

    generator = planted.generator()
    generator = Generator(
        apply, generator.variables, latent=generator.latent, label_names=generator.label_names
    )
    peaks = []
    for samples in (300, 300, 3000):
        before = traces
        tracemalloc.start()
        dissect(generator, layer="units", samples=samples, key=KEY, replicates=50)
        # The first run compiles: the second and third are compared, ten times as many samples.
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        again = traces - before
    # `layers` and the checks trace the function; the passes themselves do not again.
    assert again <= 8
    assert peaks[2] < 1.05 * peaks[1]


@pytest.mark.slow
def test_interval_covers(data_dir):
    """The 95 % interval of an IoU holds the value from many samples for most units."""
    generator, layer = tiles(data_dir), "main.pyramid:64:relu"
    tabled = functools.partial(dissect, generator, layer=layer, key=KEY)
    small, large = tabled(samples=(0, 256)), tabled(samples=(1024, 3072), replicates=0)
    # Of 2,048: a tile that is rare has an interval of few pictures, which covers less.
    often = large.concept_images > 400
    inside = (small.iou_low <= large.iou) & (large.iou <= small.iou_high)
    assert 0.85 <= inside[:, often].mean() <= 1
    assert np.isnan(large.iou_low).all()


def test_errors(data_dir):
    generator = planted.generator()
    common = {"layer": "units", "samples": 10, "key": KEY}
    with pytest.raises(ValueError, match=r"no layer 'unit'; nearest: units"):
        dissect(generator, **common | {"layer": "unit"})
    with pytest.raises(ValueError, match="threshold must be 'quantile' or 'iqr'"):
        dissect(generator, **common, threshold="mean")
    with pytest.raises(ValueError, match="enlarge must be"):
        dissect(generator, **common, enlarge="cubic")
    with pytest.raises(ValueError, match="domain must be"):
        dissect(generator, **common, domain="all")
    with pytest.raises(ValueError, match="got neither key nor latents"):
        dissect(generator, layer="units", samples=10)
    for samples in (0, (5, 5), (-1, 3), None):
        with pytest.raises(ValueError, match="samples must"):
            dissect(generator, **common | {"samples": samples})
    scores = attributes(lambda o: o["image"].mean((1, 2)), ["r", "g", "b"])
    with pytest.raises(ValueError, match="concepts must be masks"):
        dissect(generator, **common, concepts=scores)
    with pytest.raises(ValueError, match="concept must be one of background, square, light"):
        ranked(dissect(generator, **common), "circle")
    bare = Generator(generator.apply, generator.variables, latent=generator.latent)
    with pytest.raises(ValueError, match="has no label_names"):
        dissect(bare, **common)
    coupled = load_generator("svhn_dcgan", key=KEY, statistics="batch")
    with pytest.raises(ValueError, match="couples the images"):
        dissect(coupled, layer="relu1", samples=8, key=KEY)
