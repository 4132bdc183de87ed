"""Two clients that are paid for opposite actions learn with heads of their own; under one head they cannot both."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.envs import Functions, from_functions
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.driver import make_federated
from dqn_jax.federated.evaluation import make_evaluator
from dqn_jax.federated.heterogeneity import ClientEnvs
from dqn_jax.mapping import evaluation_key
from dqn_jax.networks import make_network

pytestmark = pytest.mark.long

SEEDS, CALLS, LENGTH = (0, 1), 20, 4


class Sign(NamedTuple):
    sign: float


def reset(key, params):
    side = jax.random.bernoulli(key).astype(jnp.int32)
    return (side, jnp.int32(0)), jax.nn.one_hot(side, 2)


def step(key, state, action, params):
    """A reward of `sign` for the action that an observation shows, and of minus it for the other; then another observation."""
    side, time = state
    after = jax.random.bernoulli(key).astype(jnp.int32)
    reward = params.sign * jnp.where(action == side, 1.0, -1.0)
    return (after, time + 1), jax.nn.one_hot(after, 2), reward, time + 1 >= LENGTH


ENV = from_functions("signs", Functions(reset, step, num_actions=2, params=Sign(1.0), max_episode_steps=LENGTH))
NETWORK = make_network(NetworkConfig(hidden_sizes=(16,)), ENV.spec)
AGENT = AgentConfig(num_envs=2, batch_size=16, replay_capacity=256, learning_starts=32, learning_rate=1e-2, discount=0.5)


def worst_returns(personal):
    """Greedy return of the client that does worse, [S]."""
    config = FederatedConfig(num_clients=2, local_steps=20, heterogeneity="none", unseen_envs=0, personal=personal)
    signs = np.tile(np.float32([1, -1]), (len(SEEDS), 1))
    envs = jax.tree.map(lambda x: np.broadcast_to(x, signs.shape), ENV.params)
    envs = envs.replace(own=Sign(signs))
    devices = jax.local_devices()[:1]
    driver = make_federated(ENV, NETWORK, AGENT, config, env_params=envs, seeds=SEEDS, devices=devices, rounds_per_step=1)
    state = driver.init()
    for _ in range(CALLS):
        state, info = driver.step(state)
        assert driver.problem(info) is None
    evaluator = make_evaluator(ENV, NETWORK, config, ClientEnvs(envs, (), ()), 16, devices)
    keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(SEEDS), CALLS)
    return evaluator.describe(evaluator.play(keys, driver.params(state))[0])["eval_worst"]


def test_heads_of_their_own_serve_both_clients():
    """The best return is 4, a reward of 1 in each step."""
    assert np.min(worst_returns("head")) > 3.9


def test_one_head_serves_one_of_them_at_most():
    """What it earns at one client, it loses at the other: of 16 episodes each the worse is at about 0 or below."""
    assert np.max(worst_returns("none")) < 1
