"""Functions of arrays are the same on the host, under `jit` and under `vmap`, and have slopes where
they are smooth.

The reference is the call on plain arrays, in float64 where NumPy works it out; traced, jax counts
in float32. `HOST` names the public functions that are left out, each with its reason.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gan_dissect
from gan_dissect import directions, walks
from perturb import (
    attribution,
    evidence,
    masks,
    metrics,
    operators,
    rewards,
    scores,
    solver,
    stability,
)
from perturb import statistics as stats
from perturb.internals import interpretable
from perturb.model import Model
from perturb.units import interventions

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.1, 0.9, (2, 8, 8, 3)).astype(np.float32)
MAPS = RNG.uniform(0.0, 1.0, (2, 8, 8)).astype(np.float32)
OTHER = RNG.uniform(0.0, 1.0, (2, 8, 8)).astype(np.float32)
TRUTH = np.zeros((2, 8, 8), bool)
# Not in the middle, so that a flipped or turned map has another answer.
TRUTH[:, 2:5, 3:6] = True
KEY = jax.random.key(0)
LINE = RNG.normal(size=(2, 6)).astype(np.float32)
WEIGHTS = {
    "kernel": RNG.normal(size=(3, 3, 3, 4)).astype(np.float32),
    "head": RNG.normal(size=(4, 3)).astype(np.float32),
}


def network(weights, images):
    """One convolution, its rectification, the mean over places, and a linear layer."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        images, weights["kernel"], (1, 1), "SAME", dimension_numbers=dims
    )
    return jax.nn.relu(x).mean((1, 2)) @ weights["head"]


MODEL = Model(network, WEIGHTS)
TARGETS = [0, 2]
ROW = RNG.normal(size=5).astype(np.float32)


def explained(name, **options):
    """An attribution of the network, as a function of the pictures."""
    method = attribution.get(name)
    return lambda images: method(MODEL, images, TARGETS, **options)


ATTRIBUTIONS = {
    "cam": {},
    "centre": {},
    "contrastive_excitation": {"layer": "conv_1"},
    "deconvnet": {},
    "excitation": {},
    "expected_gradients": {"samples": 2},
    "grad_cam": {},
    "gradient": {},
    "guided_backprop": {},
    "guided_integrated_gradients": {"steps": 3},
    "input_gradient": {},
    "integrated_gradients": {"steps": 3},
    "linear_approx": {},
    "lrp": {},
    "occlusion": {},
    "random": {},
    "rise": {"samples": 4, "cells": 3},
    "smoothgrad": {"samples": 2},
    "sobel": {},
}
# function, arrays, and whether its slopes are compared with differences of the reference.
CASES = {f"attribution.{n}": (explained(n, **o), (IMAGES,), False) for n, o in ATTRIBUTIONS.items()}
CASES |= {
    "metrics.insertion": (
        lambda x, m: metrics.insertion(MODEL, x, TARGETS, m, preset="rise_28")[:2],
        (IMAGES, MAPS),
        False,
    ),
    "metrics.deletion": (
        lambda x, m: metrics.deletion(MODEL, x, TARGETS, m, preset="xplique")[:2],
        (IMAGES, MAPS),
        False,
    ),
    "metrics.drop_of": (lambda p, q: tuple(metrics.drop_of(p, q)), (LINE[0], LINE[1]), False),
    "metrics.energy": (metrics.energy, (MAPS, TRUTH), True),
    "metrics.energy_over_chance": (metrics.energy_over_chance, (MAPS, TRUTH), True),
    "metrics.entropy": (metrics.entropy, (MAPS,), True),
    "metrics.gini": (metrics.gini, (MAPS,), True),
    # Ranks, counts and cuts are flat between their jumps: a slope would say nothing, so it is
    # False.
    "metrics.overlap": (lambda a, b: metrics.overlap(a, b, 0.2), (MAPS, OTHER), False),
    "metrics.pearson": (metrics.pearson, (MAPS, OTHER), True),
    "metrics.points": (metrics.points, (MAPS,), False),
    "metrics.rank_accuracy": (metrics.rank_accuracy, (MAPS, TRUTH), False),
    "metrics.roc_area": (metrics.roc_area, (MAPS, TRUTH), False),
    "metrics.spearman": (metrics.spearman, (MAPS, OTHER), False),
    "metrics.ssim": (metrics.ssim, (MAPS, OTHER), True),
    "metrics.top_share": (lambda m, t: metrics.top_share(m, t, 5), (MAPS, TRUTH), False),
    "metrics.box_iou": (
        metrics.box_iou,
        (np.float32([0, 0, 4, 4]), np.float32([1, 2, 5, 5])),
        True,
    ),
    "statistics.auc": (stats.auc, (MAPS[0].ravel(), TRUTH[0].ravel()), False),
    "statistics.pearson": (stats.pearson, (LINE[0], LINE[1]), True),
    "statistics.ranks": (stats.ranks, (np.float32([0.3, 0.1, 0.3, 2.0]),), False),
    "statistics.spearman": (stats.spearman, (LINE[0], LINE[1]), False),
    "evidence.gain": (
        evidence.gain,
        (np.float32([3, 4]), np.float32([5, 5]), np.float32([1, 1])),
        True,
    ),
    "stability.iou": (stability.iou, (MAPS[:, None], OTHER[:, None]), False),
    "masks.binarise": (lambda s: masks.binarise(s, 9), (MAPS[0],), False),
    "masks.exact_area": (lambda s: masks.exact_area(s, 0.3, temperature=0.5), (MAPS[0],), True),
    "masks.upsample": (lambda g: masks.upsample(g, (8, 8)), (MAPS[0, :3, :3],), True),
    "masks.gaussian_upsample": (
        lambda g: masks.gaussian_upsample(g, (8, 8), step=3, sigma=2.0, reach=2),
        (MAPS[0, :3, :3],),
        True,
    ),
    "walks.linear": (lambda a, b: walks.linear(a, b, 4), (LINE[0], LINE[1]), True),
    "walks.spherical": (lambda a, b: walks.spherical(a, b, 4), (LINE[0], LINE[1]), True),
    "walks.looped": (lambda z: walks.looped(z, 3), (LINE,), True),
    "directions.cosines": (directions.cosines, (LINE,), True),
    "inversion.ramp": (lambda s: gan_dissect.inversion.ramp(s, 100), (np.float32(7),), False),
    "interventions.edit_units": (
        lambda x, v: interventions.edit_units(x, interventions.Edit(jnp.full(6, 0.5), v)),
        (LINE, LINE[0]),
        True,
    ),
    "scores.score": (lambda r: scores.score("logits", r, 1), (ROW,), True),
    "scores.probability": (lambda r: scores.probability("logits", r, 1), (ROW,), True),
    "scores.log_probability": (lambda r: scores.log_probability("logits", r, 1), (ROW,), True),
    "scores.rank": (lambda r: scores.rank("logits", r, 1), (ROW,), False),
    "scores.rival": (lambda r: scores.rival("logits", r, 1), (ROW,), False),
    "interpretable.mask_maps": (interpretable.mask_maps, (IMAGES,), False),
}
SHAPES = {
    "Blobs": masks.Blobs(),
    "Grid": masks.Grid(cells=(3, 3)),
    "Pixels": masks.Pixels(),
    "SmoothMax": masks.SmoothMax(step=2, sigma=4.0),
}
for name, shape in SHAPES.items():
    first = np.asarray(shape.init((8, 8)))
    # Off the start, where all pixels tie and a cut among them is a matter of rounding.
    start = first + 0.1 * RNG.uniform(-1, 0, first.shape).astype(np.float32)

    def visible(p, shape=shape):
        return shape.mask(p, (8, 8), jnp.float32(0.3), jnp.float32(0.5)).visible

    CASES[f"masks.{name}"] = (visible, (start,), True)
for name in ("blur", "fade", "mean", "noise"):
    fill = operators.get(name)

    def filled(image, mask, way=fill):
        return way.apply(way.prepare(image, KEY), mask)

    CASES[f"operators.{name}"] = (filled, (IMAGES[0], MAPS[0]), name != "blur")
for name in ("logit", "log_probability", "probability", "margin"):
    if name in rewards._NAMED:
        chosen = rewards.get(name)

        def rewarded(row, before, reward=chosen):
            return reward(row, 1, before)

        CASES[f"rewards.{name}"] = (rewarded, (ROW, ROW[::-1].copy()), True)

# Public functions that take arrays and stay on the host.
HOST = {
    "extremal meaningful channels importance_map minimal_region stream "
    "sufficient_region evidence.answers": "loops of compiled steps and calls of the network; "
    "`solver.start`, `advance` and `finish` are the parts",
    "attribution.xrai": "segments of another number in every picture",
    "attribution.hsic attribution.sobol_indices": "designs of SciPy, drawn on the host",
    "attribution.extremal_contours attribution.nested attribution.igos": "loops of compiled steps",
    "attribution.attn_lrp attribution.libragrad attribution.legrad "
    "attribution.rollout": "not tried "
    "here: they read a transformer's attention, which the network of this test has not",
    "metrics.tight_boxes metrics.box_hits": "boxes of another number in every picture",
    "metrics.pointing metrics.by_class "
    "metrics.aggregate": "pictures and classes that may be left out",
    "metrics.sensitivity_n metrics.infidelity metrics.max_sensitivity metrics.road": "subsets and "
    "noise of a NumPy generator, as in the published programs",
    "metrics.information": "the size of a compressed file",
    "metrics.impute": "a sparse system of equations, solved by SciPy",
    "metrics.sufficient_area metrics.destroying_area": "stops at the first area that suffices",
    "metrics.cascade metrics.randomised metrics.roar "
    "metrics.mosaics": "experiments over many networks",
    "statistics.bootstrap statistics.mean_interval "
    "statistics.paired": "bootstrap of a NumPy generator",
}


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        # float32 against float64, or sums of another order: a few rounding errors of the largest
        # value.
        scale = max(1.0, float(np.nanmax(np.abs(b))))
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-4, atol=2e-5 * scale)


# What compiles for more than some tenths of a second, all but one of each kind.
SLOW = (
    "attribution.",
    "masks.",
    "operators.",
    "metrics.deletion",
    "metrics.insertion",
    "metrics.ssim",
    "metrics.roc_area",
    "walks.looped",
)
FAST = ("attribution.input_gradient", "masks.Grid", "operators.fade")


def marked(name):
    slow = name.startswith(SLOW) and name not in FAST
    return pytest.param(name, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("name", [marked(name) for name in CASES])
def test_reference_jit_vmap_and_grad(name):
    function, arrays, smooth = CASES[name]
    wanted = function(*arrays)
    # That it traces by itself, without the time of compiling it once more.
    jax.eval_shape(function, *arrays)
    # Two items, the second changed, so that one that leaks into the other is noticed.
    second = (np.flip(arrays[0], -1).copy() if np.ndim(arrays[0]) else arrays[0], *arrays[1:])
    stacked = jax.tree.map(lambda *x: np.stack(x), arrays, second)
    both = jax.jit(jax.vmap(function))(*stacked)
    close(jax.tree.map(lambda x: x[0], both), wanted)
    close(jax.tree.map(lambda x: x[1], both), function(*second))
    if smooth:
        check_slope(function, arrays)


def check_slope(function, arrays):
    """The slope along one way against the difference of the reference, to 2 %."""
    # One random way instead of every axis: a wrong entry of the gradient shows in it all the same.
    way = RNG.normal(size=np.shape(arrays[0])).astype(np.float32)
    weight = RNG.normal(size=np.shape(function(*arrays))).astype(np.float32)

    def along(t):
        return (function(arrays[0] + t * way, *arrays[1:]) * weight).sum()

    # Ends in float32 are rounded to about 6e-8, which a step of 1e-3 makes 3e-5; a smaller step
    # would lose more than its own error gains.
    step = 1e-3
    ends = [
        np.asarray(function(arrays[0] + s * way, *arrays[1:]), np.float64) for s in (step, -step)
    ]
    difference = ((ends[0] - ends[1]) * weight).sum() / (2 * step)
    slope = float(jax.jit(jax.grad(along))(jnp.float32(0)))
    assert np.isfinite(slope)
    assert slope == pytest.approx(difference, rel=0.02, abs=2e-2)


@pytest.mark.slow
def test_steps_in_a_loop_of_ones_own_are_those_of_advance():
    net = Model(lambda w, x: x.mean((1, 2)) @ w, jnp.eye(3))
    # A look at every second of six steps, so that the best mask is chosen among several.
    recipe = solver.Recipe(masks.Pixels(), operators.Fade(), rewards.logit(), check_every=2)
    areas = jnp.array([0.2, 0.4])
    items, state = solver.init(net, recipe, jnp.asarray(IMAGES), jnp.array(TARGETS), areas, steps=6)
    ours, _ = jax.lax.scan(
        lambda s, _: (solver.update(net, recipe, items, s), None), state, length=6
    )
    theirs = solver.advance(net, recipe, items, state, 6)
    assert ours.step.tolist() == theirs.step.tolist() == [6, 6]
    np.testing.assert_allclose(ours.best_score, theirs.best_score, rtol=1e-3)
    np.testing.assert_allclose(ours.reward, theirs.reward, rtol=1e-3)
    found = solver.finish(net, recipe, items, ours)
    # Of 64 pixels 0.2 is 12.8 and 0.4 is 25.6.
    np.testing.assert_allclose((found.masks > 0.5).mean((1, 2)), [13 / 64, 26 / 64])


def test_what_stays_on_the_host_exists_and_has_a_reason():
    import perturb

    for names, reason in HOST.items():
        assert len(reason) > 10
        for path in names.split():
            value = perturb
            for part in path.split("."):
                value = getattr(value, part)
            assert callable(value)


def test_every_attribution_is_tried_or_excused():
    excused = {path.rpartition(".")[2] for names in HOST for path in names.split()}
    assert set(attribution.NAMES) <= set(ATTRIBUTIONS) | excused
