"""The loop: slots are not mixed up, steps may be divided, and step rules against numpy."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import masks, operators, rewards, solver
from perturb.methods import _slots
from perturb.methods.extremal import RankArea, exact_recipe
from tests import planted

RNG = np.random.default_rng(0)
# Powers of two, and one between them.
BATCHES = (2, 3, 4, 8)


# A batch of another size may be added up in another order, and an instruction set has
# multiplications with additions or has not: of n terms every sum is rounded by less than n * 6e-8
# of the largest, here 1e-5.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def close(function, *args):
    """Runs the last 2, 3, 4 of 8 rows and compares every leaf with all 8 together."""
    run = jax.jit(jax.vmap(function))
    whole = run(*args)
    for n in BATCHES[:-1]:
        part = run(*jax.tree.map(lambda x, n=n: x[8 - n :], args))
        for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b[8 - n :], err_msg=f"{n} of 8 rows", **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        masks.Blobs(),
        masks.SmoothMax(step=4, sigma=12.0),
        masks.Grid(step=4, method="blurred", blur=2.0),
    ],
    ids=lambda w: type(w).__name__,
)
def test_masks_and_their_gradients_do_not_depend_on_the_batch(way):
    size = (31, 25)
    shape = way.init(size).shape
    weights = jnp.asarray(RNG.normal(size=size), jnp.float32)

    def one(params, area, progress):
        visible, back = jax.vjp(lambda p: way.mask(p, size, area, progress).visible, params)
        return visible, back(weights)

    params = jnp.asarray(RNG.random((8, *shape)), jnp.float32)
    close(one, params, jnp.linspace(0.02, 0.6, 8), jnp.linspace(0, 1, 8))


@pytest.mark.slow
def test_operators_do_not_depend_on_the_batch():
    """Prepared one by one, as the solver does: a blur is a matrix product."""
    images = jnp.asarray(RNG.random((8, 32, 24, 3)), jnp.float32)
    shown = jnp.asarray(RNG.random((8, 32, 24)), jnp.float32)
    prepare = jax.jit(lambda op, x: jax.lax.map(lambda v: op.prepare(v, None), x))
    for operator in (operators.Blur(), operators.Fade(), operators.Noise()):
        reference = prepare(operator, images)
        for n in BATCHES[:-1]:
            part = prepare(operator, images[8 - n :])
            for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(reference), strict=True):
                np.testing.assert_allclose(a, b[8 - n :], **CLOSE)

        def one(reference, mask, operator=operator):
            view, back = jax.vjp(lambda m: operator.apply(reference, m), mask)
            return view, back(view)

        close(one, reference, shown)


@pytest.mark.slow
def test_rules_and_penalties_do_not_depend_on_the_batch():
    grads = jnp.asarray(RNG.normal(size=(8, 17, 13)), jnp.float32)
    for rule in (solver.Normalised(), solver.Adam(), solver.Momentum()):

        def two(g, rule=rule):
            transform = rule.transform()
            first, state = transform.update(g, transform.init(g))
            return first, transform.update(g + 1, state)

        close(two, grads)
    penalty = lambda x, a: RankArea()(masks.Mask(x, x), a, jnp.int32(3), jnp.int32(9))  # noqa: E731
    close(jax.grad(penalty), jax.nn.sigmoid(grads), jnp.linspace(0.1, 0.5, 8))


@pytest.mark.parametrize("steps", [[1, 2, 5], [1, 3, 5], [0, 2, 4]])
def test_pictures_are_mirrored_on_even_steps_and_so_are_their_gradients(steps):
    views = jnp.asarray(RNG.normal(size=(3, 2, 4, 5, 3)), jnp.float32)
    weights = jnp.asarray(RNG.normal(size=views.shape), jnp.float32)

    def shown(views, step):
        return jax.vmap(lambda v: solver.flip_on_even_steps(v, None, None, step))(views)

    steps = jnp.array(steps)
    got, back = jax.vjp(lambda v: jax.jit(jax.vmap(shown))(v, steps), views)

    def want(x):
        turned = [x[i, :, :, ::-1] if s % 2 == 0 else x[i] for i, s in enumerate(steps)]
        return jnp.stack(turned)

    np.testing.assert_array_equal(got, want(views))
    np.testing.assert_array_equal(back(weights)[0], want(weights))


def slots(model, recipe, side, areas, steps, number=2):
    images = jnp.asarray(np.random.default_rng(1).random((number, side, side, 3)), jnp.float32)
    counts = jnp.asarray([round(a * side * side) for a in areas], jnp.int32)
    return solver.start(
        model,
        recipe,
        images,
        jnp.arange(number, dtype=jnp.int32),
        jnp.asarray(areas, jnp.float32),
        counts,
        jax.random.split(jax.random.key(0), number),
        jnp.asarray(steps, jnp.int32),
    )


@pytest.mark.slow
def test_any_division_of_the_steps_and_any_budget():
    """20 = 4 x 5 = 13 + 7 bitwise; a slot stops at its own number of steps, an idle one never
    moves.
    """
    model = planted.small_network()
    recipe = exact_recipe((16, 16), operator="fade")
    # The third slot has no steps: one that is idle, as at the end of a batch that is not full.
    items, begin = slots(model, recipe, 16, [0.1, 0.3, 0.2], [20, 20, 0], 3)
    ends = []
    # The last asks for more steps than there are: a slot that is done must not move.
    for parts in ((20,), (5, 5, 5, 5), (13, 7), (20, 11)):
        state = begin
        for k in parts:
            state = solver.advance(model, recipe, items, state, k)
        ends.append(state)
    # Where the state lies, from counters that the caller keeps: the last slot has no step left.
    given, state = solver.ready(model, recipe), solver.own(begin)
    for taken, k in ((0, 13), (13, 7)):
        counts = {"taken": np.array([taken, taken, 20]), "steps": np.full(3, 20)}
        state = solver.advance_in_place(*given, items, state, k, **counts)
    ends.append(state)
    for other in ends[1:]:
        for a, b in zip(jax.tree.leaves(ends[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ends[0].step, [20, 20, 0])
    np.testing.assert_array_equal(ends[0].params[2], begin.params[2])
    # Fewer steps beside it: the neighbour takes the same path.
    fewer = items._replace(steps=jnp.array([20, 6, 0], jnp.int32))
    state = solver.advance(model, recipe, fewer, begin, 20)
    np.testing.assert_array_equal(state.params[0], ends[0].params[0])
    np.testing.assert_array_equal(state.step, [20, 6, 0])


@pytest.mark.slow
def test_the_best_look_is_kept():
    """The recorded score is that of the binary mask returned, and no earlier look was better."""
    model = planted.small_network()
    recipe = exact_recipe((16, 16), operator="fade")
    items, state = slots(model, recipe, 16, [0.1, 0.3, 0.2], [40, 40, 40], 3)
    scores = []
    for _ in range(4):
        state = solver.advance(model, recipe, items, state, 10)
        scores.append(np.asarray(state.best_score))
    assert (np.asarray(scores[0]) == -np.inf).all()  # no look before half the steps
    assert (np.diff(scores[1:], axis=0) >= 0).all()
    outcome = solver.finish(model, recipe, items, state)
    np.testing.assert_allclose(outcome.score, scores[-1], rtol=1e-5)
    # Looks come every ten steps, so a kept step is one of them.
    np.testing.assert_array_equal(outcome.steps % 10, 0)
    # And by hand: the model on the image under the mask.
    shown = jax.vmap(recipe.operator.apply)(items.reference, (outcome.masks > 0.5) * 1.0)
    by_hand = model(shown)[jnp.arange(3), items.target]
    np.testing.assert_allclose(outcome.score_binary, by_hand, rtol=1e-4)


def test_step_rules_against_numpy():
    """Three steps of each rule, from its published formula."""
    grads = np.random.default_rng(1).normal(size=(3, 5))

    def directions(rule):
        transform, out = rule.transform(), []
        state = transform.init(jnp.zeros(5))
        for g in grads:
            d, state = transform.update(jnp.asarray(g, jnp.float32), state)
            out.append(np.asarray(d))
        return np.array(out)

    # SGD's first velocity is the first gradient, as in torch; the averages of Adam begin at 0.
    first, second, velocity = np.zeros(5), np.zeros(5), grads[0]
    whole, adam, shared, sgd = 0.0, [], [], [velocity]
    for t, g in enumerate(grads, start=1):
        first = 0.9 * first + 0.1 * g
        second = 0.999 * second + 0.001 * g**2
        # One mean square for all parameters, not one each: the direction stays the gradient's.
        whole = 0.99 * whole + 0.01 * (g**2).mean()
        mean = first / (1 - 0.9**t)
        adam.append(mean / (np.sqrt(second / (1 - 0.999**t)) + 1e-8))
        shared.append(mean / np.sqrt(whole / (1 - 0.99**t)))
        if t > 1:
            velocity = 0.9 * velocity + 0.1 * g
            sgd.append(velocity)
    np.testing.assert_allclose(directions(solver.Adam()), adam, rtol=1e-4)
    np.testing.assert_allclose(directions(solver.Normalised()), shared, rtol=1e-4)
    np.testing.assert_allclose(directions(solver.Momentum()), sgd, rtol=1e-5)


def test_learning_rates():
    """Cosine from `rate` to `rate * last`; SGD does not take its last step."""
    at = jnp.array([0, 50, 100])
    rates = solver.Adam(rate=0.2, last=0.1).learning_rate(at, jnp.int32(100))
    # Halfway a cosine is the mean of both ends: (0.2 + 0.02) / 2.
    np.testing.assert_allclose(rates, [0.2, 0.11, 0.02], rtol=1e-5)
    rates = solver.Momentum(rate=0.3).learning_rate(jnp.array([0, 98, 99]), jnp.int32(100))
    np.testing.assert_allclose(rates, [0.3, 0.3, 0.0], rtol=1e-6)


def test_half_a_pixel_rounds_up_in_a_loop_of_ones_own_too():
    """A quarter of 50 pixels is 12.5: 13, as in `extremal`."""
    net = perturb.Model(lambda w, x: x.mean((1, 2)), ())
    recipe = solver.Recipe(masks.Blobs(), operators.Fade(), rewards.logit())
    # NumPy's round would give 12, to the even number.
    images, areas = jnp.ones((2, 5, 10, 3)), jnp.array([0.25, 0.5])
    items, _ = solver.init(net, recipe, images, jnp.array([0, 1]), areas, steps=2)
    found = perturb.extremal(net, images, [0, 1], areas=areas[:, None], steps=2, operator="fade")
    assert items.pixels.tolist() == [13, 25]
    assert (found.masks > 0.5).sum((2, 3))[:, 0].tolist() == [13, 25]


@pytest.mark.slow
def test_flat_scores_give_a_mask_as_promised():
    """A model without any gradient still gets k pixels, the right mean, and no grey."""
    flat = rewards.user(lambda outputs, target, original: 0.0 * outputs.sum())
    model = planted.small_network()
    recipe = exact_recipe((16, 16), operator="fade", reward=flat)
    items, state = slots(model, recipe, 16, [0.1, 0.3, 0.2], [2, 2, 2], 3)
    state = solver.advance(model, recipe, items, state, 2)
    outcome = solver.finish(model, recipe, items, state)
    m = np.asarray(outcome.masks).reshape(3, -1)
    np.testing.assert_array_equal((m > 0.5).sum(1), items.pixels)
    np.testing.assert_allclose(m.mean(1), items.area, rtol=0.02)
    assert (((m > 0.1) & (m < 0.9)).mean(1) <= 0.1).all()


def test_no_job_is_lost_where_threads_take_faster_than_jobs_come():
    counter = _slots._Counter()
    done = []

    def fill():
        while taken := counter.take(1, True):
            done.extend(taken)
            yield _slots.Event(1, taken, None)

    def slow():
        for n in range(40):
            # Slower than the threads take: they wait at an empty queue, where a job could be lost.
            time.sleep(0.002)
            yield n

    events = list(_slots._together([fill(), fill()], counter, slow(), ahead=4))
    assert sorted(done) == list(range(40))
    assert len(events) == 40
