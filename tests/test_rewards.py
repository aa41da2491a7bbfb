"""Rewards against numpy, and the refusal of outputs they cannot read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perturb import Model, rewards

RNG = np.random.default_rng(0)
# Logits of a spread of 3: some classes are all but certain, as with networks.
ROWS, ORIGINAL = RNG.normal(size=(2, 3, 5)) * 3
# The first, the last and a middle class.
TARGETS = np.array([0, 4, 2])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def others(row, target):
    return np.delete(row, target).max()


P, Q = log_softmax(ORIGINAL), log_softmax(ROWS)
WANT = {
    "logit": [r[t] for r, t in zip(ROWS, TARGETS, strict=True)],
    "log_probability": [r[t] for r, t in zip(Q, TARGETS, strict=True)],
    "probability": [np.exp(r[t]) for r, t in zip(Q, TARGETS, strict=True)],
    "margin": [r[t] - others(r, t) for r, t in zip(ROWS, TARGETS, strict=True)],
    "kl": -(np.exp(P) * (P - Q)).sum(-1),
    "embedding": (ROWS * ORIGINAL).sum(-1)
    / np.linalg.norm(ROWS, axis=-1)
    / np.linalg.norm(ORIGINAL, axis=-1),
    "regression": -((ROWS - ORIGINAL) ** 2).sum(-1),
    "contrastive:3": [r[t] - r[3] for r, t in zip(ROWS, TARGETS, strict=True)],
}


def reward_of(name):
    return rewards.contrastive(3) if ":" in name else rewards.get(name)


@pytest.mark.slow_cases
@pytest.mark.parametrize("name", WANT)
def test_rewards_against_numpy(name):
    """Under jit and vmap, with finite gradients."""
    reward = reward_of(name)
    assert reward.name == name
    args = jnp.asarray(ROWS, jnp.float32), jnp.asarray(TARGETS), jnp.asarray(ORIGINAL, jnp.float32)
    got = jax.jit(jax.vmap(reward))(*args)
    np.testing.assert_allclose(got, WANT[name], rtol=1e-5, atol=1e-5)
    slope = jax.vmap(jax.grad(reward))(*args)
    assert bool(jnp.isfinite(slope).all())


def test_region_is_the_mean_over_the_region():
    """Soft regions weigh; an empty one pays nothing rather than NaN."""
    outputs = RNG.normal(size=(6, 7, 5))
    where = RNG.random((6, 7))
    want = (log_softmax(outputs)[..., 2] * where).sum() / where.sum()
    run = jax.jit(rewards.region())
    got = run(jnp.asarray(outputs, jnp.float32), (2, jnp.asarray(where)), None)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert float(run(jnp.asarray(outputs), (2, jnp.zeros((6, 7))), None)) == 0


def test_extreme_logits_stay_finite():
    """A probability of zero still has a slope in its logarithm."""
    # exp(-1e4) is 0 in float32, even among subnormal numbers: a log of it would be infinite.
    row = jnp.array([1e4, -1e4, 0.0])
    for name in ("log_probability", "probability", "margin", "kl", "embedding"):
        reward = rewards.get(name)
        value, slope = jax.value_and_grad(reward)(row, 1, row)
        assert np.isfinite(value), name
        assert bool(jnp.isfinite(slope).all()), name
    # The cosine of a vector without length: 0 / 0, unless it is seen to.
    zero = jnp.zeros(4)
    assert np.isfinite(rewards.embedding()(zero, 0, zero))
    assert bool(jnp.isfinite(jax.grad(rewards.embedding())(zero, 0, zero)).all())


def test_a_users_function_is_a_reward():
    def brightest(outputs, target, original):
        return outputs.max()

    reward = rewards.get(brightest)
    assert reward.name == "brightest"
    assert not reward.indexes_class
    assert float(reward(jnp.array([1.0, 3.0]), 0, None)) == 3
    assert rewards.get(reward) is reward
    rewards.check(reward, Model(brightest, (), output="segmentation"))


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("logit", "segmentation"),
        ("log_probability", "segmentation"),
        ("probability", "embedding"),
        ("margin", "regression"),
        ("kl", "embedding"),
        ("embedding", "segmentation"),
        ("region", "logits"),
        ("regression", "logits"),
        ("contrastive:3", "embedding"),
    ],
)
def test_wrong_kinds_of_output_are_refused(name, output):
    model = Model(log_softmax, (), output=output, name="net")
    with pytest.raises(ValueError, match=f"reward {name} takes .* model net returns {output}"):
        rewards.check(reward_of(name), model)
    for fits in (*reward_of(name).accepts, "any"):
        rewards.check(reward_of(name), Model(log_softmax, (), output=fits))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"reward must be one of logit, .* got 'applause'"):
        rewards.get("applause")


def test_equal_rewards_are_one_part_of_a_program():
    """Hash and equality: another `contrastive(3)` must not compile again."""
    assert rewards.contrastive(3) == rewards.contrastive(3)
    assert hash(rewards.contrastive(3)) == hash(rewards.contrastive(3))
    # Another class is another program, for the number is compiled in.
    assert rewards.contrastive(3) != rewards.contrastive(2)
    assert rewards.logit() == rewards.get("logit")
