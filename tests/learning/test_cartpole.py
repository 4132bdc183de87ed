"""The main job, shortened to four seeds, ends near CartPole's optimum of 500; a frozen learner does not."""

import dataclasses

import jax
import numpy as np
import pytest

from dqn_jax.distributed.data_parallel import from_config
from dqn_jax.mapping import evaluation_key
from dqn_jax.presets import QUICKSTART


def final_returns(config):
    """[S] mean greedy returns of the final parameters."""
    driver, evaluator = from_config(config)
    state = driver.init()
    for _ in range((config.total_frames - driver.initial_frames) // driver.per_step):
        state, _ = driver.step(state)
    driver.check(state)
    keys = jax.vmap(evaluation_key, in_axes=(0, None))(np.array(config.seeds), config.total_frames)
    return evaluator.describe(np.asarray(evaluator.play(keys, driver.params(state))[0]))["eval_return"]


@pytest.fixture(scope="module")
def config():
    return dataclasses.replace(QUICKSTART, num_devices=2, num_seeds=4)


def test_learns(config):
    returns = final_returns(config)
    assert returns.mean() >= 475, returns
    assert np.sum(returns >= 475) >= 3, returns


def test_a_frozen_learner_does_not(config):
    frozen = dataclasses.replace(config.agent, learning_rate=1e-12)
    returns = final_returns(dataclasses.replace(config, agent=frozen, total_frames=60_000))
    assert returns.max() < 250, returns
