"""What the laws of federated training share: a federation of the steady agent, one round at a time."""

import dataclasses

import jax
import numpy as np
from laws.common import ENV, NETWORK

from dqn_jax.federated.config import FederatedConfig, MergeConfig
from dqn_jax.federated.driver import named_parts
from dqn_jax.federated.rounds import make_federation
from dqn_jax.types import Clock

SEED = 3


def config_of(merge=None, **options):
    """A federation without heterogeneity."""
    merge = MergeConfig(**(merge or {}))
    return FederatedConfig(**{"heterogeneity": "none", "unseen_envs": 0, "merge": merge, **options})


def many(env_params, count):
    """The same environment parameters for every client."""
    return jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), env_params)


def train(agent_config, config, rounds, network=NETWORK, env_params=None, seed=SEED, change=lambda parts: parts):
    """(state, infos [rounds]) of a federation after some rounds on one device."""
    parts = change(named_parts(ENV, network, agent_config, config))
    federation = make_federation(network, parts, config)
    clients = config.num_clients

    # Two programs: the first is the same for most configs, and compiled once for all of them.
    @jax.jit
    def run(state):
        return jax.lax.scan(lambda state, _: federation.round(state), state, length=rounds)

    return run(jax.jit(federation.init)(np.int32(seed), env_params or many(ENV.params, clients), np.arange(clients)))


def client(state, index, shared_clocks=True):
    """One client's agent, as a single agent has it."""
    is_clock = lambda x: isinstance(x, Clock)  # noqa: E731
    return jax.tree.map(
        lambda x: x if is_clock(x) and shared_clocks else jax.tree.map(lambda leaf: leaf[index], x),
        state.clients.agent,
        is_leaf=is_clock,
    )


def small(agent_config):
    """The same agent with sizes that compile fast."""
    return dataclasses.replace(agent_config, num_envs=2, batch_size=8, replay_capacity=128, learning_starts=16)
