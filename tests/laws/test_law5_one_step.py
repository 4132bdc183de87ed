"""Law 5: N clients with one SGD step a round and a plain server are data-parallel training on N devices with the same data."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_close, assert_differs, without_clocks
from laws.federation import SEED, config_of, many, small

from dqn_jax.agent import make_agent, repeat
from dqn_jax.federated.driver import named_parts
from dqn_jax.federated.rounds import make_federation
from dqn_jax.mapping import lane_axes, over, place, stream_key

N = 4
ROUNDS = 30
AXIS = "devices"
# Every update copies the target: a client's own copy would be of parameters that are not merged yet, so it takes the server's.
CLIENT = dataclasses.replace(small(STEADY), target_period=1)
WHOLE = dataclasses.replace(
    CLIENT, **{name: N * getattr(CLIENT, name) for name in ("num_envs", "batch_size", "replay_capacity", "learning_starts")}
)


def shards():
    """Data-parallel agents before their first update, leaves [N, ...]."""
    agent = make_agent(ENV, NETWORK, WHOLE, axis_name=AXIS, num_shards=N)

    def start(shard):
        return agent.warm_up(agent.init(stream_key(SEED), shard=shard))

    axes = lane_axes(jax.eval_shape(start, jnp.int32(0)))
    return agent, axes, jax.jit(jax.vmap(start, out_axes=axes))(jnp.arange(N))


@pytest.fixture(scope="module")
def data_parallel():
    """(before, after) ROUNDS steps of the lanes of a `vmap(axis_name)`."""
    agent, axes, before = shards()
    steps = repeat(agent.step, ROUNDS)
    return before, jax.jit(jax.vmap(steps, in_axes=(axes,), out_axes=(axes, 0), axis_name=AXIS))(before)[0]


def on_devices():
    """Parameters [N, ...] after as many steps by `pmap`."""
    agent, axes, before = shards()
    devices = jax.local_devices()[:N]
    rows = jax.tree.map(lambda x, axis: x if axis == 0 else jnp.broadcast_to(x, (N, *x.shape)), before, expand(axes, before))
    return jax.device_get(over(repeat(agent.step, ROUNDS), AXIS, devices)(place(rows, devices))[0].learner.params)


def expand(axes, tree):
    """Axes as a tree of 0 and -1, one for each leaf."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(lambda _: -1 if axis is None else 0, part), axes, tree, is_leaf=lambda x: x is None
    )


@pytest.fixture(scope="module")
def federated():
    """(clients' agents, server's learning rate) -> a federation whose clients hold them, after ROUNDS rounds."""
    config = config_of(num_clients=N, local_steps=1, merge={"target": "global"})
    federation = make_federation(NETWORK, named_parts(ENV, NETWORK, CLIENT, config), config)

    @jax.jit
    def run(agents, rate):
        state = federation.init(SEED, many(ENV.params, N), jnp.arange(N))
        state = state.replace(clients=state.clients.replace(agent=agents), server=state.server.replace(learning_rate=rate))
        return jax.lax.scan(lambda state, _: federation.round(state), state, length=ROUNDS)[0]

    return run


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def test_one_step_a_round_is_data_parallel(data_parallel, federated):
    before, lanes = data_parallel
    state = federated(before, jnp.float32(1.0))
    assert_close(state.server.params, first(lanes.learner.params))
    # And each client has seen what its device saw.
    assert_close(without_clocks(state.clients.agent.replay), without_clocks(lanes.replay))
    assert_close(state.clients.agent.actor.env_state, lanes.actor.env_state)


@pytest.mark.long
def test_one_step_a_round_is_data_parallel_on_devices(data_parallel, federated):
    state = federated(data_parallel[0], jnp.float32(1.0))
    assert_close(state.server.params, first(on_devices()))


def test_a_server_that_does_not_go_all_the_way_is_not(data_parallel, federated):
    before, lanes = data_parallel
    state = federated(before, jnp.float32(0.9))
    assert_differs(state.server.params, first(lanes.learner.params))
