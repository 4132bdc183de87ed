"""Real workers learn CartPole's beginnings; with a frozen learner they do not."""

import dataclasses
import functools

import jax.numpy as jnp
import pytest

from dqn_jax.config import AgentConfig, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, actors, engines, server_on_workers, workers
from dqn_jax.distributed.config import ActorLearnerExperiment, ServerExperiment
from dqn_jax.mapping import evaluation_key

pytestmark = pytest.mark.long

SIZES = {"batch_size": 64, "replay_capacity": 10_000, "learning_starts": 1_000}
AGENT = AgentConfig(**SIZES, learning_rate=1e-3, target_period=50, epsilon_decay_frames=5_000, max_grad_norm=10.0)
SHARED = {"num_seeds": 1, "num_devices": 1, "backend": "threads", "max_episode_steps": 200}
NETWORK = NetworkConfig(hidden_sizes=(64, 64))
ACTORS = ActorLearnerExperiment(
    total_frames=80_000,
    agent=dataclasses.replace(AGENT, updates_per_step=2),
    network=NETWORK,
    runner=RunnerConfig(log_every=4_000),
    **SHARED,
)
SERVER = ServerExperiment(
    total_frames=80_000,
    # Of each of the four workers.
    agent=dataclasses.replace(
        AGENT, num_envs=4, batch_size=32, learning_rate=5e-4, learning_starts=500, epsilon_decay_frames=2_000
    ),
    network=NETWORK,
    runner=RunnerConfig(log_every=4_000),
    **SHARED,
)


def best_return(config, enough=float("inf")):
    """The best mean greedy return after a chunk, up to the first that is enough: threads never run twice in the same order."""
    make_job, from_config = {
        ActorLearnerExperiment: (actors.make_job, actor_learner.from_config),
        ServerExperiment: (workers.make_job, server_on_workers.from_config),
    }[type(config)]
    driver, evaluator = from_config(config, engines.start(config.backend, functools.partial(make_job, config), 4))
    best = 0.0
    try:
        state = driver.init()
        for frames in range(driver.initial_frames, config.total_frames, driver.per_step):
            state, _ = driver.step(state)
            returns = evaluator.play(evaluation_key(config.seed, frames)[None], driver.params(state))[0]
            best = max(best, float(jnp.mean(returns)))
            if best >= enough:
                break
    finally:
        driver.close()
    return best


def frozen(config):
    agent = dataclasses.replace(config.agent, learning_rate=1e-12)
    return dataclasses.replace(config, agent=agent, total_frames=12_000)


@pytest.mark.parametrize("config", [ACTORS, SERVER], ids=["actors", "server"])
def test_learns(config):
    assert best_return(config, enough=150) >= 150


@pytest.mark.parametrize("config", [ACTORS, SERVER], ids=["actors", "server"])
def test_a_frozen_learner_does_not(config):
    assert best_return(frozen(config)) < 40
