"""2,000 frames on one environment of each kind teach the best that is in it; with steps of next to nothing they do not."""

import dataclasses
import functools

import gymnasium
import jax
import numpy as np
import pytest
from walks import LIMIT, HostWalk, walk

from dqn_jax.config import AgentConfig, DataParallelExperiment, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, actors, data_parallel, engines, parameter_server, server_on_workers, workers
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.mapping import evaluation_key

pytestmark = pytest.mark.long

SIZES = {"num_envs": 4, "batch_size": 32, "replay_capacity": 2_000, "learning_starts": 100}
SHARED = {
    "num_devices": 1,
    "total_frames": 2_000,
    "agent": AgentConfig(
        **SIZES, discount=0.5, learning_rate=1e-2, target_period=50, epsilon_end=0.1, epsilon_decay_frames=1_000
    ),
    "network": NetworkConfig(hidden_sizes=(32,)),
    "runner": RunnerConfig(log_every=500),
}
ALONE = SHARED | {"num_seeds": 2}
ON_THREADS = SHARED | {"num_seeds": 1, "backend": "threads", "env": "gymnasium:Walk-v0"}
SERVER = ServerConfig(num_workers=2)
ACTORS = ActorLearnerConfig(num_actors=2, exploration="shared", acts_per_block=2)

# The walk's best: to place 2 in two steps, and to stay there.
CASES = {
    "gymnax": (DataParallelExperiment(**ALONE, env="Catch-bsuite", env_kwargs=("rows=5", "columns=3")), 1.0),
    "a user's": (ServerExperiment(**ALONE, env="mine:walk", server=SERVER), 10.0 + 4 * 20.0),
    "wrapped": (DataParallelExperiment(**ALONE, env="mine:walk", wrappers=("frame-stack:2", "time-limit:4")), 10.0 + 3 * 20.0),
    "host, workers": (ServerExperiment(**ON_THREADS, server=SERVER), 10.0 + 4 * 20.0),
    "host, actors": (ActorLearnerExperiment(**ON_THREADS, actors=ACTORS, wrappers=("time-limit:3",)), 10.0 + 2 * 20.0),
}


@pytest.fixture(autouse=True)
def names(mine):
    mine.walk = walk
    gymnasium.register("Walk-v0", entry_point=HostWalk, max_episode_steps=LIMIT)
    yield
    del gymnasium.registry["Walk-v0"]


def parts_of(config):
    if isinstance(config, ActorLearnerExperiment):
        return actor_learner.from_config(config, engines.start(config.backend, functools.partial(actors.make_job, config), 2))
    if not isinstance(config, ServerExperiment):
        return data_parallel.from_config(config)
    if config.backend == "device":
        return parameter_server.from_config(config)
    return server_on_workers.from_config(config, engines.start(config.backend, functools.partial(workers.make_job, config), 2))


def final_returns(config):
    driver, evaluator = parts_of(config)
    state, done = driver.init(), driver.initial
    while done < config.budget:
        state, _ = driver.step(state)
        done += driver.per_step
    driver.close()
    keys = jax.vmap(evaluation_key, in_axes=(0, None))(np.array(config.seeds), 0)
    returns, unfinished = evaluator.play(keys, driver.params(state))
    assert not np.any(unfinished)
    return np.asarray(returns)


@pytest.mark.parametrize("kind", CASES)
def test_each_kind_is_learnt(kind):
    config, best = CASES[kind]
    np.testing.assert_allclose(final_returns(config), best)
    still = dataclasses.replace(config, agent=dataclasses.replace(config.agent, learning_rate=1e-9))
    assert (final_returns(still) < 0.8 * best).all()
