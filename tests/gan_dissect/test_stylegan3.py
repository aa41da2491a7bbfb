"""StyleGAN3: what is alias-free moves with its input, filters do what their equations say, files
are read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_dissect import check_generator, load_generator
from gan_dissect.nets import _alias_free, layouts, stylegan3
from perturb import taps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
run = jax.jit(lambda g, z: g(z))


@pytest.fixture(scope="module")
def generator():
    return load_generator("stylegan3", key=KEY)


def changed_rate(x, kernel, up, down, ends):
    """The same written out: zeros between, zeros at the ends, a full convolution, every
    `down`-th.
    """
    wide = np.zeros(len(x) * up)
    wide[::up] = x * up
    before, after = (np.zeros(max(n, 0)) for n in ends)
    wide = np.concatenate([before, wide, after])
    wide = wide[max(-ends[0], 0) : len(wide) - max(-ends[1], 0)]
    return np.convolve(wide, kernel, "valid")[::down]


@pytest.mark.parametrize(
    ("up", "taps_", "ends"), [(2, 12, (3, 4)), (4, 24, (-5, -6)), (4, 24, (9, 2))]
)
def test_rates_are_changed_as_written_out(up, taps_, ends):
    x, kernel = RNG.standard_normal(20), RNG.standard_normal(taps_)
    rows = jnp.asarray(np.outer(x, x)[None, :, :, None])
    want = changed_rate(x, kernel, up, 1, ends)
    got = _alias_free.upsampled(rows, jnp.asarray(kernel), up, ends)[0, :, :, 0]
    np.testing.assert_allclose(
        got, np.outer(want, want), rtol=1e-4, atol=1e-4 * np.abs(want).max() ** 2
    )
    lower = changed_rate(x, kernel[:8], 1, 2, (0, 0))
    for given in (jnp.asarray(kernel[:8]), jnp.asarray(np.outer(kernel[:8], kernel[:8]))):
        got = _alias_free.downsampled(rows, given, 2)[0, :, :, 0]
        np.testing.assert_allclose(
            got, np.outer(lower, lower), rtol=1e-4, atol=1e-4 * np.abs(lower).max() ** 2
        )


@pytest.mark.parametrize("radial", [False, True])
def test_a_filter_passes_what_is_below_and_stops_what_is_above(radial):
    kernel = _alias_free.lowpass(48, 8.0, 6.0, 64.0, radial=radial)
    kernel = kernel if radial else np.outer(kernel, kernel)
    # 48 taps about their middle, which lies between two of them.
    at = np.arange(48) - 23.5

    def gain(right, down):
        return abs(
            (kernel * np.exp(-2j * np.pi * (right * at[None] + down * at[:, None]) / 64)).sum()
        )

    assert abs(gain(0, 0) - 1) < 1e-6
    assert min(gain(4, 0), gain(0, 4), gain(3, 3)) > 0.99
    assert max(gain(12.5, 0), gain(0, 12.5)) < 0.02
    # On the diagonal the two part: 7 and 7 are 9.9 together.
    assert (gain(7, 7) < 0.3) == radial
    assert gain(8, 0) == pytest.approx(0.5, abs=0.05)


def test_features_are_waves_that_move_with_the_picture(generator):
    """Moved by two samples of the first layer they are the same, two further; turned by 90 degrees,
    turned.
    """
    w = jnp.asarray(RNG.standard_normal((2, 16)), jnp.float32)
    v = generator.variables

    def drawn(**options):
        move = jnp.asarray(
            stylegan3._transform(**({"translate": (0, 0), "rotate": 0} | options)), jnp.float32
        )
        return stylegan3._features(v | {"synthesis.input.transform": move}, w, 36, 16)

    still, moved = drawn(), drawn(translate=(2 / 16, 5 / 16))
    # In samples of a sixteenth: two to the right, five down.
    np.testing.assert_allclose(moved[:, 5:, 2:], still[:, :-5, :-2], atol=2e-5)
    np.testing.assert_allclose(drawn(rotate=90), jnp.rot90(still, axes=(1, 2)), atol=2e-5)
    assert float(still.std()) > 0.3


@pytest.mark.slow
def test_pictures_move_with_the_features(generator):
    """By whole pixels of a 16 px picture, to the filters' accuracy: far nearer than where it
    was.
    """
    z = RNG.standard_normal((4, 16)).astype(np.float32)
    still = run(generator, z)["image"]
    moved = run(load_generator("stylegan3", weights=generator.variables, translate=(3 / 16, 0)), z)[
        "image"
    ]
    # 3 of 16 px: compared where both pictures have the place.
    off = jnp.square(moved[:, :, 3:] - still[:, :, :-3]).mean()
    assert float(still.std()) > 0.02
    # Against what the move changes: filters of a few taps leave some of it aliased.
    assert float(off) < 0.05 * float(jnp.square(moved - still).mean())


@pytest.mark.slow
def test_spaces_layers_and_checks(generator):
    check_generator(generator)
    z = RNG.standard_normal((2, 16)).astype(np.float32)
    names = taps.names(generator, z)
    assert [n for n in names if n.startswith("L") and "." not in n] == [
        "L0_36_8",
        "L1_36_8",
        "L2_36_8",
        "L3_16_8",
        "L4_16_3",
    ]
    assert names["L1_36_8.style"].shape == (2, 8)
    assert names["input"].shape == (2, 36, 36, 8)
    styles = run(generator, z)["styles"]
    assert styles.shape == (2, 6, 16)
    plus = load_generator("stylegan3", weights=generator.variables, space="w+")
    np.testing.assert_allclose(run(plus, styles)["image"], run(generator, z)["image"], atol=1e-5)
    # Truncated to nothing, every latent is the mean style, and all pictures are one.
    mean = load_generator("stylegan3", weights=generator.variables, truncation=0.0)
    assert float(run(mean, z)["image"].std(0).max()) < 1e-6


def test_files_are_recognised_under_any_wrapper(generator):
    tensors = {n: np.asarray(t) for n, t in generator.variables.items()}
    for prefix in ("", "G_ema.", "module."):
        found = layouts.fit({prefix + n: t for n, t in tensors.items()})
        assert (found.net, found.project, found.prefix) == ("stylegan3", "StyleGAN3", prefix)
    again = load_generator("stylegan3", weights={f"module.{n}": t for n, t in tensors.items()})
    z = RNG.standard_normal((2, 16)).astype(np.float32)
    np.testing.assert_array_equal(run(again, z)["image"], run(generator, z)["image"])
    with pytest.raises(ValueError, match=r"do not fit stylegan3: no tensors synthesis\.L0_36_512"):
        load_generator("stylegan3", weights={"a": np.zeros(2)})
    del tensors["synthesis.L2_36_8.bias"]
    with pytest.raises(ValueError, match=r"L2_36_8\.bias"):
        load_generator("stylegan3", weights=tensors)
