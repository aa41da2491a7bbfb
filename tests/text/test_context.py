"""Curves over contexts of models that know exactly how far back they look."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb.text import characters, context

SIZE, LENGTH, NUMBER = 5, 24, 64
STARTS = (0, 1, 2, 3, 5, 10, 20)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.integers(0, SIZE, (NUMBER, LENGTH)), rng.integers(0, SIZE, NUMBER)


def table(order):
    # A loss for every history of `order` tokens and what follows: the model is a table.
    logits = np.random.default_rng(1).normal(size=(SIZE,) * (order + 1))
    return jnp.asarray(-jax.nn.log_softmax(jnp.asarray(logits)))


def markov(order):
    losses = table(order)

    def loss(contexts, targets):
        return losses[(*(contexts[:, -i] for i in range(order, 0, -1)), targets)]

    return loss


def bag(contexts, targets):
    """The loss under how often each token occurs, one more of each."""
    # One more of each, or the logarithm of 0 would be asked for.
    counts = jax.nn.one_hot(contexts, SIZE).sum(1) + 1
    share = counts / counts.sum(1, keepdims=True)
    return -jnp.log(jnp.take_along_axis(share, targets[:, None], 1)[:, 0])


def copy(lag):
    def loss(contexts, targets):
        if contexts.shape[1] < lag:
            return jnp.full(len(targets), jnp.log(float(SIZE)))
        right = contexts[:, -lag] == targets
        return -jnp.log(jnp.where(right, 0.9, 0.1 / (SIZE - 1)))

    return loss


@pytest.mark.parametrize("perturbation", list(context.PERTURBATIONS))
def test_a_bigram_model_looks_back_by_one(data, perturbation):
    bank = np.random.default_rng(2).integers(0, SIZE, 200)
    # From 0 on the last token itself is changed, which a bigram model does see.
    starts = [s for s in STARTS if s]
    found = context.curve(markov(1), *data, perturbation, starts, bank=bank)
    np.testing.assert_allclose(found.rise, 0, atol=1e-6)


def test_a_bag_of_words_knows_no_order(data):
    for perturbation in ("shuffle", "shuffle_near", "reverse"):
        found = context.curve(bag, *data, perturbation, STARTS)
        np.testing.assert_allclose(found.rise, 0, atol=1e-6)
    other = np.full(200, SIZE - 1)
    contexts, targets = data
    found = context.curve(bag, contexts, targets * 0, "replace", STARTS, bank=other)
    means = [i.value for i in found.intervals]
    assert (np.array(means) > 0).all()
    assert (np.diff(means) < 0).all()


@pytest.mark.parametrize("lag", [3, 10])
def test_a_copy_jumps_at_its_lag(data, lag):
    contexts, _ = data
    targets = contexts[:, -lag]
    found = context.curve(copy(lag), contexts, targets, "truncate", range(LENGTH + 1))
    # From guessing among five, log 5, to -log .9: what the model loses with the token.
    jump = np.log(SIZE) + np.log(0.9)
    wanted = np.where(np.arange(LENGTH + 1) < lag, jump, 0)
    np.testing.assert_allclose(
        found.rise, np.broadcast_to(wanted[:, None], found.rise.shape), atol=1e-6
    )


@pytest.mark.parametrize("order", [2, 3])
def test_beyond_its_order_a_markov_model_sees_nothing(data, order):
    for perturbation in ("shuffle", "reverse", "shuffle_near"):
        found = context.curve(markov(order), *data, perturbation, STARTS)
        beyond = np.array(STARTS) >= order
        np.testing.assert_allclose(found.rise[beyond], 0, atol=1e-6)
        # Within its order it does see: else any model would pass.
        assert np.abs(found.rise[0]).max() > 0.1


def test_what_is_refused(data):
    with pytest.raises(ValueError, match="perturbation must be"):
        context.curve(bag, *data, "translate", STARTS)
    with pytest.raises(ValueError, match="starts must be"):
        context.curve(bag, *data, "shuffle", [LENGTH + 1])
    with pytest.raises(ValueError, match="bank must hold"):
        context.curve(bag, *data, "replace", [1])


def test_the_embedded_model_reads():
    """It knows what follows in words that the documents are full of, and its loss is far below
    chance.
    """
    from launch import demo

    variables = demo.load_text()
    line = "Raises:\n  ValueError: if the number of images is not the number of target"
    tokens = characters.encode(line)[None]
    logits = characters.apply(variables, jnp.asarray(tokens))
    assert characters.ALPHABET[int(logits[0, -1].argmax())] == "s"
    short = characters.next_loss(variables, jnp.asarray(tokens[:, -1:]), jnp.asarray([0]))
    assert short.shape == (1,)
    each = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits))[0, :-1], tokens[0, 1:, None], 1
    )
    # Chance is more than 6 bits a character; the rest is how well a small model knows such text.
    assert each.mean() / np.log(2) < 2.5
