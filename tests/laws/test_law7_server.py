"""Law 7: W workers that a server waits for, and that wait for it, are data-parallel training on W devices.

And those that push how far H steps took them are federated averaging with H local steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from laws.common import ENV, STEADY, assert_close, assert_differs, server_model, without_clocks
from laws.federation import config_of, many, small

from dqn_jax.agent import make_agent, repeat
from dqn_jax.config import MAX_COUNT, NetworkConfig
from dqn_jax.distributed.config import ServerConfig
from dqn_jax.distributed.data_parallel import AXIS, make_data_parallel
from dqn_jax.federated.driver import named_parts
from dqn_jax.federated.rounds import make_federation
from dqn_jax.mapping import lane_axes, stream_key
from dqn_jax.networks import make_network

SEED = 3
STEPS = 30
NETWORK = make_network(NetworkConfig(hidden_sizes=(16,)), ENV.spec)
SGD = small(STEADY)
ADAM = dataclasses.replace(SGD, optimizer="adam", learning_rate=1e-3)


def whole(config, num_workers):
    """The one agent that workers of this config are shards of."""
    sizes = ("num_envs", "batch_size", "replay_capacity", "learning_starts")
    return dataclasses.replace(config, **{name: num_workers * getattr(config, name) for name in sizes})


@functools.cache
def on_devices(config, num_workers, steps=STEPS):
    """The state [W, ...] of the data-parallel driver."""
    devices = jax.local_devices()[:num_workers]
    driver = make_data_parallel(ENV, NETWORK, whole(config, num_workers), seeds=[SEED], devices=devices, steps_per_chunk=steps)
    state, _ = driver.step(driver.init())
    return jax.tree.map(lambda x: jax.device_put(x, devices[0])[:, 0], without_clocks(state))


@functools.cache
def on_one_device(config, num_workers, steps=STEPS):
    """The same shards as lanes of a `vmap` whose axis the gradients are averaged over."""
    agent = make_agent(ENV, NETWORK, whole(config, num_workers), axis_name=AXIS, num_shards=num_workers)

    def start(shard):
        return agent.warm_up(agent.init(stream_key(SEED), shard=shard))

    def train(shard):
        return repeat(agent.step, steps)(start(shard))[0]

    axes = lane_axes(jax.eval_shape(start, jnp.int32(0)))
    return without_clocks(jax.jit(jax.vmap(train, out_axes=axes, axis_name=AXIS))(jnp.arange(num_workers)))


@functools.cache
def program(agent_config, config):
    """(start, events: (state, number of them) -> state), compiled."""
    model, run = server_model(NETWORK, agent_config, config)
    if config.pull_period > 1:
        # They begin alike.
        return program(agent_config, dataclasses.replace(config, pull_period=1))[0], run
    return jax.jit(lambda: model.init(jnp.uint32(SEED))), run


def served(agent_config, num_workers, events=STEPS, factor=1.0, **options):
    """The state of a parameter server of this config after some events, its own rate scaled by `factor`."""
    start, run = program(agent_config, ServerConfig(**{"num_workers": num_workers, "mode": "barrier", **options}))
    state = start()
    numbers = state.server.hyperparams
    numbers = numbers._replace(learning_rate=factor * numbers.learning_rate)
    return run(state.replace(server=state.server.replace(hyperparams=numbers)), events)


def assert_law(state, shards, optimizer=True):
    """The server has learned what every shard has, and each worker has seen what its shard saw."""
    kept = ("params", "target_params", "opt_state") if optimizer else ("params", "target_params")
    for shard in range(len(state.pushes)):
        for name in kept:
            assert_close(getattr(state.server, name), jax.tree.map(lambda x, i=shard: x[i], getattr(shards.learner, name)))
    workers = without_clocks(state.workers)
    assert_close(workers.replay, shards.replay)
    assert_close(workers.actor, shards.actor)
    assert_close(workers.stream, shards.stream)


@pytest.mark.parametrize(
    ("num_workers", "reference"),
    [
        (2, on_devices),
        pytest.param(4, on_devices, marks=pytest.mark.long),
        pytest.param(4, on_one_device, marks=pytest.mark.long),
    ],
)
def test_a_barrier_is_data_parallel(num_workers, reference):
    state = served(SGD, num_workers)
    assert int(state.server.updates.count) == STEPS
    assert_law(state, reference(SGD, num_workers))


@pytest.mark.long
def test_a_barrier_is_data_parallel_with_adam():
    assert_law(served(ADAM, 2, 10), on_one_device(ADAM, 2, 10))


@pytest.mark.long
def test_the_mean_of_single_descents_is_data_parallel():
    """With plain descent a worker's own step is its gradient times the rate, so their mean is the step on the mean."""
    assert_law(served(SGD, 4, push="delta"), on_one_device(SGD, 4), optimizer=False)


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "asynchronous", "events": STEPS},  # as many updates
        {"mode": "asynchronous", "events": 4 * STEPS},  # as many pushes
        {"pull_period": 2},
        {"factor": 4.0},  # the sum
        {"factor": 0.9},
    ],
)
def test_without_barrier_fresh_parameters_or_mean_it_is_not(options):
    state = served(SGD, 4, **options)
    assert_differs(state.server.params, jax.tree.map(lambda x: x[0], on_one_device(SGD, 4).learner.params))


LOCAL_STEPS, ROUNDS = 4, 8


@functools.cache
def averaging(target="global", local_steps=LOCAL_STEPS):
    """((server, workers) -> a federation whose clients are these workers, after its rounds)."""
    # The server owns the target, as it does that of its workers: theirs never moves by itself.
    client = dataclasses.replace(SGD, target_period=MAX_COUNT)
    config = config_of(num_clients=3, local_steps=local_steps, merge={"target": target})
    federation = make_federation(NETWORK, named_parts(ENV, NETWORK, client, config), config)

    @jax.jit
    def run(server, workers):
        state = federation.init(SEED, many(ENV.params, 3), jnp.arange(3))
        state = state.replace(server=state.server.replace(params=server.params), clients=state.clients.replace(agent=workers))
        return jax.lax.scan(lambda state, _: federation.round(state), state, length=ROUNDS)[0]

    return run


@pytest.mark.long
def test_deltas_of_several_steps_behind_a_barrier_are_federated_averaging():
    agent = dataclasses.replace(SGD, target_period=1)
    start, run = program(agent, ServerConfig(num_workers=3, mode="barrier", push="delta", local_steps=LOCAL_STEPS))
    begun = start()
    served = run(begun, ROUNDS)
    federated = averaging()(begun.server, begun.workers)
    assert_close(served.server.params, federated.server.params)
    assert_close(without_clocks(served.workers.replay), without_clocks(federated.clients.agent.replay))
    assert_close(without_clocks(served.workers.actor), without_clocks(federated.clients.agent.actor))
    # Another target, or other numbers of local steps, is another algorithm.
    for other in (averaging(target="keep"), averaging(local_steps=LOCAL_STEPS - 1)):
        assert_differs(other(begun.server, begun.workers).server.params, served.server.params)
