"""`perturb.demo`: a network, pictures and their classes in one call."""

import re

import numpy as np
import pytest

import perturb


def test_one_call_gives_a_network_that_is_right_about_its_pictures():
    model, images, targets = perturb.demo(count=10)
    assert images.shape == (10, 64, 64, 3)
    assert images.dtype == np.float32
    assert sorted(targets) == list(range(10))
    answers = np.asarray(model(images)).argmax(-1)
    # Ten pictures, one of each class: at most one may be read wrongly.
    assert (answers == targets).mean() >= 0.9
    # Drawn one by one from their number: the first three are the same, however many are asked for.
    again = perturb.demo(count=3)
    np.testing.assert_array_equal(again.images, images[:3])


def test_the_cheat_follows_the_stamp():
    model, images, targets = perturb.demo("demo_cheat", 10, watermark="wrong")
    drawn = perturb.embedded.world.render_batch(7, range(10), watermark="wrong")
    answers = np.asarray(model(images)).argmax(-1)
    assert (answers == drawn.mark).mean() >= 0.9
    # The stamp is that of another class: who follows it is wrong about every picture.
    assert (drawn.mark != targets).all()
    _, stamped, _ = perturb.demo("demo_cheat", 4, watermark=3)
    assert (np.asarray(model(stamped)).argmax(-1) == 3).all()


def test_the_older_paths_give_the_same_things():
    from launch import demo
    from launch.demo import world

    assert world.render is perturb.embedded.world.render
    assert demo.load is perturb.embedded.load
    assert set(demo.tensors("demo")) == set(perturb.embedded.tensors("demo"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "honest"}, "name must be one of demo, demo_cheat, demo_vit, got 'honest'"),
        ({"count": 0}, "count must be a whole number of pictures, at least 1, got 0"),
        ({"count": 2.5}, "got 2.5"),
        ({"watermark": "left"}, "watermark must be None"),
    ],
)
def test_what_cannot_be_given_is_said_in_a_line(given, said):
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        perturb.demo(**given)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
