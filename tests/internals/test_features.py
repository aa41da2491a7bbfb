"""Feature visualisation against the published formulas in numpy, and against models whose answer is
known.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import perturb
from perturb import taps
from perturb.internals import features
from perturb.internals.features import given, loop, objectives, spectra, transforms

SIZES = [(12, 16), (13, 16), (12, 15), (13, 15)]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _mixing():
    # Lucid's published colour correlation, scaled by its longest column.
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]])
    return root / np.sqrt((root**2).sum(0)).max()


@pytest.mark.parametrize("size", SIZES)
def test_fourier_is_the_published_formula(size):
    height, width = size
    params = np.random.default_rng(0).normal(size=(2, 3, height, width // 2 + 1))
    f = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2)
    # As published: by frequency, each at least one over the longer side.
    scale = np.sqrt(height * width) / np.maximum(f, 1 / max(height, width))
    plane = np.fft.irfft2((params[0] + 1j * params[1]) * scale, s=size) / 4
    want = _sigmoid(np.einsum("chw,rc->hwr", plane, _mixing()))
    got = features.Fourier().image(jnp.asarray(params, jnp.float32), (height, width, 3))
    # float32 against float64 of values up to 1.
    assert np.abs(np.asarray(got) - want).max() <= 1e-6


@pytest.mark.slow_cases
@pytest.mark.parametrize("size", SIZES)
def test_maco_keeps_every_magnitude(size):
    height, width = size
    spectrum = features.learn(np.random.default_rng(1).random((5, height, width, 3), np.float32))
    maco = features.Maco(spectrum=spectrum)
    params = maco.init(jax.random.key(0), (height, width, 3))
    for step in range(3):
        field = np.asarray(maco.field(params, (height, width, 3)), np.float64)
        # In NumPy's own transform and double precision, so that no error cancels.
        got = np.abs(np.fft.rfft2(field.transpose(2, 0, 1)))
        # All columns, 0 and W/2 among them.
        assert np.abs(got / spectrum.magnitude - 1).max() <= 1e-5
        params = params + jax.random.normal(jax.random.key(step + 1), params.shape)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 10), (9, 11)])
def test_maco_keeps_every_magnitude_at_every_step(size):
    rng = np.random.default_rng(3)
    spectrum = features.learn(rng.random((5, *size, 3), np.float32))
    maco = features.Maco(spectrum=spectrum)
    recipe = dataclasses.replace(features.preset("maco"), parametrisation=maco, steps=6, redirect=0)
    items, count = objectives.per_item(features.logit(0))
    items = jax.tree.map(lambda x: jnp.concatenate([x, x]), items)
    keys = jnp.stack([given.item_keys(jax.random.key(0), items, count)[0]] * 2)
    item, net = loop.Items(items, keys, jnp.int32(6)), _matched(rng.normal(size=(*size, 3)))
    state = loop.begin(recipe, (*size, 3), item, 1)
    first = np.asarray(state.params)
    for _ in range(6):
        state = loop.step(net, recipe, (*size, 3), item, state, False)
        field = np.asarray(maco.field(state.params[0, 0], (*size, 3)), np.float64)
        got = np.abs(np.fft.rfft2(field.transpose(2, 0, 1)))
        assert np.abs(got / spectrum.magnitude - 1).max() <= 1e-5
    assert np.abs(np.asarray(state.params) - first).max() > 1  # the phases did move


@pytest.mark.parametrize("size", SIZES)
def test_maco_picture_is_the_standardised_field(size):
    height, width = size
    maco = features.Maco()
    params = maco.init(jax.random.key(3), (height, width, 3))
    field = np.asarray(maco.field(params, (height, width, 3)), np.float64)
    plane = (field - field.mean()) / (field.std() + 1e-5)
    want = _sigmoid(plane @ _mixing().T)
    assert np.abs(np.asarray(maco.image(params, (height, width, 3))) - want).max() <= 1e-6


@pytest.mark.parametrize("kind", [features.Pixels(), features.Fourier(), features.Pyramid()])
@pytest.mark.parametrize("size", [(12, 16), (13, 15)])
def test_a_picture_is_written_and_read_back(kind, size):
    picture = np.random.default_rng(0).uniform(0.1, 0.9, (*size, 3)).astype(np.float32)
    back = kind.image(jax.tree.map(jnp.asarray, kind.inverse(picture)), picture.shape)
    # Near 0 and 1 the inverse of a sigmoid enlarges what float32 loses.
    assert np.abs(np.asarray(back) - picture).max() <= 2e-4


def test_white_noise_gets_the_slope_of_the_decay():
    size = (64, 64, 1)
    params = jax.random.normal(jax.random.key(0), (2, 1, 64, 33))
    kind = features.Fourier(mixing=np.eye(1, dtype=np.float32), decay=1.5, deviation=1.0)
    z = np.asarray(params[0] ** 2 + params[1] ** 2) * np.asarray(kind.scale(size)) ** 2
    f = spectra.frequencies(64, 64)
    # Well above 1/64, below which the scale no longer grows.
    keep = f > 0.03
    slope = np.polyfit(np.log(f[keep]), np.log(z[0][keep]) / 2, 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.1)  # 2,000 entries of log-spread 0.6


def test_learnt_colours_have_the_covariance_of_the_pictures():
    mix = np.array([[0.2, 0.05], [0.1, -0.08]])
    pictures = 0.5 + np.random.default_rng(0).normal(size=(8, 16, 16, 2)).clip(-2, 2) @ mix.T
    root = features.colours(pictures)
    want = np.cov(pictures.reshape(-1, 2).T)
    got = root @ root.T
    # Up to one factor, which the spread of the colours is given by.
    assert np.abs(got / got[0, 0] - want / want[0, 0]).max() <= 1e-5


@pytest.mark.slow
def test_no_change_is_the_same_bits():
    picture = jax.random.uniform(jax.random.key(0), (13, 16, 3))
    still = (
        features.Jitter(first=0, last=0),
        features.Roll(pixels=0),
        features.Noise(normal=0.0, uniform=0.0),
        features.Crop(side=(1.0, 1.0), spread=0.0, centre=0.0),
    )
    # All of them drawn, with nothing to do: interpolation at whole pixels must be exact.
    drawn = transforms.draw(still, jax.random.key(1), picture.shape, 0.0)
    view = jax.jit(lambda x: transforms.apply(still, drawn, x))(picture)
    assert (np.asarray(view) == np.asarray(picture)).all()


def test_shifts_have_mean_zero_and_whole_steps():
    jitter = features.Jitter(first=4, last=0)
    keys = jax.random.split(jax.random.key(0), 4000)
    offsets = np.asarray(jax.vmap(lambda k: jitter.draw(k, (8, 8, 3), 0.0)[1])(keys))
    assert set(offsets.ravel()) == set(range(-4, 5))
    # Uniform on nine numbers: deviation 2.58, of a mean of 4,000 .041.
    assert np.abs(offsets.mean(0)).max() < 4 * 0.041


def test_a_shift_moves_the_picture_and_fills():
    picture = jnp.arange(25.0).reshape(5, 5, 1)
    view = transforms._affine(picture, jnp.eye(2), jnp.array([1.0, -2.0]), 0.5, 1)
    want = np.full((5, 5, 1), 0.5, np.float32)
    want[:4, 2:] = np.arange(25.0).reshape(5, 5, 1)[1:, :3]
    assert (np.asarray(view) == want).all()


@pytest.mark.slow
@pytest.mark.parametrize("degrees", [3.0, 20.0])
def test_the_slope_of_a_view_is_the_transpose_of_the_view(degrees):
    turn = features.Jitter(scales=(0.93, 1.1), degrees=(degrees, -degrees), fill=0.0)
    drawn = turn.draw(jax.random.key(0), (9, 11, 2), 0.0)
    # All unit pictures at once: the view is linear, and these are its columns.
    basis = jnp.eye(9 * 11).reshape(-1, 9, 11, 1)
    matrix = jax.vmap(lambda x: turn.view(drawn, x))(basis).reshape(99, 99)
    _, pull = jax.vjp(lambda x: turn.view(drawn, x), basis[0])
    back = jax.vmap(lambda g: pull(g)[0])(basis).reshape(99, 99)
    assert np.abs(np.asarray(back) - np.asarray(matrix).T).max() <= 1e-5


def _bilinear(picture, matrix, offset, fill):
    """Reads a picture at `matrix (q - middle) + middle + offset`, in double precision."""
    height, width, channels = picture.shape
    middle = (np.array([height, width]) - 1) / 2
    at = np.stack(np.mgrid[:height, :width], -1) - middle
    y, x = np.moveaxis(at @ np.asarray(matrix, np.float64).T + middle + np.asarray(offset), -1, 0)
    wide = np.full((height + 2, width + 2, channels), fill)
    wide[1:-1, 1:-1] = picture
    # Beyond the rim everything is the fill: places farther out are moved onto it.
    y, x = np.clip(y + 1, 0, height + 1), np.clip(x + 1, 0, width + 1)
    top, left = np.minimum(y.astype(int), height), np.minimum(x.astype(int), width)
    fy, fx = (y - top)[..., None], (x - left)[..., None]
    upper = (1 - fx) * wide[top, left] + fx * wide[top, left + 1]
    lower = (1 - fx) * wide[top + 1, left] + fx * wide[top + 1, left + 1]
    return (1 - fy) * upper + fy * lower


@pytest.mark.parametrize("size", [(12, 16), (13, 15)])
def test_views_are_those_of_numpy(size):
    height, width = size
    y, x = np.mgrid[:height, :width]
    # Smooth: a place that float32 rounds by a millionth of a pixel then changes less.
    waves = [0.5 + 0.4 * np.sin(0.5 * y + 0.3 * k * x) for k in range(3)]
    picture = np.stack(waves, -1).astype(np.float32)
    jitter = features.Jitter(scales=(0.9, 1.1), degrees=(-10.0, 7.0))
    for i in range(6):
        drawn = jitter.draw(jax.random.key(i), picture.shape, 0.0)
        got = np.asarray(jitter.view(drawn, jnp.asarray(picture)))
        assert np.abs(got - _bilinear(picture, *drawn, jitter.fill)).max() <= 1e-6
    shift = np.array([3, -2])
    rolled = features.Roll().view(jnp.asarray(shift), jnp.asarray(picture))
    assert (np.asarray(rolled) == np.roll(picture, shift, (0, 1))).all()
    # A crop of .4 around (.5, .45), enlarged: linear between the middles of the pixels.
    weights = [transforms._stretch(n, m, 0.4) for n, m in zip(size, (0.5, 0.45), strict=True)]
    got = np.asarray(features.Crop().view(tuple(weights), jnp.asarray(picture)))
    want = picture.astype(np.float64)
    for axis, (n, m) in enumerate(zip(size, (0.5, 0.45), strict=True)):
        source = m * n - 0.5 + (np.arange(n) + 0.5 - n / 2) * 0.4
        want = np.apply_along_axis(lambda v, s=source, n=n: np.interp(s, range(n), v), axis, want)
    assert np.abs(got - want).max() <= 1e-6


def test_a_turn_of_a_quarter_is_exact():
    picture = jax.random.uniform(jax.random.key(0), (8, 8, 3))
    quarter = features.Jitter(first=0, last=0, degrees=(90.0,))
    view = quarter.view(quarter.draw(jax.random.key(0), (8, 8, 3), 0.0), picture)
    # Either direction: here only the exactness is asked.
    turned = min(np.abs(np.asarray(view) - np.rot90(picture, k)).max() for k in (1, 3))
    assert turned <= 1e-5


def _matched(kernel):
    """A model of one linear unit, the picture's product with a kernel."""
    return perturb.Model(lambda k, x: (x * k).sum((1, 2, 3))[:, None], jnp.asarray(kernel))


def test_linear_unit_under_a_norm_gives_the_matched_filter():
    kernel = np.random.default_rng(0).normal(size=(10, 12, 3)).astype(np.float32)
    found = features.visualise(
        _matched(kernel),
        features.logit(0),
        preset="erhan2009",
        size=(10, 12),
        key=jax.random.key(0),
    )
    picture = found.images[0] - 0.5
    # Of all pictures of one length the kernel itself gives the largest product.
    cosine = (picture * kernel).sum() / np.linalg.norm(picture) / np.linalg.norm(kernel)
    assert cosine >= 0.999


def test_linear_unit_in_a_box_gives_its_sign():
    kernel = np.random.default_rng(0).normal(size=(6, 6, 3)).astype(np.float32)
    recipe = features.Preset(
        parametrisation=features.Raw(), rule=features.Ascent(rate=10.0), steps=50, redirect=0
    )
    found = features.visualise(
        _matched(kernel), features.logit(0), preset=recipe, size=6, key=jax.random.key(0)
    )
    assert (found.images[0] == (kernel > 0)).mean() > 0.98  # kernels of nearly 0 are slow


@pytest.mark.slow
def test_one_step_of_lucid_is_adam_on_the_published_formula():
    kernel = np.random.default_rng(2).normal(size=(8, 8, 3)).astype(np.float32)
    net, size = _matched(kernel), (8, 8, 3)
    recipe = dataclasses.replace(features.preset("lucid"), transforms=(), steps=1, redirect=0)
    items, count = objectives.per_item(features.logit(0))
    keys = jnp.stack([given.item_keys(jax.random.key(0), items, count)[0]] * 2)
    items = jax.tree.map(lambda x: jnp.concatenate([x, x]), items)
    item = loop.Items(items, keys, jnp.int32(1))
    state = loop.begin(recipe, size, item, 1)
    before = np.asarray(state.params, np.float64)[0, 0]
    after = np.asarray(loop.step(net, recipe, size, item, state, False).params)[0, 0]

    f = np.sqrt(np.fft.fftfreq(8)[:, None] ** 2 + np.fft.rfftfreq(8)[None] ** 2)
    scale = 8 / np.maximum(f, 1 / 8)

    def value(p):
        plane = np.fft.irfft2((p[0] + 1j * p[1]) * scale, s=(8, 8)) / 4
        return (_sigmoid(np.einsum("chw,rc->hwr", plane, _mixing())) * kernel).sum()

    # Adam's first step is the sign of the slope, but for eps; by central differences.
    rng = np.random.default_rng(0)
    for _ in range(40):
        at = tuple(rng.integers(0, n) for n in before.shape)
        up, down = before.copy(), before.copy()
        up[at] += 1e-5
        down[at] -= 1e-5
        slope = (value(up) - value(down)) / 2e-5
        if abs(slope) > 1e-4:
            assert after[at] - before[at] == pytest.approx(0.05 * np.sign(slope), abs=1e-5)


@pytest.fixture(scope="module")
def net():
    return perturb.load_model("demo", key=jax.random.key(0))


@pytest.mark.slow
def test_a_picture_is_the_same_alone_and_among_any_others(net):
    options = {"preset": "lucid", "steps": 20, "key": jax.random.key(0), "batch_size": 4}
    many = features.visualise(net, features.channel("conv4", jnp.array([3, 7, 5, 9, 1])), **options)
    alone = features.visualise(net, features.channel("conv4", 7), **options)
    other = features.visualise(net, features.channel("conv4", jnp.array([7, 20, 3])), **options)
    assert (many.images[1] == alone.images[0]).all()
    # Other neighbours, another place in the batch, and another number of them.
    assert (other.images[0] == alone.images[0]).all()
    assert (other.images[2] == many.images[0]).all()


def test_silent_units_start_with_redirected_slopes_and_are_reported_without():
    def apply(bias, x):
        first = jax.nn.relu((x - 0.5).mean((1, 2)) - 0.1)
        return taps.tag(jax.nn.relu(4 * first[:, :1] + bias), "unit")

    silent = perturb.Model(apply, jnp.float32(-0.1))
    wanted = features.channel("unit", 0)
    recipe = features.Preset(parametrisation=features.Pixels(), steps=60)
    key = jax.random.key(0)
    found = features.visualise(silent, wanted, preset=recipe, size=8, key=key)
    assert found.started.all()
    assert found.values[0] > 0.5
    grey = dataclasses.replace(recipe, redirect=0)
    found = features.visualise(silent, wanted, preset=grey, size=8, key=key)
    assert not found.started.any()
    assert (found.values == 0).all()


def test_objectives_are_their_formulas():
    value = np.random.default_rng(0).normal(size=(1, 5, 4, 6)).astype(np.float32)
    seen = objectives.Seen(jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 4)), {"a": jnp.asarray(value)})
    vector = np.arange(6, dtype=np.float32)
    dot = value @ vector
    cosine = dot / np.linalg.norm(value, axis=-1) / np.linalg.norm(vector)
    expected = {
        features.channel("a", 2): value[..., 2].mean(),
        features.neuron("a", 2): value[0, 2, 2, 2],
        features.neuron("a", 2, (1, 3)): value[0, 1, 3, 2],
        features.direction("a", vector): dot.mean(),
        features.direction("a", vector, power=2.0): (dot * np.maximum(0.1, cosine) ** 2).mean(),
        features.direction("a", vector, (1, 3)): dot[0, 1, 3],
        features.layer("a"): (value**2).mean(),
        features.activation_difference("a", value[0] + 2): -4.0,
        2 * features.channel("a", 1) - features.layer("a"): 2 * value[..., 1].mean()
        - (value**2).mean(),
        sum([features.channel("a", 1), -features.channel("a", 1)]): 0.0,
    }
    for objective, want in expected.items():
        assert float(objective(seen)) == pytest.approx(float(want), rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_diversity_makes_variants_differ(net):
    def likeness(weight):
        wanted = features.channel("conv4", 3) + weight * features.diversity("conv4")
        found = features.visualise(
            net, wanted, preset="lucid", steps=30, variants=3, key=jax.random.key(0)
        )
        assert found.images.shape == (3, 64, 64, 3)
        flat = loop.activations(net, jnp.asarray(found.images), ("conv4",))[1]["conv4"]
        return -float(
            features.diversity("conv4")(objectives.Seen(found.images, None, {"conv4": flat}))
        )

    assert likeness(100.0) < likeness(0.0)


@pytest.mark.slow
def test_every_preset_makes_its_class_likelier(net):
    for name in features.PRESETS:
        recipe = dataclasses.replace(features.preset(name), steps=8)
        # Two views a step, to be quick; what is asked is the direction and not the height.
        recipe = dataclasses.replace(recipe, views=min(recipe.views, 2))
        found = features.visualise(net, features.logit(2), preset=recipe, key=jax.random.key(0))
        assert found.finite.all(), name
        # Yosinski's blur and pruning of pixels take away more than eight steps bring.
        if not name.startswith("yosinski"):
            assert found.values[0] > found.start[0], name


@pytest.mark.parametrize(
    ("objective", "options", "words"),
    [
        (features.channel("conv4", 48), {}, "unit 48 does not exist: layer conv4 has 0 to 47"),
        (features.channel("conv9", 0), {}, "layer must be one of"),
        (features.logit(10), {}, "class 10 does not exist"),
        (features.direction("conv4", np.ones(3)), {}, "direction must have 48 numbers"),
        (features.logit(0), {"preset": "lucent"}, "preset must be one of lucid, jitter, maco"),
        (features.logit(0), {"batch_size": 1}, "batch_size must be at least 2"),
        (
            features.logit(0),
            {
                "preset": features.Preset(
                    parametrisation=features.Maco(spectrum=features.embedded(8, 8, 1))
                )
            },
            "learn it from pictures of the model's channels",
        ),
        (
            features.logit(0),
            {"preset": features.Preset(parametrisation=features.Pixels(mixing=np.eye(2)))},
            "mixing must be",
        ),
    ],
)
def test_bad_input_gets_one_line(net, objective, options, words):
    with pytest.raises(ValueError, match=words) as error:
        features.visualise(net, objective, key=jax.random.key(0), **options)
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_model_of_nan_is_refused():
    broken = perturb.Model(lambda w, x: x.mean((1, 2)) * w, jnp.float32(np.nan))
    with pytest.raises(ValueError, match="NaN or infinite"):
        features.visualise(broken, features.logit(0), size=8, key=jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_pictures_of_other_channels(channels):
    weights = jnp.eye(channels)
    model = perturb.Model(lambda w, x: (x.mean((1, 2))) @ w, weights, channels=channels)
    for name in ("lucid", "maco"):
        found = features.visualise(
            model, features.logit(0), preset=name, size=(9, 12), steps=5, key=jax.random.key(0)
        )
        assert found.images.shape == (1, 9, 12, channels)
        assert np.isfinite(found.images).all()


@pytest.mark.slow
def test_transparency_fades_what_does_not_matter():
    def apply(w, x):
        return taps.tag(x[:, 2:5, 2:5, :].mean((1, 2)), "middle")

    # The unit sees nine of 144 pixels.
    model = perturb.Model(apply, jnp.float32(0))
    recipe = features.Preset(
        parametrisation=features.Alpha(base=features.Pixels()), steps=150, redirect=0
    )
    found = features.visualise(
        model, features.channel("middle", 0), preset=recipe, size=12, key=jax.random.key(0)
    )
    alpha = found.images[0, ..., 3]
    assert alpha[2:5, 2:5].mean() > 2 * alpha[6:, 6:].mean()
