"""Dissection of classifiers: counts against numpy, blocks from the host, partial labels, and the
null.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from launch import demo
from launch.demo import world
from perturb import taps, units
from perturb.internals import dissect_pictures, layer_tables, random_network, verdicts
from perturb.units import Pictures, units_of

NAMES = world.label_names[1:]


def masks_of(drawn):
    return drawn.label[..., None] == 1 + np.arange(len(NAMES))


@pytest.fixture(scope="module")
def stamped():
    return world.render_batch(11, range(150), watermark="random")


def _planted(rng, count=40):
    """Units that are a concept, a thinned one (half of its pixels), noise, and the concept mixed
    with something else; `[N, 8, 8, 4]`.
    """
    # One pixel in ten, as of a small thing in a picture.
    concept = rng.random((count, 8, 8)) < 0.1
    thin = concept & (rng.random(concept.shape) < 0.5)
    noise, other = (rng.random(concept.shape) < 0.1 for _ in range(2))
    images = np.stack([concept, thin, noise, concept | other], -1).astype(np.float32)
    model = perturb.Model(
        lambda _, x: taps.tag(x + 0.0, "units").mean((1, 2)), jnp.zeros(1), channels=4
    )
    return model, images, concept[..., None]


@pytest.mark.slow
def test_planted_units_have_the_iou_of_their_closed_form():
    model, images, masks = _planted(np.random.default_rng(0))
    table = layer_tables(
        model, images, layers=["units"], masks=masks, concepts=["thing"], quantile=0.5, replicates=0
    )["units"]
    # The thinned unit lies within the concept, so its share is its IoU.
    share = images[..., 1].sum() / images[..., 0].sum()
    assert table.iou[0, 0] == 1.0
    assert table.iou[1, 0] == pytest.approx(share)
    # Noise overlaps by chance alone, which the adjusted value takes away.
    assert table.adjusted[2, 0] == pytest.approx(0.0, abs=0.02)
    assert table.iou[3, 0] == pytest.approx(images[..., 0].sum() / images[..., 3].sum())


@pytest.mark.slow_cases
@pytest.mark.parametrize("name", ["demo", "cifar_resnet20", "squeezenet1_1"])
@pytest.mark.parametrize(("quantile", "enlarge"), [(0.995, "bilinear"), (0.99, "nearest")])
def test_counts_are_numpys(name, quantile, enlarge):
    layer, side = {
        "demo": ("relu#3", 64),
        "cifar_resnet20": ("layer2.0", 32),
        "squeezenet1_1": ("features.3", 64),
    }[name]
    model = perturb.load_model(name, key=jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.random((10, side, side, 3)).astype(np.float32)
    masks = rng.random((10, side, side, 2)) < 0.3
    table = layer_tables(
        model,
        images,
        layers=[layer],
        masks=masks,
        concepts=["a", "b"],
        quantile=quantile,
        enlarge=enlarge,
        replicates=0,
        batch_size=10,
    )[layer]
    values = np.asarray(jax.jit(lambda x: taps.read(model, layer)(x)[1][layer])(images))
    cut = np.quantile(values.reshape(-1, values.shape[-1]).astype(np.float64), quantile, axis=0)
    # Activations of two programs differ by rounding, a few units of the last place of float32.
    np.testing.assert_allclose(table.thresholds, cut, rtol=1e-5)
    grid = values.shape[1]
    if enlarge == "nearest":
        # The cell that a pixel lies in, with whole numbers only.
        at = np.arange(side) * grid // side
        grown = values[:, at][:, :, at]
        active = grown > cut
        both = np.einsum("bhwu,bhwl->ul", active.astype(int), masks.astype(int))
        union = active.sum((0, 1, 2))[:, None] + masks.sum((0, 1, 2)) - both
        assert np.array_equal(table.unit_pixels, active.sum((0, 1, 2)))
        np.testing.assert_array_equal(table.iou, both / union)
    else:
        # Linear between the middles of cells, as images are resized.
        at = np.clip((np.arange(side) + 0.5) * grid / side - 0.5, 0, grid - 1)
        near = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grid))).astype(np.float32)
        grown = np.einsum("Hh,bhwu,Ww->bHWu", near, values, near, optimize=True)
        active = grown > cut
        # Float sums in another order: pixels at the very threshold may fall either way.
        assert np.abs(table.unit_pixels - active.sum((0, 1, 2))).max() <= 2


def test_pictures_read_from_elsewhere_in_any_shards_give_the_same_bits(stamped):
    class Lazy:
        """Reads a slice at a time, and never more than a block."""

        def __init__(self, arrays):
            self.arrays, self.largest = arrays, 0

        def __len__(self):
            return len(self.arrays["image"])

        def __getitem__(self, at):
            found = {k: v[at] for k, v in self.arrays.items()}
            self.largest = max(self.largest, len(found["image"]))
            return found

    arrays = {"image": stamped.image[:50], "masks": masks_of(stamped)[:50]}
    lazy = Lazy(arrays)
    subject = Pictures(model=demo.load("demo"), size=(64, 64), layers=("relu#4",), concepts=NAMES)
    options = {"layer": units_of("relu#4"), "concepts": subject.masks(), "batch_size": 16}
    a = units.dissect(subject, latents=arrays, replicates=5, **options)
    b = units.dissect(subject, latents=lazy, replicates=5, **options)
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x, y)
    # A block at the most: a data set never has to fit into memory.
    assert lazy.largest <= 16
    common = {"layer": units_of("relu#4"), "batch_size": 16, "latents": lazy}
    levels = {units_of("relu#4"): a.thresholds}
    parts = [
        units.counts.count(
            subject,
            concepts=subject.masks(),
            thresholds=levels,
            samples=part,
            replicates=5,
            **common,
        )
        # Out of order and cut inside a batch: counts are sums.
        for part in ((21, 50), (0, 21))
    ]
    merged = units.counts.merge_counts(*parts)[units_of("relu#4")]
    assert np.array_equal(units.table("@relu#4", NAMES, a.thresholds, merged).iou, a.iou)


def test_partial_labels_count_labelled_pixels_only():
    model, images, masks = _planted(np.random.default_rng(1))
    labelled = np.random.default_rng(2).random(masks.shape) < 0.5
    wrong = masks ^ ~labelled  # nonsense wherever nothing is labelled
    common = {"layers": ["units"], "concepts": ["thing"], "quantile": 0.5, "replicates": 0}
    table = layer_tables(model, images, masks=wrong, labelled=labelled, **common)["units"]
    assert table.concepts == ("thing",)
    assert table.iou[0, 0] == 1.0
    inside = labelled[..., 0] & (images[..., 0] > 0)
    assert table.iou[1, 0] == pytest.approx(images[..., 1][inside].mean())


def test_thresholds_are_not_chosen_on_noise():
    """Training samples of "iqr" are drawn, and what pictures draw shows no concept."""
    model, images, masks = _planted(np.random.default_rng(0), 4)
    subject = Pictures(model=model, size=(8, 8), layers=("units",), concepts=("thing",))
    given = {"latents": {"image": images, "masks": masks}, "concepts": subject.masks()}
    with pytest.raises(ValueError, match="threshold must be 'quantile' for given pictures"):
        units.dissect(subject, layer=units_of("units"), threshold="iqr", **given)


@pytest.mark.slow
def test_tokens_and_channels_first_are_maps_of_units():
    from perturb.nets.vit import ViT

    net = ViT(classes=3, patch=8, width=16, heads=2, hidden=32, layers=1)
    images = np.random.default_rng(0).random((6, 32, 32, 3)).astype(np.float32)
    model = perturb.Model(net.apply, net.init(jax.random.key(0), images[:1]))
    masks = np.random.default_rng(1).random((6, 32, 32, 2)) < 0.5
    layers = ["encoder.layers.encoder_layer_0", "heads.head"]
    found = layer_tables(
        model, images, layers=layers, masks=masks, concepts=["a", "b"], replicates=0, batch_size=6
    )
    assert found[layers[0]].iou.shape == (16, 2)
    assert found[layers[1]].iou.shape == (3, 2)

    def first(w, x):
        return taps.tag(jnp.moveaxis(x * w, -1, 1), "units").mean((2, 3))

    turned = perturb.Model(first, jnp.float32(2), channels=4)
    plain, images, masks = _planted(np.random.default_rng(0))
    common = {
        "layers": ["units"],
        "masks": masks,
        "concepts": ["x"],
        "quantile": 0.5,
        "replicates": 0,
    }
    a, b = (layer_tables(m, images, **common)["units"] for m in (plain, turned))
    assert np.array_equal(a.iou, b.iou)


@pytest.mark.slow
def test_the_last_layer_tells_the_honest_network_from_the_cheat(stamped):
    common = {
        "layers": ["relu#6"],
        "masks": masks_of(stamped),
        "concepts": NAMES,
        "replicates": 0,
        "networks": 2,
        "rotations": 0,
        "enlarge": "bilinear",
        "batch_size": 50,
        "key": jax.random.key(0),
    }
    found = {
        n: dissect_pictures(demo.load(n), stamped.image, **common)["relu#6"] for n in demo.NAMES
    }
    # The ten shapes come first among the names, the stamp last.
    shapes = {n: sum(v.passes & (v.table.best < 10)) for n, v in found.items()}
    stamps = {n: sum(v.passes & (v.table.best == len(NAMES) - 1)) for n, v in found.items()}
    assert shapes["demo"] >= 52  # of 64, on 150 pictures; 58 and more on 600
    assert stamps["demo"] == 0
    assert stamps["demo_cheat"] >= 60


@pytest.mark.slow
def test_random_and_rotated_random_networks_do_not_pass():
    drawn = world.render_batch(11, range(200), watermark="random")
    layers = ["relu", "relu#2", "relu#4", "relu#6"]
    common = {
        "layers": layers,
        "masks": masks_of(drawn),
        "concepts": NAMES,
        "replicates": 0,
        "batch_size": 50,
    }
    model = demo.load("demo")
    tables = [
        layer_tables(
            random_network(model, jax.random.key(k)),
            drawn.image,
            rotations=1,
            key=jax.random.key(k),
            **common,
        )
        # Eight networks, each judged by the seven others.
        for k in range(8)
    ]
    for layer in layers:
        passed, rule = [], []
        for k, own in enumerate(tables):
            others = [t[layer] for i, t in enumerate(tables) if i != k]
            for name in (layer, f"@{layer}~0"):
                passed.append(verdicts(own[name], others).passes.mean())
                rule.append(own[name].interpretable.mean())
        # No more than 5 %, on any layer, of a network that has learned nothing.
        assert max(passed) <= 0.05, (layer, passed)
    assert (
        np.mean([t["relu"].interpretable.mean() for t in tables]) > 0.3
    )  # what the rule alone says


def _table(adjusted):
    """A `Dissection` of which only what verdicts read is filled."""
    best = adjusted.argmax(1)
    blank = dict.fromkeys(units.Dissection._fields)
    over = adjusted[np.arange(len(best)), best] > 0.04
    return units.Dissection(**{**blank, "adjusted": adjusted, "best": best, "interpretable": over})


def test_a_handful_of_outliers_of_one_random_network_does_not_pass():
    rng = np.random.default_rng(0)

    def layer():
        return rng.normal(0, 0.02, (40, 3))

    random = [_table(layer()) for _ in range(10)]
    # The null has a network with some units that stand out, and so may the next one.
    # A tenth of the units of three networks in ten.
    for at, height in ((0, 0.14), (3, 0.16), (7, 0.12)):
        random[at].adjusted[:4, 0] = height
    random = [_table(t.adjusted) for t in random]
    odd = layer()
    # Higher than any of these, but on as few units: another such network, and no concept.
    odd[:5, 0] = 0.19
    pooled, held = verdicts(_table(odd), random[:5]), verdicts(_table(odd), random)
    assert pooled.passes[:5].all()  # by the pooled null alone
    assert pooled.limit == -np.inf
    assert pooled.shared is None
    assert held.p_value[:5].max() < 0.01
    assert not held.passes.any()
    # A unit beyond what any network shows passes, and so do all of a layer that holds the concept.
    far = odd.copy()
    # 1 is a perfect match, which none of the ten networks came near.
    far[0, 1] = 1.0
    assert np.flatnonzero(verdicts(_table(far), random).passes).tolist() == [0]
    full = layer()
    full[:, 2] += 0.25
    found = verdicts(_table(full), random)
    assert found.shared.tolist() == [False, False, True]
    assert found.passes.sum() >= 38
    with pytest.raises(ValueError, match="rate and risk"):
        verdicts(_table(odd), random, risk=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda x, m: {"images": (x * 255).astype(np.uint8)}, "divide by 255"),
        (lambda x, m: {"images": x * 255}, "divide by 255"),
        (lambda x, m: {"images": x[..., :1]}, "4 channels"),
        (lambda x, m: {"images": x.transpose(0, 3, 1, 2)}, r"transpose\(0, 2, 3, 1\)"),
        (lambda x, m: {"images": np.where(np.arange(4) == 2, np.nan, x)}, "in image 0"),
        (lambda x, m: {"masks": m.astype(np.uint8) * 255}, "got uint8; write masks > 0"),
        (lambda x, m: {"masks": m[:, :4]}, r"\[4, 8, 8, 1\].*got \[4, 4, 8, 1\]"),
        (lambda x, m: {"masks": m[:3]}, r"got \[3, 8, 8, 1\]"),
        (lambda x, m: {"masks": m[..., 0]}, "of a label map write"),
        (lambda x, m: {"masks": None}, "masks must be given"),
        (lambda x, m: {"labelled": m.repeat(2, -1)}, "labelled must be"),
        (lambda x, m: {"labelled": np.zeros_like(m)}, "no pixel is labelled"),
    ],
)
def test_pictures_and_masks_that_do_not_fit_are_refused(changed, said):
    model, images, masks = _planted(np.random.default_rng(0), 4)
    given = {"images": images, "masks": masks} | changed(images, masks)
    with pytest.raises(ValueError, match=said) as caught:
        layer_tables(model, layers="units", concepts=["thing"], **given)
    assert len(str(caught.value)) < 300


def test_a_list_and_masks_of_0_and_1_are_taken():
    model, images, masks = _planted(np.random.default_rng(0), 6)
    common = {"layers": "units", "concepts": ["thing"], "quantile": 0.5, "replicates": 0}
    common |= {"batch_size": 6}
    a = layer_tables(model, images, masks=masks, **common)["units"]
    b = layer_tables(model, list(images), masks=masks.astype(np.uint8), **common)["units"]
    assert np.array_equal(a.iou, b.iou)
