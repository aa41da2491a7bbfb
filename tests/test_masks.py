"""Parametrisations and the exact area, against float64 references in numpy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import masks

RNG = np.random.default_rng(0)


def sigmoid(z):
    return 0.5 * (1 + np.tanh(0.5 * z))


def project(u, area, temperature):
    """The exact-area projection of rows `[..., N]` in float64, by plain bisection."""
    # At 50 temperatures beyond all scores the sigmoids are 0 or 1 to every digit of a double.
    low = u.min(-1, keepdims=True) - 50 * temperature
    high = u.max(-1, keepdims=True) + 50 * temperature
    # Ninety halvings are more than the 53 bits of a double: nothing of the interval is left.
    for _ in range(90):
        t = 0.5 * (low + high)
        more = sigmoid((u - t) / temperature).mean(-1, keepdims=True) > area
        low, high = np.where(more, t, low), np.where(more, high, t)
    return sigmoid((u - t) / temperature)


def slopes(f, x, h):
    """Central differences in float64 of `f: [R, *shape] -> [R]` at `x` `[*shape]`."""
    steps = h * np.eye(x.size).reshape(x.size, *x.shape)
    return ((f(x + steps) - f(x - steps)) / (2 * h)).reshape(x.shape)


AREAS = (0.02, 0.1, 0.5, 0.95)
TEMPERATURES = (0.01, 0.1, 1.0, 30.0)
SCORES = {
    "normal": RNG.normal(size=(8, 9)),
    # Every pixel alike, one far above the rest, two values but for a little, a wide range: kinds on
    # which a search for the threshold may fail.
    "constant": np.full((8, 9), 0.7),
    "spike": np.eye(1, 72, 31).reshape(8, 9) * 60,
    "two heaps": np.where(RNG.random((8, 9)) < 0.4, -3.0, 3.0) + 0.01 * RNG.normal(size=(8, 9)),
    "wide": 1e3 * RNG.normal(size=(8, 9)),
}
exact = jax.jit(lambda u, a, t: masks.exact_area(u, a, temperature=t))
CASES = np.array(list(itertools.product(AREAS, TEMPERATURES)))


def test_exact_area_against_bisection_in_float64():
    """Mask and mean of every kind of score, for 16 areas and temperatures at once."""
    every = jax.jit(jax.vmap(exact, (None, 0, 0)))
    for kind, u in SCORES.items():
        got = np.asarray(every(jnp.asarray(u), *CASES.T))
        for mask, (area, temperature) in zip(got, CASES, strict=True):
            want = project(u.reshape(-1), area, temperature).reshape(u.shape)
            # Float32 scores of size 1e3 are known to 6e-5, which is many of the low temperatures.
            slack = 1e-5 + 2e-7 * np.abs(u).max() / temperature
            np.testing.assert_allclose(mask, want, atol=slack, err_msg=f"{kind} {area}")
            assert abs(mask.mean() - area) <= 1e-3 * area, (kind, area, temperature)


def test_exact_area_gradient_against_central_differences():
    """To 1e-3 of the largest slope, under jit and vmap; a shift of all scores has no slope."""
    u, w = SCORES["normal"], RNG.normal(size=(8, 9))

    def reference(rows, area, temperature):
        return (project(rows.reshape(len(rows), -1), area, temperature) * w.reshape(-1)).sum(-1)

    loss = jax.grad(lambda u, a, t: (exact(u, a, t) * w).sum())
    every = jax.jit(jax.vmap(loss, (None, 0, 0)))(jnp.asarray(u), *CASES.T)
    worst = 0.0
    for got, (area, temperature) in zip(np.asarray(every), CASES, strict=True):
        paid = functools.partial(reference, area=area, temperature=temperature)
        # A step that is small beside the width of the edge, in float64: good to about 1e-10.
        want = slopes(paid, u, 1e-5 * temperature)
        scale = np.abs(want).max()
        if scale < 1e-6:  # an edge so sharp that nothing moves
            assert np.abs(got).max() < 1e-4
            continue
        worst = max(worst, np.abs(got - want).max() / scale)
        assert abs(got.sum()) <= 1e-3 * scale * math.sqrt(u.size)
    assert worst <= 1e-3, worst


def test_exact_area_gradient_of_constant_scores():
    """Every pixel alike: what one gains the others lose in equal parts."""
    w = RNG.normal(size=(8, 9))
    got = jax.grad(lambda u: (exact(u, 0.25, 0.1) * w).sum())(jnp.full((8, 9), 0.7))
    # The sigmoid's slope a (1 - a) / T, less what the shifted threshold takes from all.
    np.testing.assert_allclose(got, 0.25 * 0.75 / 0.1 * (w - w.mean()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "scores",
    [
        RNG.normal(size=300),
        RNG.integers(-2, 3, 300).astype(float),
        # Zeros of both signs are one number and tie, though their bits differ.
        np.where(RNG.random(300) < 0.5, 0.0, -0.0),
        np.full(300, -1e-38),
        -(10.0 ** RNG.integers(-30, 30, 300)),
        RNG.choice([-3.4e38, 3.4e38, 0.0, 1e-45], 300),
    ],
    ids=["normal", "ties", "zeros of both signs", "equal", "negative", "ends of float32"],
)
def test_binarise_against_a_stable_sort(scores):
    """All counts from none to all; ties go to the lower index. Under jit and vmap."""
    scores = scores.astype(np.float32)
    # Numbers below the smallest normal one count as zero, as they do in XLA's arithmetic.
    order = np.argsort(-np.where(np.abs(scores) < 1.2e-38, 0, scores), kind="stable")
    rank = np.empty(300, int)
    rank[order] = np.arange(300)
    # One program for every count: it is an argument, not a part of the program.
    cut = jax.jit(jax.vmap(masks.binarise, (None, 0)))
    got = np.asarray(cut(jnp.asarray(scores.reshape(15, 20)), jnp.arange(301)))
    want = rank.reshape(15, 20) < np.arange(301)[:, None, None]
    np.testing.assert_array_equal(got, want.astype(np.float32))


@pytest.mark.parametrize(("cells", "size"), [((4, 7), (28, 28)), ((5, 3), (23, 31)), ((6,), (40,))])
@pytest.mark.parametrize("method", ["bilinear", "nearest"])
def test_upsample_against_jax_image(cells, size, method):
    """Half-pixel centres, odd and non-square sizes, under jit and vmap."""
    grid = jnp.asarray(RNG.normal(size=(3, *cells)), jnp.float32)
    got = jax.jit(jax.vmap(lambda g: masks.upsample(g, size, method=method)))(grid)
    kind = "linear" if method == "bilinear" else "nearest"
    want = jax.image.resize(grid, (3, *size), kind, antialias=False)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_corners_and_blurred_upsampling_against_numpy():
    """Corners on corners is linear interpolation; blurred is a convolution of repeated cells."""
    grid = RNG.normal(size=6)
    got = masks.upsample(jnp.asarray(grid), (31,), method="corners")
    want = np.interp(np.linspace(0, 5, 31), np.arange(6), grid)
    np.testing.assert_allclose(got, want, atol=1e-5)
    got = masks.upsample(jnp.asarray(grid), (30,), method="blurred", blur=2.0)
    # A blur of 2 px cut off at four sigma; six cells over 30 px are 5 px each.
    taps = np.exp(-0.5 * (np.arange(-8, 9) / 2) ** 2)
    padded = np.pad(np.repeat(grid, 5), 8, mode="edge")
    np.testing.assert_allclose(got, np.convolve(padded, taps / taps.sum(), "valid"), atol=1e-5)
    with pytest.raises(ValueError, match=r"method must be nearest, .* got 'cubic'"):
        masks.upsample(jnp.zeros((2, 2)), (4, 4), method="cubic")


def blobs_in_numpy(grid, length, step, sigma, reach):
    """One axis of the Gaussian upsampling, pixel by pixel in float64."""
    out = []
    for pixel in range(length):
        at = np.arange(-reach, reach + 1) + pixel // step
        weights = np.exp(-0.5 * ((pixel - (step * (at + 0.5) - 0.5)) / sigma) ** 2)
        out.append(weights / weights.sum() @ grid[np.clip(at, 0, len(grid) - 1)])
    return np.array(out)


@pytest.mark.slow_cases
@pytest.mark.parametrize(("size", "step"), [((23, 30), 4), ((17,), 1), ((9, 8, 7), 3)])
def test_gaussian_upsample_against_numpy(size, step):
    """Value and gradient; a constant grid stays constant, so the blobs sum to one everywhere."""
    cells = [-(-n // step) for n in size]
    grid = RNG.normal(size=cells)
    up = jax.jit(lambda g, sigma: masks.gaussian_upsample(g, size, step=step, sigma=sigma, reach=3))
    # The first is so narrow that the plain weights of a pixel between two cells underflow: what
    # comes out must stay finite and sum to one.
    for sigma in (1e-4, 0.4 * step, 1.5 * step):
        want = grid
        for axis, length in enumerate(size):
            blur = (length, step, max(sigma, 0.3), 3)
            want = np.apply_along_axis(blobs_in_numpy, axis, want, *blur)
        got = up(jnp.asarray(grid, jnp.float32), sigma)
        if sigma > 0.3:
            np.testing.assert_allclose(got, want, atol=1e-5)
        assert np.isfinite(got).all()
        # A constant stays itself, at the border too, beyond which the outermost cell goes on.
        ones = up(jnp.ones(cells), sigma)
        np.testing.assert_allclose(ones, 1, atol=1e-6)
    # Linear, so the gradient is the transpose: <w, U g> = <U^T w, g>.
    w = RNG.normal(size=size).astype(np.float32)
    back = jax.grad(lambda g: (up(g, 1.5 * step) * w).sum())(jnp.asarray(grid, jnp.float32))
    np.testing.assert_allclose((back * grid).sum(), (got * w).sum(), rtol=1e-4, atol=1e-4)


def smooth_max_in_numpy(params, size, step, sigma, coldness, mode):
    """The smooth max-convolution from its formula, in float64; `(visible, padded)`."""
    margin, reach = math.ceil(sigma), 1 + math.ceil(sigma / step)
    padded = np.pad(params, 1 + math.ceil((margin + sigma) / step), mode=mode)
    shape = [(n - 2 * reach - 1) * step + 1 for n in padded.shape]
    full = np.zeros(shape)
    for pixel in np.ndindex(*shape):
        paint = []
        for o in itertools.product(range(-reach, reach + 1), repeat=len(shape)):
            cell = [p // step + d for p, d in zip(pixel, o, strict=True)]
            far = math.dist(pixel, [step * c for c in cell])
            kernel = math.exp(-2 * max(far / sigma - 0.5, 0) ** 2)
            paint.append(kernel * padded[tuple(c + reach for c in cell)])
        paint = np.array(paint)
        weights = np.exp(coldness * paint)
        full[pixel] = (paint * weights).sum() / weights.sum()
    return masks.Mask(full[tuple(slice(margin, margin + n) for n in size)], full)


@pytest.mark.parametrize(
    ("size", "step", "sigma"), [((19,), 3, 5.0), ((11, 8), 3, 4.0), ((3, 4, 2), 2, 2.0)]
)
def test_smooth_max_against_its_formula(size, step, sigma):
    """Signals, pictures and volumes: visible and padded mask, biased and unbiased."""
    # Where the step does not divide a side, the last cell hangs over.
    params = RNG.random([-(-n // step) for n in size])
    for unbiased in (False, True):
        mode = "edge" if unbiased else "constant"
        visible, inner = smooth_max_in_numpy(params, size, step, sigma, 20.0, mode)
        if unbiased:
            top, whole = smooth_max_in_numpy(np.ones_like(params), size, step, sigma, 20.0, mode)
            visible, inner = visible / top, inner / whole
        got = masks.smooth_max(jnp.asarray(params), size, step=step, sigma=sigma, unbiased=unbiased)
        assert got.visible.shape == size
        np.testing.assert_allclose(got.visible, visible, rtol=1e-4)
        np.testing.assert_allclose(got.inner, inner, rtol=1e-4, atol=1e-6)


def test_blobs_that_leave_holes_are_refused():
    with pytest.raises(ValueError, match=r"sigma must be wide enough .* got 1"):
        masks.smooth_max(jnp.ones((2, 2)), (3, 4), step=2, sigma=1.0)


def test_smooth_max_gradient_against_central_differences():
    """Of a functional of both masks, under jit and vmap."""
    size, step, sigma = (5, 4), 3, 2.0
    params = RNG.random((2, 2, 2))
    visible, inner = smooth_max_in_numpy(params[0], size, step, sigma, 20.0, "constant")
    a, b = RNG.normal(size=visible.shape), RNG.normal(size=inner.shape)

    def loss(p):
        mask = masks.smooth_max(p, size, step=step, sigma=sigma)
        return (mask.visible * a).sum() + (mask.inner * b).sum()

    def reference(rows):
        every = [smooth_max_in_numpy(p, size, step, sigma, 20.0, "constant") for p in rows]
        return np.array([(m.visible * a).sum() + (m.inner * b).sum() for m in every])

    got = jax.jit(jax.vmap(jax.grad(loss)))(jnp.asarray(params, jnp.float32))
    for g, p in zip(got, params, strict=True):
        want = slopes(reference, p, 1e-5)
        np.testing.assert_allclose(g, want, atol=1e-3 * np.abs(want).max())


def test_range_of_all_ones_with_the_published_constants():
    """Biased: 0.976 to 0.996. Unbiased: exactly 1 everywhere, and 0 for all zeros."""
    ones = jnp.ones((32, 32))
    # A smooth maximum is a weighted mean of what the cells paint: below 1 where some paint less.
    biased = masks.smooth_max(ones, (224, 224)).visible
    np.testing.assert_allclose([biased.min(), biased.max()], [0.976, 0.996], atol=1e-3)
    unbiased = masks.smooth_max(ones, (224, 224), unbiased=True)
    assert (np.asarray(unbiased.visible) == 1).all()
    assert (np.asarray(unbiased.inner) == 1).all()
    assert not masks.smooth_max(0 * ones, (224, 224), unbiased=True).visible.any()


@pytest.mark.slow_cases
@pytest.mark.parametrize(
    "way", [masks.Blobs(), masks.SmoothMax(), masks.Grid(), masks.Pixels()], ids=repr
)
@pytest.mark.parametrize("size", [(40,), (33, 24), (8, 9, 10)])
def test_parametrisations_on_signals_pictures_and_volumes(way, size):
    """Shapes, range, finite gradients, and one program for a batch as for one."""
    if isinstance(way, masks.SmoothMax) and len(size) == 3:
        # The default's reach would be hundreds of cells for each of 720 voxels.
        way = masks.SmoothMax(step=4, sigma=4.0)
    shape = way.init(size).shape
    params = way.project(jnp.asarray(RNG.normal(size=(2, *shape)), jnp.float32))
    make = jax.jit(jax.vmap(lambda p, a: way.mask(p, size, a, jnp.float32(1)).visible))
    got = make(params, jnp.array([0.2, 0.4]))
    assert got.shape == (2, *size)
    assert got.dtype == jnp.float32
    if isinstance(way, masks.Grid):
        return  # free values, clipped by the optimiser's projection only
    assert float(got.min()) >= 0
    assert float(got.max()) <= 1
    if isinstance(way, (masks.Blobs, masks.Pixels)):
        np.testing.assert_allclose(got.mean(tuple(range(1, got.ndim))), [0.2, 0.4], rtol=1e-3)
