"""Maps of codes: components against numpy, clusters told apart, neighbours by hand, layouts,
probes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from launch import demo
from launch.demo import world
from perturb import taps
from perturb.internals import codes, neighbours, probes, tsne


@pytest.fixture(scope="module")
def drawn():
    return world.render_batch(31, range(80))


def _close(found, rows):
    # eigh sorts upwards, components downwards.
    values, vectors = np.linalg.eigh(np.cov(np.asarray(rows, np.float64).T))
    values, vectors = values[::-1][: len(found.variances)], vectors[:, ::-1].T
    np.testing.assert_allclose(found.variances, values, rtol=1e-5, atol=1e-5 * values[0])
    # A direction is known up to its sign.
    cosines = np.abs((found.directions * vectors[: len(values)]).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_components_of_a_layer_are_numpys_however_the_pictures_are_shared_out(drawn):
    model = demo.load("demo")
    for pool in ("mean", "places"):
        rows = codes.layer_codes(model, drawn.image, layer="relu#4", pool=pool)
        rows = rows.reshape(-1, rows.shape[-1])
        found = codes.pca(model, drawn.image, layer="relu#4", pool=pool, number=5, batch_size=20)
        _close(found, rows)
        projected = found.project(rows)
        np.testing.assert_allclose(projected.var(0, ddof=1), found.variances, rtol=1e-6)
    # Far from the origin, where sums of squares alone would lose all digits.
    # A mean of 1e6 squared is 1e12, and a variance of 1 is lost in float64's last digits beside it.
    rows = np.random.default_rng(0).normal(size=(300, 4)) * [4, 3, 2, 1] + 1e6
    parts = [codes.scatter(rows[a:b]) for a, b in ((250, 300), (0, 1), (1, 250))]
    _close(codes.components(codes.merge_scatters(*parts)), rows)


def test_classes_are_points(drawn):
    kernel = demo.load("demo").variables["params"]["classes"]["kernel"]
    found, places = codes.class_components(kernel, 2)
    assert places.shape == (10, 2)
    _close(found, np.asarray(kernel, np.float64).T)


def test_tsne_tells_clusters_apart_and_draws_no_random_numbers():
    with pytest.raises(ValueError, match="perplexity must be"):
        tsne(np.zeros((10, 3)))
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    kind = np.arange(90) % 3
    # Clusters twelve deviations out, each along an axis of its own: no fair layout mixes them.
    points = rng.normal(size=(90, 10)) + 12 * np.eye(3, 10)[kind]
    first, again = (tsne(points, perplexity=10, steps=300) for _ in range(2))
    assert np.array_equal(first.places, again.places)
    found = neighbours.map_quality(points, first.places, kind, near=5)
    assert found.accuracy.value == 1.0
    assert found.trustworthiness > 0.9


def test_neighbours_by_hand():
    # On the line 0 1 2 3; on the map 3 and 0 have changed places.
    line, other = np.arange(8.0)[:, None], np.array([7.0, 1, 2, 3, 4, 5, 6, 0])[:, None]
    near = 1

    def strayed(a, b):
        total = 0
        for i in range(8):
            by = [sorted((abs(x[i, 0] - x[j, 0]), j) for j in range(8) if j != i) for x in (a, b)]
            ranks = [{j: r for r, (_, j) in enumerate(row, 1)} for row in by]
            total += sum(max(0, ranks[0][j] - near) for _, j in by[1][:near])
        # The published formula of trustworthiness, with its own normalisation.
        return 1 - 2 / (8 * near * (16 - 3 * near - 1)) * total

    found = neighbours.map_quality(line, other, np.arange(8) // 4, near=near)
    assert found.trustworthiness == pytest.approx(strayed(line, other))
    assert found.continuity == pytest.approx(strayed(other, line))
    assert found.trustworthiness < 1
    assert found.code_accuracy.value == 1.0 if near > 1 else found.code_accuracy.value >= 0.8


def test_no_two_thumbnails_share_a_cell_and_a_grid_stays_as_it_is():
    rng = np.random.default_rng(0)
    # Cubed, so that many lie close together and some far out.
    places = rng.normal(size=(200, 2)) ** 3
    cells = neighbours.grid_places(places)
    assert len({tuple(c) for c in cells}) == 200
    assert cells.min() == 0
    assert cells.max() < 16
    regular = np.stack(np.meshgrid(np.arange(5), np.arange(4)), -1).reshape(-1, 2)
    shuffled = rng.permutation(regular)
    found = neighbours.grid_places(shuffled.astype(float), columns=5)
    # Rows from the top and columns from the left, as pages are laid out.
    assert np.array_equal(found, np.stack([3 - shuffled[:, 1], shuffled[:, 0]], 1))
    kept = neighbours.without_overlap(places, 0.3)
    apart = np.abs(places[kept][:, None] - places[kept]).max(-1) + np.eye(len(kept))
    assert kept[0] == 0
    assert apart.min() >= 0.3


def test_probes_find_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    images = rng.random((600, 4, 4, 3)).astype(np.float32)

    def f(w, x):
        return taps.tag(x @ w, "units").mean((1, 2))

    model = perturb.Model(f, jnp.eye(3)[:, :2])  # blind to the third colour
    colour = images.mean((1, 2)).astype(np.float64)
    factors = {
        "first": colour[:, 0],
        "third": colour[:, 2],
        "left": images[:, :, :2, 1].mean((1, 2)),
        "side": np.where(images[:, :, :2, 0].mean((1, 2)) > 0.5, "bright", "dark"),
        "noise": rng.integers(0, 4, 600),
    }
    blind = perturb.Model(f, jnp.zeros((3, 2)))
    found = probes.information_by_depth(model, images, factors, layers=["units"], random=blind)
    score = {p.factor: p.score for p in found}
    assert [p.kind for p in found] == ["number"] * 3 + ["class"] * 2
    assert score["first"].value > 0.99
    assert score["left"].value > 0.99
    # The net never sees it: anything above chance would be the probe's own doing.
    assert abs(score["third"].value) < 0.1
    assert score["side"].value > 0.9
    # Four kinds at random: a quarter is right by chance.
    assert score["noise"].low <= 0.25 + 0.05
    gain = {p.factor: p.gain for p in found}
    assert gain["side"].low > 0.2
    assert gain["first"].value == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="one a picture"):
        probes.information_by_depth(model, images, {"a": [1]}, layers=["units"])


def test_the_classifier_keeps_its_class_and_loses_the_ground(drawn):
    model = demo.load("demo")
    ground = np.array([f.background for f in drawn.factors])
    found = probes.information_by_depth(
        model,
        drawn.image,
        {"class": drawn.target, "ground": ground},
        layers=["relu", "relu#6"],
        random=perturb.load_model("demo", key=jax.random.key(0)),
    )
    by = {(p.layer, p.factor): p for p in found}
    # Of eighty pictures a share is known to 0.11 at the worst.
    assert by["relu#6", "class"].score.value > by["relu", "class"].score.value + 0.3
    assert by["relu#6", "class"].gain.low > 0
