"""Environments so small that their Q values are known: a learner that is right reaches them, a frozen one does not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.agent import hyperparams_of, make_agent, repeat
from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.envs import Environment, EnvSpec, TimeStep
from dqn_jax.networks import make_network

pytestmark = pytest.mark.long

GAMMA = 0.5
TIME_LIMIT = 5
SEEDS = jnp.arange(4)
UPDATES = 1500
CONFIG = AgentConfig(
    num_envs=4,
    batch_size=32,
    replay_capacity=1024,
    learning_starts=64,
    discount=GAMMA,
    learning_rate=3e-3,
    target_period=20,
    epsilon_end=0.5,
    epsilon_decay_frames=1000,
)


def probe(name, reward_of, length, truncates=False, observed=True):
    """Episodes of `length` steps that count the step, one-hot, if `observed`; `reward_of(time, action)` is the reward."""
    size = length if observed else 1

    def observe(time):
        return jax.nn.one_hot(time if observed else 0 * time, size)

    def init(key, params):
        del key, params
        return jnp.int32(0), observe(jnp.int32(0))

    def step(key, time, action, params):
        del key, params
        over = time + 1 >= length
        after = jnp.where(over, 0, time + 1)
        last = TimeStep(observe(after), observe(time + 1), reward_of(time, action), over & (not truncates), over & truncates)
        return after, last

    return Environment(EnvSpec(name, (size,), np.dtype(np.float32), 2, length), init, step, {})


ONE_STEP = probe("one-step reward", lambda time, action: jnp.float32(1), length=1)
TWO_STEP = probe("two-step discount", lambda time, action: (time == 1).astype(jnp.float32), length=2)
ACTION = probe("action-dependent reward", lambda time, action: 2.0 * action - 1.0, length=1)
LATE = probe("action-dependent reward at last", lambda time, action: action * (time == 1.0), length=2)
ENDLESS = probe("time limit", lambda time, action: jnp.float32(1), length=TIME_LIMIT, truncates=True, observed=False)

# Q values [observation, action] by hand. The time limit is no end: 1 + gamma + gamma^2 + ... = 2.
KNOWN = {
    "one-step": (ONE_STEP, [[1.0, 1.0]]),
    "two-step": (TWO_STEP, [[GAMMA, GAMMA], [1.0, 1.0]]),
    "action": (ACTION, [[-1.0, 1.0]]),
    "time limit": (ENDLESS, [[2.0, 2.0]]),
    "late": (LATE, [[GAMMA, GAMMA], [0.0, 1.0]]),
}
TARGETS = {
    "double": {"double_q": True},
    "huber": {"loss": "huber"},
    "3-step": {"n_step": 3},
    "q-lambda": {"n_step": 3, "return_lambda": 0.7, "double_q": True},
}
WAYS = {
    "polyak": {"target_period": 1, "target_rate": 0.05},
    "rmsprop": {"optimizer": "rmsprop", "optimizer_eps": 1e-2},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05, "max_grad_norm": 10.0},
    "exponential": {"epsilon_schedule": "exponential"},
    "prioritised": {"memory": "prioritised"},
}
ROLLOUT = {
    "memory": "rollout",
    "return_lambda": 0.7,
    "acts_per_step": 8,
    "batch_size": 16,
    "updates_per_step": 4,
    "learning_starts": 0,
    "optimizer": "radam",
    "learning_rate": 1e-3,
}
"""Two epochs of two minibatches."""


@functools.cache
def trainer(env_name, config):
    """learning_rate -> [S, observations, A] after training every seed at once; compiled once for all learning rates."""
    env, _ = KNOWN[env_name]
    network = make_network(NetworkConfig(hidden_sizes=(32,)), env.spec)
    agent = make_agent(env, network, config)
    numbers = hyperparams_of(config)

    def train(seed, learning_rate):
        learner = numbers.learner._replace(learning_rate=learning_rate)
        state = agent.warm_up(agent.init(jax.random.key(seed), hyperparams=numbers._replace(learner=learner)))
        state, _ = repeat(agent.step, UPDATES)(state)

        def q_values(obs):
            return network.apply(state.learner.params, obs, None).q_values

        return jax.vmap(q_values)(jnp.eye(env.spec.obs_shape[0]))

    return jax.jit(jax.vmap(train, in_axes=(0, None)))


def learned_q_values(env_name, config, learning_rate=None):
    rate = config.learning_rate if learning_rate is None else learning_rate
    return np.asarray(trainer(env_name, config)(SEEDS, jnp.float32(rate)))


def assert_learns(name, variant):
    _, expected = KNOWN[name]
    learned = learned_q_values(name, dataclasses.replace(CONFIG, **variant))
    np.testing.assert_allclose(learned, np.broadcast_to(expected, learned.shape), atol=0.05)


@pytest.mark.parametrize("name", KNOWN)
def test_learns_the_known_values(name):
    assert_learns(name, {})


@pytest.mark.parametrize("variant", TARGETS)
@pytest.mark.parametrize("name", ["two-step", "time limit"])
def test_every_target_learns_them_where_it_bootstraps(name, variant):
    assert_learns(name, TARGETS[variant])


@pytest.mark.parametrize("variant", WAYS)
def test_every_way_of_descending_learns_them_too(variant):
    assert_learns("two-step", WAYS[variant])


# With lambda 0 the best last action counts, and not the mean of those that were tried.
@pytest.mark.parametrize(("name", "changes"), [("two-step", {}), ("time limit", {}), ("late", {"return_lambda": 0.0})])
def test_rollouts_learn_them_without_replay_and_target(name, changes):
    assert_learns(name, ROLLOUT | changes)


@pytest.mark.parametrize(("name", "variant"), [*((name, {}) for name in KNOWN), ("two-step", ROLLOUT), ("time limit", ROLLOUT)])
def test_a_frozen_learner_does_not(name, variant):
    _, expected = KNOWN[name]
    learned = learned_q_values(name, dataclasses.replace(CONFIG, **variant), learning_rate=0.0)
    assert np.all(np.abs(learned - np.asarray(expected)).max(axis=(1, 2)) > 0.2)


@pytest.mark.parametrize("return_lambda", [0.5, 0.9])
def test_q_lambda_is_not_cut_where_actions_explore(return_lambda):
    """Half of the last actions earn 1, the best one always: the first value is gamma ((1 - lambda) 1 + lambda / 2)."""
    variant = {"n_step": 2, "return_lambda": return_lambda, "epsilon_end": 1.0, "learning_rate": 1e-3}
    learned = learned_q_values("late", dataclasses.replace(CONFIG, **variant))
    first = GAMMA * (1 - return_lambda / 2)
    # Returns of a replay of single seeds scatter by more than this.
    np.testing.assert_allclose(learned.mean(axis=0), [[first, first], [0.0, 1.0]], atol=0.05)


def test_a_time_limit_taken_for_a_termination_is_a_smaller_value():
    # One transition in five does not bootstrap: Q = 1 + gamma * (4/5) * Q, so Q = 1 / (1 - 0.4).
    learned = learned_q_values("time limit", dataclasses.replace(CONFIG, time_limit="terminal"))
    np.testing.assert_allclose(learned, np.full(learned.shape, 1 / 0.6), atol=0.15)
