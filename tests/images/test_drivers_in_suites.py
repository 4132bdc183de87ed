"""Every driver trains in the environments of other suites that a program steps."""

import dataclasses

import jax
import numpy as np
import pytest

from dqn_jax.config import AgentConfig, DataParallelExperiment, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, actors, data_parallel, engines, parameter_server
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.federated import driver as federated
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment

pytestmark = pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")

COMMON = {
    "max_episode_steps": 50,
    "num_seeds": 1,
    "num_devices": 1,
    "agent": AgentConfig(num_envs=2, batch_size=4, replay_capacity=64, learning_starts=8),
    "network": NetworkConfig(trunk="mlp", hidden_sizes=(4,)),
    "runner": RunnerConfig(log_every=16, eval_episodes=1),
}
DRIVERS = {
    "data-parallel": (data_parallel.from_config, DataParallelExperiment(total_frames=100, **COMMON)),
    "federated": (
        federated.from_config,
        FederatedExperiment(
            rounds=4,
            federated=FederatedConfig(num_clients=2, num_clients_per_round=2, local_steps=4, heterogeneity="none"),
            **COMMON | {"runner": RunnerConfig(log_every=1, eval_episodes=1)},
        ),
    ),
    "parameter-server": (
        parameter_server.from_config,
        ServerExperiment(total_frames=100, server=ServerConfig(num_workers=2), **COMMON),
    ),
    "actor-learner": (
        lambda config: actor_learner.from_config(
            config, engines.start("in-process", lambda: actors.make_job(config), config.actors.num_actors)
        ),
        ActorLearnerExperiment(total_frames=100, actors=ActorLearnerConfig(num_actors=2, acts_per_block=4), **COMMON),
    ),
}


ENVS = {
    "octax:brix": (),
    "pgx:2048": (),
    "jumanji:Snake-v1": ("field=grid",),
    "craftax:Craftax-Classic-Symbolic-v1": (),
}


@pytest.mark.parametrize("env", ENVS)
@pytest.mark.parametrize("name", DRIVERS)
def test_every_driver_trains(name, env):
    make, config = DRIVERS[name]
    driver, _ = make(dataclasses.replace(config, env=env, env_kwargs=ENVS[env]))
    state = driver.init()
    before = jax.device_get(driver.params(state))
    state, info = driver.step(state)
    assert np.isfinite(info["loss"]).all()
    after = jax.device_get(driver.params(state))
    assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
