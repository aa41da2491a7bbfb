"""Float64 twins written from the definitions, and what each metric refuses."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import attribution, metrics
from perturb.metrics.insertion_deletion import boxed_blur
from perturb.metrics.sanity import data_flow, layers
from tests import planted, relunet

# The published mean colour of ImageNet, which deletion fills with.
MEAN = np.array([0.485, 0.456, 0.406])


@pytest.fixture(scope="module")
def small():
    """A small network, pictures, targets and arbitrary maps."""
    rng = np.random.default_rng(3)
    images = rng.uniform(size=(2, 16, 16, 3)).astype(np.float32)
    return planted.small_network(), images, np.array([1, 2]), rng.normal(size=(2, 16, 16))


def chance(model, image, target):
    """The target's probability on one picture, float64."""
    logits = np.asarray(model(jnp.asarray(image, jnp.float32)[None]), np.float64)[0]
    return float(np.exp(logits - logits.max())[target] / np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("insert", [True, False])
def test_curves_against_a_loop(small, insert):
    model, images, targets, maps = small
    # Seven steps do not divide 256 px: the rounding of the counts is compared too.
    preset = metrics.Preset(name="twin", steps=7)
    found = (metrics.insertion if insert else metrics.deletion)(
        model, images, targets, maps, preset=preset
    )
    for i in range(2):
        order = np.argsort(-maps[i].reshape(-1), kind="stable")
        other = boxed_blur(images[i], 5.0, 11) if insert else np.ones((16, 16, 3)) * MEAN
        scores = []
        for count in np.round(np.linspace(0, 256, 8)).astype(int):
            shown = (other if insert else images[i]).reshape(-1, 3).astype(np.float64)
            shown[order[:count]] = (images[i] if insert else other).reshape(-1, 3)[order[:count]]
            scores.append(chance(model, shown.reshape(16, 16, 3), targets[i]))
        np.testing.assert_allclose(found.scores[i], scores, atol=1e-5)
        trapezoid = np.mean([(a + b) / 2 for a, b in itertools.pairwise(scores)])
        assert found.area[i] == pytest.approx(trapezoid, abs=1e-5)
    assert found.preset == "twin"


def test_the_blur_of_insertion():
    """An 11 px window, nearly a box: the corner weighs .876 of the middle along a side pair."""
    # Sigma 5 px cut off after 5 px, as the published kernel of 11 px is.
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 5) ** 2)
    point = np.zeros((31, 31, 3), np.float32)
    point[15, 15] = 1
    found = boxed_blur(point, 5.0, 11)[..., 0].astype(np.float64)
    # Outside the picture the border is not black: what an empty picture becomes is taken off.
    base = boxed_blur(np.zeros_like(point), 5.0, 11)[..., 0]
    spread = found - base
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(spread[15, 10:21], taps * taps[5] / taps.sum() ** 2, atol=1e-6)
    assert np.abs(spread[:9]).max() < 1e-6


def test_average_drop_against_its_definition(small):
    model, images, targets, maps = small
    found = metrics.average_drop(model, images, targets, maps)
    for i in range(2):
        scaled = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
        p, q = (chance(model, v, targets[i]) for v in (images[i], images[i] * scaled[..., None]))
        assert found.drop[i] == pytest.approx(max(p - q, 0) / p, abs=1e-5)
        assert found.increase[i] == float(q > p)
        assert found.gain[i] == pytest.approx(max(q - p, 0) / (1 - p), abs=1e-5)


def test_sufficient_area_against_a_loop(small):
    model, images, targets, maps = small
    areas, fill = (0.1, 0.3, 0.6, 0.9), perturb.operators.Fade(colour=0.5)
    kept = metrics.sufficient_area(model, images, targets, maps, areas=areas, operator=fill)
    gone = metrics.destroying_area(
        model, images, targets, maps, areas=areas, operator=fill, share=0.95
    )
    for i in range(2):
        order = np.argsort(-maps[i].reshape(-1), kind="stable")
        whole = chance(model, images[i], targets[i])
        wanted = [1.0, 1.0]
        for n, delete in enumerate((False, True)):
            for area in areas:
                region = np.zeros(256, bool)
                region[order[: round(area * 256)]] = True
                region = region.reshape(16, 16, 1) != delete
                p = chance(model, np.where(region, images[i], 0.5), targets[i])
                if (p <= 0.95 * whole) if delete else (p >= 0.9 * whole):
                    wanted[n] = area
                    break
            else:
                wanted[n] = 1.0
        assert [kept[i], gone[i]] == wanted


def test_road_against_a_loop(small):
    model, images, targets, maps = small
    for first in (True, False):
        found = metrics.road(
            model, images, targets, maps, percentages=(20, 60), most_relevant_first=first, noise=0.0
        )
        for i in range(2):
            order = np.argsort((-maps if first else maps)[i].reshape(-1), kind="stable")
            for k, percent in enumerate((20, 60)):
                gone = np.zeros(256, bool)
                gone[order[: round(percent / 100 * 256)]] = True
                view = metrics.impute(images[i], gone.reshape(16, 16), noise=0.0)
                assert found.probability[i, k] == pytest.approx(
                    chance(model, view, targets[i]), abs=1e-5
                )


def test_mosaics_and_cells():
    # A class is one shade of grey, so that every cell of a mosaic says whose it is.
    images = np.stack([np.full((8, 8, 3), c / 10, np.float32) for c in range(6)])
    made = metrics.mosaics(images, np.arange(6), n=2, number=5)
    assert made.images.shape == (5, 16, 16, 3)
    for picture, shown in zip(made.images, made.targets, strict=True):
        assert len(set(shown)) == 4
        np.testing.assert_allclose(picture[::8, ::8, 0].reshape(-1), shown / 10, atol=1e-6)
    share = metrics.grid_pointing(
        lambda x, t: (np.abs(x[..., 0] - t[:, None, None] / 10) < 0.01).astype(float), made, cells=4
    )
    np.testing.assert_allclose(share, 1.0)
    small = metrics.mosaics(images, np.arange(6), n=2, number=1, size=8)
    assert small.images.shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match="at least 9 classes"):
        metrics.mosaics(images, np.arange(6), n=3, number=1)


def test_boxes():
    maps = np.zeros((1, 20, 20))
    maps[0, 4:9, 6:16] = 1.0
    for rule, alpha in (("value", 0.5), ("mean", 1.0), ("energy", 0.95), ("area", 50 / 400)):
        np.testing.assert_array_equal(
            metrics.tight_boxes(maps, rule=rule, alpha=alpha), [[6, 4, 16, 9]]
        )
    boxes = [np.array([[0, 0, 3, 3], [6, 4, 16, 14]])]
    assert metrics.box_iou([6, 4, 16, 9], [6, 4, 16, 14]) == pytest.approx(0.5)
    assert metrics.box_hits(maps, boxes)[0] == 1
    assert metrics.box_hits(maps, boxes, iou=0.51)[0] == 0
    assert np.isnan(metrics.tight_boxes(np.zeros((1, 5, 5)))).all()


def test_ssim_against_scikit_images_definition():
    """Written out with explicit windows, float64."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(2, 1, 16, 16))
    # A Gaussian of 1.5 px cut off at 3.5 sigma, and constants of .01 and .03 squared.
    reach = int(3.5 * 1.5 + 0.5)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / 1.5) ** 2)
    weights = np.outer(taps, taps) / taps.sum() ** 2
    x, y = ((m - m.min()) / (m.max() - m.min()) for m in (a[0], b[0]))
    values = []
    for i in range(reach, 16 - reach):
        for j in range(reach, 16 - reach):
            window = np.s_[i - reach : i + reach + 1, j - reach : j + reach + 1]
            p, q = x[window], y[window]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * p * p).sum() - mp**2, (weights * q * q).sum() - mq**2
            both = (weights * p * q).sum() - mp * mq
            values.append(
                (2 * mp * mq + 1e-4)
                * (2 * both + 9e-4)
                / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
            )
    assert metrics.ssim(a, b)[0] == pytest.approx(np.mean(values), abs=1e-10)


def test_overlap_of_areas():
    a = np.arange(16.0).reshape(1, 4, 4)
    assert metrics.overlap(a, a, 0.25)[0] == 1
    assert metrics.overlap(a, -a, 0.25)[0] == 0


@pytest.mark.slow
def test_cascade_tells_who_looks_at_the_network():
    model = relunet.model(relunet.random_weights())
    images = np.random.default_rng(0).uniform(size=(3, 16, 16, 3)).astype(np.float32)
    targets = np.array([0, 1, 2])
    order = [n for name in ("last", "two", "one") for n in layers(model.variables) if name in n]
    blind = metrics.cascade(lambda m, x, t: attribution.sobel(m, x, t), model, images, targets)
    assert not blind.passed
    np.testing.assert_allclose(blind.likeness.spearman, 1)
    seeing = metrics.cascade(attribution.input_gradient, model, images, targets, order=order)
    assert len(seeing.names) == 3
    # All layers anew: maps of two unrelated networks share little beside the picture.
    assert abs(seeing.likeness.spearman[-1].mean()) < 0.5
    with pytest.raises(ValueError, match="order must name layers"):
        metrics.cascade(attribution.sobel, model, images, targets, order=["nope"])


def test_drawing_layers_anew():
    variables = {
        "a": {"kernel": jnp.ones((30, 40)) * 2, "bias": jnp.arange(40.0)},
        "b": jnp.ones(3),
    }
    (first, *_) = [n for n in layers(variables) if "a" in n]
    drawn = metrics.randomised(variables, [first], jax.random.key(0))
    # 1,200 normal numbers of size 2: the mean square has a standard error of 4 %, the mean of .06.
    assert float((drawn["a"]["kernel"] ** 2).mean()) == pytest.approx(4, rel=0.2)
    assert abs(float(drawn["a"]["kernel"].mean())) < 0.3
    # Vectors are shuffled: the same numbers in another order.
    assert sorted(np.asarray(drawn["a"]["bias"]).tolist()) == list(range(40))
    np.testing.assert_array_equal(drawn["b"], variables["b"])
    np.testing.assert_array_equal(variables["a"]["kernel"], 2)


def test_roar_degrades_train_and_test_alike():
    rng = np.random.default_rng(0)
    images, maps = rng.uniform(size=(4, 8, 8, 3)).astype(np.float32), rng.uniform(size=(4, 8, 8))
    gone = metrics.degrade(images, maps, 0.25)
    kept = metrics.degrade(images, maps, 0.25, keep=True)
    colour = images.mean((0, 1, 2))
    # A quarter of 64 px.
    assert ((gone == colour).all(-1).sum((1, 2)) == 16).all()
    assert ((kept == colour).all(-1).sum((1, 2)) == 16).all()
    assert not ((gone == colour).all(-1) & (kept == colour).all(-1)).any()
    calls = []

    def retrain(train, test, seed):
        calls.append((train.copy(), test.copy(), seed))
        return float(seed)

    found = metrics.roar(retrain, (images, maps), (images[:2], maps[:2]), shares=(0.5,), retrains=3)
    assert found.tolist() == [[0.0, 1.0, 2.0]]
    # The test pictures are the first of training's: filled with one colour, they stay the same.
    np.testing.assert_array_equal(calls[0][0][:2], calls[0][1])


def test_paired_intervals():
    rng = np.random.default_rng(0)
    base = rng.normal(size=200)
    found = metrics.paired(base + 0.1, base)
    # One difference in all pairs: whatever is resampled, the mean is that.
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    wide = metrics.mean_interval(rng.normal(size=400))
    # Expected 2 * 1.96 / 20, about .2.
    assert 0.07 < wide.high - wide.low < 0.35
    assert metrics.mean_interval([np.nan, 2.0]).number == 1
    assert np.isnan(metrics.mean_interval([np.nan]).value)
    with pytest.raises(ValueError, match="must both be"):
        metrics.paired([1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, x, t, a: metrics.deletion(m, x, t, a[0]), "maps must be"),
        (lambda m, x, t, a: metrics.deletion(m, x, t, a[:1]), "images must be"),
        (lambda m, x, t, a: metrics.deletion(m, x, t, a, preset="best"), "preset must be one of"),
        (lambda m, x, t, a: metrics.sensitivity_n(m, x, t, a, n=0), "n must be from 1"),
        (lambda m, x, t, a: metrics.sufficient_area(m, x, t, a, share=2), "share must be in"),
        (lambda m, x, t, a: metrics.sufficient_area(m, x, t, a, areas=(0.5, 0.1)), "areas must be"),
        (lambda m, x, t, a: metrics.road(m, x, t, a, percentages=(0,)), "percentages must be"),
        (lambda m, x, t, a: metrics.impute(x[0], np.ones((16, 16))), "missing must leave"),
        (lambda m, x, t, a: metrics.pointing(a, a[:1] > 0), "truth must be"),
        (lambda m, x, t, a: metrics.top_share(a, a > 0, 0), "count must be"),
        (lambda m, x, t, a: metrics.tight_boxes(a, rule="best"), "rule must be one of"),
        (lambda m, x, t, a: metrics.degrade(x, a, 1.5), "share must be in"),
    ],
)
def test_what_cannot_be_served_is_named(small, call, words):
    with pytest.raises(ValueError, match=words):
        call(*small)


def test_probabilities_are_not_softmaxed_again(small):
    model, images, targets, maps = small
    sure = dataclasses.replace(
        model, apply=lambda w, x: jax.nn.softmax(model.apply(w, x)), output="probabilities"
    )
    preset = metrics.Preset(name="two", steps=2)
    a = metrics.deletion(model, images, targets, maps, preset=preset).area
    b = metrics.deletion(sure, images, targets, maps, preset=preset).area
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_cascade_goes_from_the_output_to_the_input_by_the_flow_of_data():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            # Named and made so that neither the alphabet nor the order of creation is that of the
            # data; 12 layers, for 10 comes before 2 by letters.
            head = nn.Dense(4, name="a_head")
            for _ in range(12):
                x = nn.Conv(4, (1, 1))(x)
            return head(nn.Conv(4, (1, 1), name="zz_stem")(x).mean((1, 2)))

    images = np.zeros((1, 4, 4, 3), np.float32)
    module = Net()
    model = perturb.adapters.from_linen(module, module.init(jax.random.key(0), images))
    found = [name.split("'")[3] for name in data_flow(model, images)]
    assert found == [*(f"Conv_{i}" for i in range(12)), "zz_stem", "a_head"]


def test_layers_of_flat_names_lists_loops_and_branches_are_found_where_they_are_met():
    def f(v, x):
        x = x @ v["z.in.weight"].T + v["z.in.bias"]
        x = jax.lax.scan(lambda x, w: (x @ w, None), x, v["m/loop"])[0]
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ v["k.0.weight"], lambda x: x, x)
        return x.mean((1, 2)) @ v["a.out.weight"]

    # Names whose alphabetical order is the reverse of the flow, and one that nothing reads.
    names = {"z.in.weight": (4, 3), "z.in.bias": (4,), "m/loop": (2, 4, 4)}
    names |= {"k.0.weight": (4, 4), "a.out.weight": (4, 2), "never.used": (3,)}
    model = perturb.Model(f, {n: jnp.ones(s) for n, s in names.items()})
    images = np.zeros((2, 4, 4, 3), np.float32)
    expected = ["never", "z.in", "m", "k.0", "a.out"]
    assert [n.strip("[]'") for n in data_flow(model, images)] == expected
    listed = perturb.Model(lambda v, x: (x @ v[1]).mean((1, 2)) @ v[0], [jnp.eye(3)] * 2)
    assert data_flow(listed, images) == ["[1]", "[0]"]
