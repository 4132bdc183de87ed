"""Laws 1 to 9 for an agent that learns from rollouts: the same functions, by the same comparisons."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import ENV, NETWORK, ROLLOUT, assert_bitwise, assert_close, assert_differs, server_model, without_clocks
from laws.federation import SEED, client, config_of, many, train
from laws.run_files import differences

from dqn_jax.agent import make_agent, repeat
from dqn_jax.config import MAX_COUNT, DataParallelExperiment, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, actors, data_parallel, engines, parameter_server, server_on_workers, workers
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.distributed.data_parallel import AXIS, make_data_parallel
from dqn_jax.federated.driver import named_parts
from dqn_jax.federated.rounds import make_federation
from dqn_jax.mapping import lane_axes, stream_key
from dqn_jax.runner import loop

STEPS = 6
ONE_UPDATE = dataclasses.replace(ROLLOUT, batch_size=32, updates_per_step=1)
HALF = dataclasses.replace(ONE_UPDATE, num_envs=4, batch_size=16)
"""A client, or a worker, of two that are the agent with one update together."""
SMALL = NetworkConfig(hidden_sizes=(16, 16))


@functools.cache
def alone(config=ROLLOUT, steps=STEPS, seed=SEED):
    agent = make_agent(ENV, NETWORK, config)
    start = jax.jit(lambda seed: agent.init(stream_key(seed)))
    return jax.jit(lambda state: repeat(agent.step, steps)(state)[0])(start(seed))


@functools.cache
def driven(config=ROLLOUT, seeds=(SEED,), num_devices=1, seeds_over_devices=False):
    driver = make_data_parallel(
        ENV,
        NETWORK,
        config,
        seeds=seeds,
        devices=jax.local_devices()[:num_devices],
        steps_per_chunk=STEPS,
        seeds_over_devices=seeds_over_devices,
    )
    assert (driver.initial, driver.per_step) == (0, STEPS * config.frames_per_step)
    state, info = driver.step(driver.init())
    driver.check(state)
    return without_clocks(state), info


def test_many_seeds_are_single_runs_also_over_devices():
    seeds = (SEED, SEED + 1)
    together, _ = driven(seeds=seeds)
    apart, _ = driven(seeds=seeds, num_devices=2, seeds_over_devices=True)
    for row, seed in enumerate(seeds):
        one = without_clocks(alone(seed=seed))
        assert_close(jax.tree.map(lambda x, i=row: x[0, i], together), one)
        assert_close(jax.tree.map(lambda x, i=row: x[i, 0], jax.device_get(apart)), one)
    assert_differs(jax.tree.map(lambda x: x[0, 1], together.learner.params), alone().learner.params)


def test_devices_that_average_gradients_are_lanes_that_do():
    """Each shuffles its own share; parameters are the same on all."""
    state, _ = driven(num_devices=2)
    agent = make_agent(ENV, NETWORK, ROLLOUT, axis_name=AXIS, num_shards=2)

    def start(shard):
        return agent.init(stream_key(SEED), shard=shard)

    def run(shard):
        return repeat(agent.step, STEPS)(start(shard))[0]

    axes = lane_axes(jax.eval_shape(start, 0))
    lanes = jax.jit(jax.vmap(run, out_axes=axes, axis_name=AXIS))(jnp.arange(2))
    shards = jax.tree.map(lambda x: x[:, 0], jax.device_get(state))
    assert_close(shards, without_clocks(lanes))
    assert_bitwise(*(jax.tree.map(lambda x, i=i: x[i], shards.learner) for i in range(2)))
    assert_differs(shards.replay.rollout.returns[0], shards.replay.rollout.returns[1])


def test_one_client_is_the_plain_agent():
    state, _ = train(ROLLOUT, config_of(num_clients=1, local_steps=3), 2)
    assert_close(client(state, 0), alone())
    assert_close(state.server.params, alone().learner.params)


def test_clients_with_one_update_a_round_are_data_parallel():
    whole = make_agent(ENV, NETWORK, ONE_UPDATE, axis_name=AXIS, num_shards=2)

    def start(shard):
        return whole.init(stream_key(SEED), shard=shard)

    axes = lane_axes(jax.eval_shape(start, 0))
    begun = jax.jit(jax.vmap(start, out_axes=axes))(jnp.arange(2))
    steps = jax.vmap(repeat(whole.step, STEPS), in_axes=(axes,), out_axes=(axes, 0), axis_name=AXIS)
    config = config_of(num_clients=2, local_steps=1)
    federation = make_federation(NETWORK, named_parts(ENV, NETWORK, HALF, config), config)

    @jax.jit
    def run(agents, rate):
        state = federation.init(SEED, many(ENV.params, 2), jnp.arange(2))
        state = state.replace(clients=state.clients.replace(agent=agents), server=state.server.replace(learning_rate=rate))
        return jax.lax.scan(lambda state, _: federation.round(state), state, length=STEPS)[0].server.params

    expected = jax.tree.map(lambda x: x[0], jax.jit(steps)(begun)[0].learner.params)
    assert_close(run(begun, 1.0), expected)
    assert_differs(run(begun, 0.5), expected)


def served(push, local_steps, events, config):
    model, run = server_model(NETWORK, config, ServerConfig(2, mode="barrier", push=push, local_steps=local_steps))
    begun = jax.jit(lambda: model.init(jnp.uint32(SEED)))()
    return begun, run(begun, events)


def test_gradients_behind_a_barrier_are_data_parallel():
    _, state = served("gradient", 1, STEPS, HALF)
    expected, _ = driven(ONE_UPDATE, num_devices=2)
    shards = jax.tree.map(lambda x: x[:, 0], jax.device_get(expected))
    assert_close(state.server.params, jax.tree.map(lambda x: x[0], shards.learner.params))
    assert_close(without_clocks(state.workers.replay), shards.replay)


def test_deltas_behind_a_barrier_are_federated_averaging():
    agent = dataclasses.replace(ROLLOUT, target_period=MAX_COUNT)
    begun, state = served("delta", 2, 3, agent)
    config = config_of(num_clients=2, local_steps=2)
    federation = make_federation(NETWORK, named_parts(ENV, NETWORK, agent, config), config)

    @jax.jit
    def run(server, workers):
        state = federation.init(SEED, many(ENV.params, 2), jnp.arange(2))
        state = state.replace(server=state.server.replace(params=server.params), clients=state.clients.replace(agent=workers))
        return jax.lax.scan(lambda state, _: federation.round(state), state, length=3)[0]

    federated = run(begun.server, begun.workers)
    assert_close(state.server.params, federated.server.params)
    assert_close(without_clocks(state.workers.replay), without_clocks(federated.clients.agent.replay))


def server_config(backend, mode):
    return ServerExperiment(
        num_seeds=1,
        num_devices=1,
        seed=SEED,
        backend=backend,
        total_frames=100_000,
        agent=ROLLOUT,
        network=SMALL,
        runner=RunnerConfig(log_every=6 * ROLLOUT.frames_per_step),
        server=ServerConfig(num_workers=2, mode=mode, push="delta", service_time="constant"),
    )


@pytest.mark.parametrize("mode", ["barrier", "asynchronous"])
def test_workers_are_the_model_on_a_device(mode):
    """Also one by one, where the model keeps the rollouts of all in one storage."""
    config = server_config("in-process", mode)
    engine = engines.start("in-process", functools.partial(workers.make_job, config), 2)
    driver, _ = server_on_workers.from_config(config, engine)
    model, _ = parameter_server.from_config(server_config("device", mode))
    try:
        state, info = driver.step(driver.init())
    finally:
        driver.close()
    expected, model_info = model.step(model.init())
    assert_close(state.server.params, jax.tree.map(lambda x: x[0, 0], expected.server.params))
    for name in ("frames", "updates", "episodes", "lag", "lag_max"):
        np.testing.assert_array_equal(info[name], model_info[name], err_msg=name)


def learnt_by(num_actors, mode="synchronous"):
    config = ActorLearnerExperiment(
        seed=SEED,
        backend="in-process",
        total_frames=100_000,
        agent=ROLLOUT,
        network=SMALL,
        runner=RunnerConfig(log_every=STEPS * ROLLOUT.frames_per_step),
        actors=ActorLearnerConfig(num_actors, mode=mode, exploration="shared"),
    )
    engine = engines.start("in-process", functools.partial(actors.make_job, config), num_actors)
    driver, _ = actor_learner.from_config(config, engine)
    try:
        assert driver.initial == 0
        state, info = driver.step(driver.init())
    finally:
        driver.close()
    return state.agent, info


def test_synchronous_actors_are_one_agent():
    state, info = learnt_by(2)
    assert_close(
        jax.tree.map(lambda x: x[0], without_clocks((state.learner, state.replay))),
        without_clocks((alone().learner, alone().replay)),
    )
    assert info["lag_max"].tolist() == [0]


def test_an_asynchronous_actors_rollout_is_learnt_from_once():
    """Blocks of two actors in turn: half a rollout each, and half of its updates.

    An actor goes on before the learner has learnt from its block, so its next one is two blocks' updates behind.
    """
    state, info = learnt_by(2, "asynchronous")
    assert info["updates"].tolist() == [STEPS * ROLLOUT.updates_per_step]
    assert info["frames"].tolist() == [STEPS * ROLLOUT.frames_per_step]
    assert state.replay.rollout.returns.shape == (1, ROLLOUT.frames_per_step // 2)
    assert info["lag_max"].tolist() == [ROLLOUT.updates_per_step]
    assert info["samples_per_insert"].tolist() == [2]
    assert_differs(jax.tree.map(lambda x: x[0], state.learner.params), alone().learner.params)


def test_killed_and_resumed_is_never_killed(tmp_path):
    """A rollout comes back, too: half way through training there is one."""

    def run(name, frames, resume=False):
        config = DataParallelExperiment(
            seed=SEED,
            num_seeds=2,
            num_devices=1,
            total_frames=frames,
            agent=ROLLOUT,
            network=SMALL,
            run_dir=tmp_path / name,
            resume=resume,
            runner=RunnerConfig(log_every=96, eval_every=192, eval_episodes=2, checkpoint_every=192),
        )
        driver, evaluator = data_parallel.from_config(config)
        loop.run(driver, config, evaluator)
        return config.run_dir

    whole = run("whole", 384)
    run("halves", 192)
    assert differences(whole, run("halves", 384, resume=True)) == set()
