"""A network as the prior of a picture: noise and holes taken out, and stopped in time."""

import jax
import numpy as np
import pytest

from perturb.internals import features


def _psnr(a, b):
    return -10 * np.log10(((a - b) ** 2).mean())


def _smooth(size=32):
    y, x = np.mgrid[:size, :size] / size
    planes = [0.5 + 0.4 * np.sin(6 * x + 2 * y), 0.3 + 0.5 * (x + y > 1), 0.5 + 0.3 * np.cos(5 * y)]
    return np.stack(planes, -1).astype(np.float32).clip(0, 1)


@pytest.mark.slow_cases
@pytest.mark.parametrize("size", [(8, 12, 1), (13, 9, 3), (4, 4, 5)])
def test_pictures_of_any_size_and_number_of_channels(size):
    deep = features.Deep(width=4, inputs=3)
    params = deep.init(jax.random.key(0), size)
    picture = np.asarray(deep.image(params, size))
    assert picture.shape == size
    assert ((picture >= 0) & (picture <= 1)).all()
    # The noise is given, not fitted.
    slopes = jax.grad(lambda p: deep.image(p, size).sum())(params)
    assert (np.asarray(slopes["noise"]) == 0).all()


@pytest.mark.slow
def test_noise_goes_and_the_fit_is_stopped_near_the_best():
    truth = _smooth()
    noise = 25 / 255 * np.random.default_rng(0).normal(size=truth.shape)
    bad = (truth + noise).clip(0, 1).astype(np.float32)
    found = features.restore(
        bad[None],
        steps=600,
        prior=features.Deep(width=16),
        truth=truth[None],
        key=jax.random.key(0),
    )
    got = _psnr(found.images[0], truth)
    assert got >= _psnr(bad, truth) + 5
    # 150 numbers are held out. Noise of .1 tells two fits .02 apart no better than to 3e-4 by them,
    # which is 1 dB here; a picture of 128 px holds out 16 times as many.
    assert got >= np.nanmax(found.psnr[0]) - 1.5


@pytest.mark.slow
def test_holes_are_filled_from_what_is_around_them():
    truth = _smooth()
    known = np.random.default_rng(0).random(truth.shape[:2]) < 0.6
    found = features.restore(
        (truth * known[..., None])[None],
        known=known[None],
        steps=600,
        prior=features.Deep(width=16),
        key=jax.random.key(0),
    )
    # A constant would be about 10 dB.
    assert _psnr(found.images[0][~known], truth[~known]) >= 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"known": np.ones((1, 9, 8))}, "known must be"),
        ({"known": np.zeros((1, 8, 8))}, "no pixels of picture 0"),
        ({"share": 0.9}, "share must be above 0"),
        ({"steps": 3}, "steps must be at least 10"),
        ({"prior": features.Deep(width=0)}, "width must be at least 1"),
    ],
)
def test_bad_input_gets_one_line(options, words):
    with pytest.raises(ValueError, match=words) as error:
        features.restore(np.full((1, 8, 8, 3), 0.5), key=jax.random.key(0), **options)
    assert len(str(error.value)) < 300


def test_the_former_name_of_the_steps_checked_still_reads_them():
    found = features.Restored(*"abcde")
    assert found.looks == found.checked == "c"
