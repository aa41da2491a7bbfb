"""Graphs of parts on planted bumps, whose places are known, and on a part seen from a few nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.report import graph as graph_page
from perturb import Model, taps
from perturb.internals import graphs
from perturb.internals.graphs import explanatory
from perturb.metrics.parts import chance_instability, location_instability

SIDE, STRIDE = 14, 16.0
BUMPS = np.array([[3.5, 4.0], [9.0, 9.5]])


def planted(images, seed=0, move=None):
    """Maps with two bumps that move together, and how far they moved in each image."""
    rng = np.random.default_rng(seed)
    shift = rng.uniform(-1.5, 1.5, (images, 2)) if move is None else move
    cells = np.stack(np.mgrid[:SIDE, :SIDE], -1)
    maps = np.zeros((images, SIDE, SIDE))
    for bump in BUMPS:
        d2 = ((cells - (bump + shift[:, None, None])) ** 2).sum(-1)
        maps += rng.uniform(0.5, 1.5, (images, 1, 1)) * np.exp(-d2 / (2 * 0.8**2))
    maps += 0.05 * rng.random(maps.shape)
    # As of a rectified map, most of which is 0.
    maps[maps < 0.1] = 0
    return maps[:, None].astype(np.float32), shift


@pytest.fixture(scope="module")
def fitted():
    maps, shift = planted(60)
    layer = graphs.fit_layer(maps, stride=STRIDE, density=7 / SIDE**2)
    return maps, shift, layer


def test_nodes_settle_on_the_bumps_and_stay_on_one(fitted):
    maps, shift, layer = fitted
    mu = np.asarray(layer.nodes.mu)[0]
    away = np.hypot(*(mu[:, None] - BUMPS).transpose(2, 0, 1))
    # A spare node lies in an empty place, with a tenth of the score: the best ones count.
    best = [away[:, b].argmin() for b in range(2)]
    assert away[best, [0, 1]].min() <= 0.5
    # A landmark that moves as the bumps do, and lies on neither of them.
    landmarks = ((np.array([6.0, 2.0]) + shift + 0.5) * STRIDE)[:, None]
    diagonal = SIDE * STRIDE * 2**0.5
    flat = maps.reshape(len(maps), -1)
    raw = np.stack(np.unravel_index(flat.argmax(1), (SIDE, SIDE)), -1)[:, None]
    unstable = location_instability(
        (raw + 0.5) * STRIDE, flat.max(1)[:, None], landmarks, diagonal=diagonal
    ).distance[0]
    nodes = location_instability(
        layer.places[:, 0], layer.scores[:, 0], landmarks, diagonal=diagonal
    ).distance
    for b in range(2):
        wanted = (BUMPS[b] + shift + 0.5) * STRIDE
        # On the bump, which is two deviations wide; the other one is eight cells away.
        away = np.hypot(*(layer.places[:, 0] - wanted[:, None]).transpose(2, 0, 1))
        hits = away < 1.6 * STRIDE
        node = hits.mean(0).argmax()
        assert hits[:, node].mean() >= 0.95
        assert nodes[node] <= 0.25 * unstable


def test_only_what_sees_the_image_is_below_the_level_of_chance():
    """Stillness alone is no merit: a blind detector is at 1, however little it moves."""
    rng = np.random.default_rng(5)
    marks = rng.normal(size=(400, 1, 2)) * 6 + 32
    spread = rng.normal(size=(400, 4, 2))
    points = np.stack(
        [
            # On the landmark but for a sixth of its own motion; blind and nearly still; blind and
            # restless; half of the way with the landmark.
            marks[:, 0] + spread[:, 0],
            10 + 0.1 * spread[:, 1],
            10 + 12 * spread[:, 2],
            10 + 0.5 * (marks[:, 0] - 32) + 0.1 * spread[:, 3],
        ],
        1,
    )
    scores = rng.random((400, 4))
    given = {"diagonal": 90.0, "top": 400}
    own, dealt = (
        f(points, scores, marks, **given) for f in (location_instability, chance_instability)
    )
    # By the plain figure the still one beats the restless one; over chance neither sees anything.
    assert own.offset[1] < 0.6 * own.offset[2]
    np.testing.assert_allclose((own.offset / dealt.offset)[1:3], 1, atol=0.06)
    # Places and landmark dealt apart: variances add, 6² + 6² + 1 against 1, 3² + 6² against 3².
    wanted = [(1 / 73) ** 0.5, (9.01 / 45.01) ** 0.5]
    np.testing.assert_allclose((own.offset / dealt.offset)[[0, 3]], wanted, rtol=0.06)
    assert (own.distance / dealt.distance)[0] < 0.25
    with pytest.raises(ValueError, match="draws=0"):
        chance_instability(points, scores, marks, draws=0, **given)


def test_maps_moved_by_a_cell_move_every_node_by_one():
    """Away from the border, whose cells would otherwise fall off."""
    # The same in all images: only the shift between the two maps is left.
    maps, _ = planted(20, move=np.broadcast_to([0.3, -0.2], (20, 2)))
    clear = np.zeros_like(maps)
    clear[..., 2:-2, 2:-2] = maps[..., 2:-2, 2:-2]
    moved = np.roll(clear, 1, (2, 3))
    nodes = explanatory.Nodes(
        jnp.asarray([[[4.0, 4.0], [8.0, 9.0], [6.0, 6.0]]]), jnp.full((1, 3), 1.5)
    )
    found = []
    for m, start in ((clear, nodes), (moved, nodes._replace(mu=nodes.mu + 1))):
        none = explanatory._no_parents(20, start)
        for i in range(1, 6):
            start = explanatory._round(jnp.asarray(m), start, none, jnp.float32(i), 5.0)
        found.append(start)
    np.testing.assert_allclose(found[1].mu, found[0].mu + 1, atol=1e-4)
    np.testing.assert_allclose(found[1].sigma, found[0].sigma, atol=1e-5)


def test_responsibilities_share_a_place(fitted):
    """At one place, those of all nodes and of none sum to 1."""
    maps, _, layer = fitted
    one = explanatory.Nodes(layer.nodes.mu[0], layer.nodes.sigma[0])
    same = one._replace(mu=jnp.broadcast_to(one.mu[:1], one.mu.shape), sigma=one.sigma * 0 + 1.0)
    number = len(same.mu)
    none = explanatory._Parents(
        jnp.zeros((60, number, 2)), jnp.full(number, jnp.inf), jnp.ones((60, number))
    )
    seen = explanatory._look(jnp.asarray(maps[:, 0]), same, none)
    outside = explanatory.NONE * seen.density.sum(-1).mean(-1)
    total = seen.responsibility.sum(1) + outside[:, None] / (seen.density.sum(1) + outside[:, None])
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_planted_parents_are_chosen():
    """One node above moves as the node below does, fifty move on their own."""
    hits = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        # Of a deviation of twelve pixels, far above the noise of one below.
        moves = rng.normal(size=(60, 51, 1, 2)) * 12
        upper = explanatory.Layer(
            explanatory.Nodes(jnp.zeros((51, 1, 2)), jnp.ones((51, 1))),
            112 + moves,
            np.ones((60, 51, 1)),
            None,
            np.zeros(60, bool),
            16.0,
        )
        mine = 100 + moves[:, 17:18] + rng.normal(size=(60, 1, 1, 2))
        # Every candidate is to be seen: half of them are left out for how little they move.
        upper.places[:, 17] = 112 + 1.3 * moves[:, 17]
        chosen = explanatory._choose(upper, mine, np.ones((60, 1, 1)), 224.0, 1)
        hits += int(17 in chosen)
    assert hits >= 19


def test_parents_move_a_node():
    """In pixels: a parent of a layer with twice the stride moves a node by as many pixels."""
    # One stride of the lower layer in either direction.
    moves = np.array([[-16.0, 0.0], [16.0, 0.0]])
    upper = explanatory.Layer(
        explanatory.Nodes(jnp.zeros((1, 1, 2)), jnp.ones((1, 1))),
        (112 + moves)[:, None, None],
        np.ones((2, 1, 1)),
        None,
        np.zeros(2, bool),
        32.0,
    )
    found = explanatory._from_parents(upper, np.zeros((1, 1, 1), int), 16.0)
    np.testing.assert_allclose(np.asarray(found.shift)[:, 0, 0], moves / 16)
    np.testing.assert_allclose(found.sigma, 2)
    np.testing.assert_allclose(found.factor, 1)


@pytest.mark.slow
def test_the_mirror_is_chosen_image_by_image():
    """Images shown the wrong way round are turned, or all the others are."""
    maps, _ = planted(40, move=np.zeros((40, 2)))
    wrong = np.arange(40) % 4 == 0
    other = maps[..., ::-1].copy()
    shown = np.where(wrong[:, None, None, None], other, maps)
    turned = np.where(wrong[:, None, None, None], maps, other)
    layer = graphs.fit_layer(shown, stride=STRIDE, density=7 / SIDE**2, flipped=turned)
    agree = (layer.flipped == wrong).mean()
    # A faint bump beside a strong one says little of which way an image is.
    assert max(agree, 1 - agree) >= 0.9


def test_a_part_is_found_from_three_annotations():
    """Two hundred nodes, of which ten stay on the part: their votes find it, random ones do not."""
    rng = np.random.default_rng(0)
    part = rng.uniform(80, 144, (60, 2))
    places = rng.uniform(0, 224, (60, 200, 2))
    offsets = rng.uniform(-20, 20, (10, 2))
    places[:, :10] = part[:, None] - offsets + rng.normal(size=(60, 10, 2)) * 2
    scores = rng.uniform(0.5, 1, (60, 200))
    template = graphs.fit_template(places[:3], scores[:3], part[:3], keep=20)
    found = graphs.locate(template, places[3:], scores[3:])
    error = graphs.normalised_distance(found, part[3:], 224 * 2**0.5)
    assert error.mean() < 0.02
    # The same votes, taught places that have nothing to do with the part.
    astray = graphs.fit_template(places[:3], scores[:3], rng.uniform(0, 224, (3, 2)), keep=20)
    lost = graphs.normalised_distance(
        graphs.locate(astray, places[3:], scores[3:]), part[3:], 224 * 2**0.5
    )
    assert lost.mean() > 5 * error.mean()
    with pytest.raises(ValueError, match="annotated"):
        graphs.fit_template(places[:0], scores[:0], part[:0])


def scenes(number=60, n=16, stride=4.0):
    """Noise in eight channels and one pattern of all of them, three cells wide, at a known place of
    each image; maps `[I, 8, n, n]` and places in px.
    """
    rng = np.random.default_rng(3)
    maps = rng.random((number, 8, n, n)) * 0.3
    pattern, at = rng.random((8, 3, 3)) * 3, rng.integers(5, 10, (number, 2))
    for i, (y, x) in enumerate(at):
        maps[i, :, y - 1 : y + 2, x - 1 : x + 2] += pattern
    return maps.astype(np.float32), (at + 0.5) * stride


def test_a_part_is_found_by_what_surrounds_it():
    """On the planted pattern within half a cell; in images without it, at the mean."""
    maps, centres = scenes()
    shown = np.array([0, 7, 20])
    found = graphs.find_appearance(maps, shown, centres[shown], stride=4.0, spread=8.0)
    away = np.hypot(*(found - centres).T)
    assert np.median(away) < 1.0
    assert (away < 2.0).mean() >= 0.95
    # The mean place, which is all that annotations alone tell, is four times as far.
    assert np.hypot(*(centres[shown].mean(0) - centres).T).mean() > 4 * away.mean()
    flat = maps.copy()
    flat[30:] = 0.15
    middle = centres[shown].mean(0)
    blank = graphs.find_appearance(flat, shown, centres[shown], stride=4.0, spread=8.0)[30:]
    np.testing.assert_allclose(blank, np.broadcast_to(middle, blank.shape), atol=1e-3)


def test_places_settle_on_the_middle_of_a_bump():
    """Between cells; a node where all is silent stays."""
    cells = np.stack(np.mgrid[:12, :12], -1)
    bump = np.exp(-((cells - [4.3, 6.8]) ** 2).sum(-1) / (2 * 0.8**2))[None, None]
    start = np.array([[[[4.0, 7.0], [5.0, 6.0]]]])
    found = graphs.settle_places(bump, (start + 0.5) * 8, stride=8.0, rounds=12)
    wanted = (np.array([4.3, 6.8]) + 0.5) * 8
    np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), atol=0.05 * 8)
    silent = graphs.settle_places(bump * 0, start * 8, stride=8.0)
    np.testing.assert_allclose(silent, start * 8)


def turned_scenes(number=40, n=16, stride=4.0):
    """A figure of two bars in eight channels, each a function of the direction of the bar, turned
    and moved by what is known; maps, poses and the tip of the longer bar in px.
    """
    rng = np.random.default_rng(4)
    turn, shift = np.radians(rng.uniform(-20, 20, number)), rng.uniform(-4, 4, (number, 2))
    cells = (np.stack(np.mgrid[:n, :n], -1) + 0.5) * stride
    maps = rng.random((number, 8, n, n)) * 0.1
    tips = np.empty((number, 2))
    for i in range(number):
        for angle, length in ((0.0, 22.0), (np.pi / 2, 12.0)):
            a = angle + turn[i]
            along = np.array([-np.cos(a), np.sin(a)])
            for share in np.linspace(0, 1, 12):
                at = 32 + shift[i] + share * length * along
                bump = np.exp(-((cells - at) ** 2).sum(-1) / (2 * 3.0**2))
                tuned = np.exp(2 * np.cos(2 * (a - np.arange(8) * np.pi / 8)) - 2)
                maps[i] += tuned[:, None, None] * bump
            if not angle:
                tips[i] = at
    return maps.astype(np.float32), turn, shift, tips


def test_poses_are_those_that_were_planted():
    """Up to a common one; and a part is where they carry it."""
    maps, turn, shift, tips = turned_scenes()
    poses = graphs.find_poses(maps, stride=4.0)
    assert np.corrcoef(poses.turn, turn)[0, 1] > 0.9
    for axis in (0, 1):
        assert np.corrcoef(poses.shift[:, axis], shift[:, axis])[0, 1] > 0.9
    shown = np.array([0, 1, 2])
    away = np.hypot(*(graphs.carry(poses, shown, tips[shown]) - tips).T).mean()
    assert away < 0.5 * np.hypot(*(tips[shown].mean(0) - tips).T).mean()
    # Maps without anything in them have no pose.
    blank = graphs.find_poses(np.ones_like(maps), stride=4.0)
    np.testing.assert_allclose(blank.turn, 0, atol=1e-6)
    np.testing.assert_allclose(blank.shift, 0, atol=1e-6)


def test_votes_appearance_and_pose_meet_halfway():
    maps, centres = scenes(40)
    layer = graphs.fit_layer(maps, stride=4.0, density=0.03, rounds=5)
    shown = np.array([1, 2, 3])
    found = graphs.find_part(layer, maps, shown, centres[shown])
    places = graphs.settle_places(maps, layer.places, stride=4.0).reshape(40, -1, 2)
    scores = layer.scores.reshape(40, -1)
    template = graphs.fit_template(
        places[shown], scores[shown], centres[shown], prior=1.0, reach=8.0
    )
    votes = graphs.locate(template, places, scores, width=3.0)
    alike = graphs.find_appearance(maps, shown, centres[shown], stride=4.0)
    whole = graphs.carry(graphs.find_poses(maps, stride=4.0), shown, centres[shown])
    np.testing.assert_allclose(found, ((votes + alike) / 2 + whole) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="at least one"):
        graphs.find_part(layer, maps, shown[:0], centres[:0])
    with pytest.raises(ValueError, match="the 40 images"):
        graphs.find_part(layer, maps[:5], shown, centres[shown])


def test_evidence_is_in_units_of_each_filters_deviation():
    a = jax.random.normal(jax.random.key(0), (8, 6, 6, 3)) * jnp.array([1.0, 10.0, 0.1])
    found = graphs.evidence_maps(a)
    assert found.shape == (8, 3, 6, 6)
    # Whatever a filter's own scale is, ten or a tenth.
    np.testing.assert_allclose(found.std((0, 2, 3)), 1, rtol=1e-4)


def _two_layers():
    """Two filters of two nodes on 5 images of 32 px; below, all have node 1 as parent."""
    rng = np.random.default_rng(0)
    nodes = explanatory.Nodes(jnp.zeros((2, 2, 2)), jnp.full((2, 2), 0.5))
    places = rng.uniform(8, 24, (5, 2, 2, 2))
    upper = explanatory.Layer(
        nodes, places, np.broadcast_to([[1.0, 9.0], [2.0, 3.0]], (5, 2, 2)), None, np.zeros(5), 8.0
    )
    return upper, upper._replace(parents=np.full((2, 2, 1), 1))


def test_a_node_switched_off_takes_its_filters_part_from_the_score():
    """The score is the sum of filter 0: what lies under the node goes; filter 1 is free."""
    graph, _ = _two_layers()
    # On the cell in the second row and column, whose middle is 12 px; half a cell wide.
    graph = graph._replace(places=np.full_like(graph.places, 12.0))
    model = Model(
        lambda w, x: jnp.stack([taps.tag(x * w, "maps")[..., 0].sum((1, 2))] * 2, 1),
        jnp.float32(1),
        channels=2,
    )
    x = np.random.default_rng(1).uniform(1, 2, (5, 4, 4, 2)).astype(np.float32)
    found = graphs.node_effects(model, x, np.zeros(5, int), "maps", graph, [0, 2])
    line = np.arange(4) * 8 + 4 - 12.0
    gauss = np.exp(-(line[:, None] ** 2 + line**2) / (2 * 4.0**2))
    np.testing.assert_allclose(found[:, 0], (x[..., 0] * gauss).sum((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-5)
    with pytest.raises(ValueError, match="the 5 that the graph was fitted on"):
        graphs.node_effects(model, x[:3], np.zeros(3, int), "maps", graph, [0])


def test_the_page_shows_the_best_nodes_and_links_parents():
    images = np.random.default_rng(2).integers(0, 255, (5, 32, 32, 3), np.uint8)
    upper, lower = _two_layers()
    assert graph_page.best_nodes(upper, 3).tolist() == [1, 3, 2]
    # Of one image and a node in the middle of a pixel grid the window is that part of the image.
    one = upper._replace(places=upper.places[:1] * 0 + 16, scores=upper.scores[:1])
    part = graph_page.window(images[:1], one, 0, 8)
    np.testing.assert_array_equal(part, images[0, 12:20, 12:20])
    found = graph_page.page(images, [upper, lower], names=["top <b>", "lower"], number=2).decode()
    assert found.count("<figure") == 4
    assert "top &lt;b&gt;" in found
    # All of the lower layer move with node 1, which the page shows.
    assert found.count('href="#n0-1"') == 2
    assert 'id="n0-1"' in found
    with pytest.raises(ValueError, match="each of 2 layers"):
        graph_page.page(images, [upper, lower], names=["one"])
