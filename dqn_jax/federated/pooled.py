"""A baseline for a federation: one agent that learns from all clients' experience, pooled.

It acts in every client's environments and averages its gradient over batches drawn evenly from every client's replay: the
data-parallel agent, its shards being clients in lanes of one device. Not here: anything that stays with a client.

Shapes: S repetitions, N clients.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from dqn_jax.agent import example_of
from dqn_jax.config import AgentConfig, check_divides
from dqn_jax.distributed.data_parallel import make_data_parallel
from dqn_jax.envs import Environment, EnvParams
from dqn_jax.evaluation import Evaluator
from dqn_jax.federated import driver
from dqn_jax.federated.config import FederatedConfig, PooledExperiment
from dqn_jax.networks import Network
from dqn_jax.replay import bytes_per_transition
from dqn_jax.types import Driver, Info, Tree


def pooled(agent_config: AgentConfig, num_clients: int, batch_size: int) -> AgentConfig:
    """Scales one client's config to an agent with all clients' environments and replay, its schedules in their frames."""
    sizes = ("num_envs", "replay_capacity", "learning_starts", "epsilon_decay_frames", "importance_anneal_frames")
    given = {name: getattr(agent_config, name) for name in sizes}
    larger = {name: num_clients * size for name, size in given.items() if size is not None}
    return dataclasses.replace(agent_config, batch_size=batch_size, **larger)


def make_pooled(
    env: Environment,
    network: Network,
    agent_config: AgentConfig,
    config: FederatedConfig,
    *,
    env_params: EnvParams,
    seeds: Sequence[int],
    devices: Sequence[jax.Device],
    rounds_per_step: int,
    batch_size: int,
) -> Driver:
    """Builds the driver; a round is as many agent steps as a client of the federation takes in one.

    Args:
      env: the environment.
      network: the Q-network.
      agent_config: the agent that every client would be.
      config: the federation to compare with.
      env_params: parameters of the clients' environments, leaves [S, N, ...].
      seeds: S, one for each repetition.
      devices: each has repetitions of its own.
      rounds_per_step: rounds in one call of the driver's `step`.
      batch_size: transitions of an update, from all clients together.

    Returns:
      The data-parallel driver, counting rounds.

    Raises:
      InputError: where repetitions do not divide over the devices, or the batch over the clients.
    """
    check_divides("batch_size", batch_size, config.num_clients, "clients")
    whole = pooled(agent_config, config.num_clients, batch_size)
    steps = rounds_per_step * config.local_steps
    parallel = make_data_parallel(
        env, network, whole, seeds=seeds, devices=devices, steps_per_chunk=steps, env_params=jax.device_get(env_params)
    )
    # A pooled replay is sent every transition once; those of the warm-up before the first round.
    transition_bytes = bytes_per_transition(example_of(env, whole))

    def step(state: Tree) -> tuple[Tree, Info]:
        state, info = parallel.step(state)
        return state, info | {"bytes": np.asarray(info["frames"]) * transition_bytes}

    return parallel._replace(
        step=step,
        params=lambda state: {"global": parallel.params(state)},
        unit="rounds",
        initial=0,
        per_step=rounds_per_step,
    )


def from_config(config: PooledExperiment) -> tuple[Driver, Evaluator]:
    """Builds the driver of a pooled experiment, and the federation's evaluator, for `runner.run`.

    Raises:
      InputError: for an environment, distribution, number of devices or sizes that cannot be used.
    """
    return driver.from_config(config, functools.partial(make_pooled, batch_size=config.batch_size))
