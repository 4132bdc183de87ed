"""A federation learns CartPoles of different lengths, also ones it has not seen; one whose server stands still does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.federated.driver import from_config
from dqn_jax.federated.presets import HETEROGENEOUS
from dqn_jax.mapping import evaluation_key

pytestmark = pytest.mark.long

SEEDS = (0, 1)
CONFIG = dataclasses.replace(
    HETEROGENEOUS,
    num_devices=2,
    num_seeds=len(SEEDS),
    rounds=40,
    agent=dataclasses.replace(HETEROGENEOUS.agent, learning_rate=1e-3, replay_capacity=4_000),
    federated=dataclasses.replace(HETEROGENEOUS.federated, num_clients=4, eval_clients=False, unseen_envs=4),
    runner=dataclasses.replace(HETEROGENEOUS.runner, log_every=10),
)


@pytest.fixture(scope="module")
def federation():
    return from_config(CONFIG)


def final(federation, server_learning_rate):
    """Returns of the final parameters: (where clients train, in unseen environments), each [S]."""
    driver, evaluator = federation
    state = driver.init()
    rate = jax.tree.map(lambda x: jnp.full_like(x, server_learning_rate), state.server.learning_rate)
    state = state.replace(server=state.server.replace(learning_rate=jax.device_put(rate, state.server.learning_rate.sharding)))
    for _ in range(CONFIG.rounds // driver.per_step):
        state, _ = driver.step(state)
    keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(SEEDS), CONFIG.rounds)
    result = evaluator.describe(evaluator.play(keys, driver.params(state))[0])
    return result["eval_return"], result["eval_inside"]


def test_a_federation_learns_what_no_client_has_seen(federation):
    seen, unseen = final(federation, 1.0)
    assert np.mean(seen) > 170, seen
    assert np.mean(unseen) > 170, unseen


def test_a_server_that_stands_still_does_not(federation):
    seen, unseen = final(federation, 0.0)
    assert np.max(seen) < 100, seen
    assert np.max(unseen) < 100, unseen
