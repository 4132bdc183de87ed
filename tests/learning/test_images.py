"""A ball drawn at 84 x 84 bytes is caught where two frames show how it moves, and neither by one frame nor without learning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.config import AgentConfig, DataParallelExperiment, NetworkConfig, RunnerConfig
from dqn_jax.distributed import data_parallel
from dqn_jax.envs.users import Functions
from dqn_jax.mapping import evaluation_key

pytestmark = pytest.mark.long

CELLS, SIDE = 3, 28


def falling_ball():
    """Catch on a screen of 3 x 3 cells: a ball falls two rows, and moves by as many columns in each, round the edges.

    The last action names the column where it is caught. Where it is in the middle row says nothing of where it lands.
    """

    def draw(row, column):
        cells = jnp.zeros((CELLS, CELLS), jnp.uint8).at[row, column % CELLS].set(255)
        return jnp.repeat(jnp.repeat(cells, SIDE, axis=0), SIDE, axis=1)

    def reset(key, params):
        column, speed = jax.random.randint(key, (2,), 0, CELLS)
        return (jnp.int32(0), column, speed), draw(0, column)

    def step(key, state, action, params):
        row, column, speed = state
        row, column = row + 1, column + speed
        landed = row == CELLS - 1
        reward = jnp.where(landed, jnp.where(action == column % CELLS, 1.0, -1.0), 0.0)
        return (row, column, speed), draw(row, column), reward, landed

    return Functions(reset=reset, step=step, num_actions=CELLS, max_episode_steps=CELLS)


CONFIG = DataParallelExperiment(
    env="mine:falling_ball",
    wrappers=("frame-stack:2",),
    num_seeds=2,
    num_devices=1,
    total_frames=2_600,
    agent=AgentConfig(
        num_envs=8, batch_size=16, replay_capacity=2_000, learning_starts=200, learning_rate=2e-3, target_period=20
    ),
    network=NetworkConfig(trunk="nature", channels=2, hidden_sizes=(32,)),
    runner=RunnerConfig(log_every=1_200, eval_episodes=64),
)


@pytest.fixture(autouse=True)
def names(mine):
    mine.falling_ball = falling_ball


def final_returns(config):
    driver, evaluator = data_parallel.from_config(config)
    state, done = driver.init(), driver.initial
    while done < config.budget:
        state, _ = driver.step(state)
        done += driver.per_step
    keys = jax.vmap(evaluation_key, in_axes=(0, None))(np.array(config.seeds), 0)
    return np.asarray(evaluator.play(keys, driver.params(state))[0]).reshape(config.num_seeds, -1).mean(axis=1)


def test_two_frames_show_where_a_ball_lands():
    assert (final_returns(CONFIG) > 0.9).all()


@pytest.mark.parametrize(
    "control",
    [
        dataclasses.replace(CONFIG, wrappers=("frame-stack:1",)),
        dataclasses.replace(CONFIG, agent=dataclasses.replace(CONFIG.agent, learning_rate=1e-9)),
    ],
    ids=["one frame", "no learning"],
)
def test_without_them_or_without_learning_it_is_caught_by_chance(control):
    assert (final_returns(control) < 0.3).all()
