"""Law 5: N clients with one SGD step a round and a plain server are data-parallel training on N devices with the same data."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_close, without_clocks
from laws.federation import SEED, config_of, small

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
    """(before, after `vmap(axis_name)`, after `pmap`) of ROUNDS steps."""
    agent, axes, before = shards()
    steps = repeat(agent.step, ROUNDS)
    lanes = jax.jit(jax.vmap(steps, in_axes=(axes,), out_axes=(axes, 0), axis_name=AXIS))(before)[0]
    devices = jax.local_devices()[:N]
    rows = jax.tree.map(lambda x, axis: x if axis == 0 else jnp.broadcast_to(x, (N, *x.shape)), before, expand(axes, before))
    return before, lanes, over(steps, AXIS, devices)(place(rows, devices))[0]


def expand(axes, tree):
    """Axes as a tree of 0 and -1, one for each leaf."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(lambda _: -1 if axis is None else 0, part), axes, tree, is_leaf=lambda x: x is None
    )


def federated(before, **options):
    """Clients that hold what the data-parallel shards held, after ROUNDS rounds."""
    config = config_of(num_clients=N, local_steps=1, **{"merge": {"target": "global"}, **options})
    federation = make_federation(NETWORK, named_parts(ENV, NETWORK, CLIENT, config), config)

    @jax.jit
    def run(agents):
        env_params = jax.tree.map(lambda x: jnp.broadcast_to(x, (N, *x.shape)), ENV.params)
        state = federation.init(SEED, env_params, jnp.arange(N))
        state = state.replace(clients=state.clients.replace(agent=agents))
        return jax.lax.scan(lambda state, _: federation.round(state), state, length=ROUNDS)[0]

    return run(before)


def test_one_step_a_round_is_data_parallel(data_parallel):
    before, lanes, devices = data_parallel
    state = federated(before)
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
    assert_close(state.server.params, first(lanes.learner.params))
    assert_close(state.server.params, first(devices.learner.params))
    # And each client has seen what its device saw.
    assert_close(without_clocks(state.clients.agent.replay), without_clocks(lanes.replay))
    assert_close(state.clients.agent.actor.env_state, lanes.actor.env_state)


@pytest.mark.parametrize("options", [{"merge": {"target": "keep"}}, {"server_learning_rate": 0.9}])
def test_with_their_own_targets_or_another_server_it_is_not(data_parallel, options):
    before, lanes, _ = data_parallel
    state = federated(before, **options)
    with pytest.raises(AssertionError):
        assert_close(state.server.params, jax.tree.map(lambda x: x[0], lanes.learner.params))
