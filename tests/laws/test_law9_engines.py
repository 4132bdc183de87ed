"""Law 9: an engine in its synchronous mode is the on-device driver; synchronous actors are one agent."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_close, assert_differs, without_clocks

from dqn_jax.agent import hyperparams_of, make_agent, make_chunk
from dqn_jax.config import NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, actors, data_parallel, engines, parameter_server, server_on_workers, workers
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.mapping import stream_key

SEED = 5
WORKERS = 3
ROUNDS = 15
STEPS = 20


def server_config(backend, seed=SEED, **server):
    return ServerExperiment(
        num_seeds=1,
        num_devices=1,
        seed=seed,
        backend=backend,
        total_frames=10_000,
        agent=dataclasses.replace(STEADY, num_envs=2, batch_size=8, replay_capacity=64, learning_starts=16),
        network=NetworkConfig(hidden_sizes=(16, 16)),
        runner=RunnerConfig(log_every=ROUNDS * WORKERS * 2),
        server=ServerConfig(num_workers=WORKERS, **server),
    )


@functools.cache
def on_device(service_time="constant", seed=SEED, **server):
    """(server, infos) after two chunks of the model."""
    driver, _ = parameter_server.from_config(server_config("device", seed, service_time=service_time, **server))
    state = driver.init()
    state, first = driver.step(state)
    state, second = driver.step(state)
    return jax.tree.map(lambda x: x[0, 0], state.server), [first, second]


def on_workers(backend, seed=SEED, **server):
    config = server_config(backend, seed, **server)
    engine = engines.start(backend, functools.partial(workers.make_job, config), WORKERS)
    driver, _ = server_on_workers.from_config(config, engine)
    try:
        state, first = driver.step(driver.init())
        state, second = driver.step(state)
    finally:
        driver.close()
    assert state.pushes.tolist() == [2 * ROUNDS] * WORKERS
    return state.server, [first, second]


CASES = {
    "barrier, in turn": ("in-process", {"mode": "barrier"}),
    "barrier, threads": ("threads", {"mode": "barrier"}),
    "asynchronous, in turn": ("in-process", {"mode": "asynchronous", "pull_period": 2}),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_a_server_with_workers_is_the_model_on_device(case):
    backend, server = CASES[case]
    state, infos = on_workers(backend, **server)
    expected, model_infos = on_device(**server)
    assert_close(state, expected)
    updates = 2 * ROUNDS * (1 if server["mode"] == "barrier" else WORKERS)
    assert int(state.updates.count) == updates
    for info, model in zip(infos, model_infos, strict=True):
        for name in ("frames", "updates", "episodes", "lag", "lag_max", "lag_histogram", "dropped", "epsilon", "finite"):
            np.testing.assert_array_equal(info[name], model[name], err_msg=name)
        np.testing.assert_allclose(info["loss"], model["loss"], rtol=1e-5)
        np.testing.assert_allclose(info["return_sum"], model["return_sum"])


@pytest.mark.long
@pytest.mark.parametrize(
    ("backend", "seed", "server", "model"),
    [
        ("in-process", SEED + 1, {"mode": "barrier"}, {"mode": "barrier"}),
        ("in-process", SEED, {"mode": "asynchronous", "pull_period": 2}, {"mode": "barrier"}),
        ("in-process", SEED, {"mode": "asynchronous", "pull_period": 1}, {"mode": "asynchronous", "pull_period": 2}),
    ],
    ids=["another seed", "another mode", "another pull period"],
)
def test_other_workers_are_not(backend, seed, server, model):
    state, _ = on_workers(backend, seed, **server)
    assert_differs(state.params, on_device(**model)[0].params)


def actors_config(num_actors, backend="in-process", num_devices=1, seed=SEED, mode="synchronous", exploration="shared"):
    return ActorLearnerExperiment(
        num_devices=num_devices,
        seed=seed,
        backend=backend,
        total_frames=10_000,
        agent=dataclasses.replace(STEADY, acts_per_step=2, updates_per_step=2, learning_starts=56),
        network=NetworkConfig(hidden_sizes=(16, 16)),
        # As many frames of each chunk, whatever a block is.
        runner=RunnerConfig(log_every=STEPS * 16),
        actors=ActorLearnerConfig(num_actors=num_actors, mode=mode, exploration=exploration, acts_per_block=2 * num_actors),
    )


def with_actors(config):
    engine = engines.start(config.backend, functools.partial(actors.make_job, config), config.actors.num_actors)
    driver, _ = actor_learner.from_config(config, engine)
    try:
        state, info = driver.step(driver.init())
    finally:
        driver.close()
    driver.check(state)
    assert info["updates"].tolist() == [2 * STEPS]
    assert info["frames"].tolist() == [STEPS * 16]
    return state.agent, info


@functools.cache
def one_agent(num_devices):
    """(state, info) of data-parallel training after as many steps."""
    driver = data_parallel.make_data_parallel(
        ENV, NETWORK, actors_config(1).agent, seeds=(SEED,), devices=jax.local_devices()[:num_devices], steps_per_chunk=STEPS
    )
    state, info = driver.step(driver.init())
    assert driver.initial_frames == actors_config(1).initial_frames
    return state, info


def learned(state):
    """Leaves [D, ...] of what the learner has, the counters beside them."""
    parts = (state.learner, state.replay)
    counts = (state.clock.count, state.learner.updates.count, state.replay.added.count)
    return without_clocks(parts), counts


@pytest.mark.parametrize(
    ("num_actors", "backend", "num_devices"),
    [
        (1, "threads", 1),
        pytest.param(2, "in-process", 1, marks=pytest.mark.long),
        pytest.param(4, "threads", 2, marks=pytest.mark.long),
    ],
)
def test_synchronous_actors_are_one_agent(num_actors, backend, num_devices):
    state, info = with_actors(actors_config(num_actors, backend, num_devices))
    expected, plain = one_agent(num_devices)
    (parts, counts), (plain_parts, plain_counts) = learned(state), learned(expected)
    # There, seeds are a second axis.
    assert_close(parts, jax.tree.map(lambda x: np.asarray(x)[:, 0], plain_parts))
    assert_close(counts, plain_counts)
    for name in ("episodes", "terminated", "truncated", "epsilon"):
        np.testing.assert_allclose(info[name], plain[name], err_msg=name)
    assert info["lag_max"].tolist() == [0]


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [{"seed": SEED + 1}, {"mode": "asynchronous"}],
    ids=["another seed", "asynchronous"],
)
def test_other_actors_are_not(changes):
    state, _ = with_actors(actors_config(2, **changes))
    assert_differs(without_clocks(state.learner), jax.tree.map(lambda x: x[:, 0], without_clocks(one_agent(1)[0].learner)))


@functools.cache
def agent_with_epsilons(permuted=False):
    config = actors_config(4).agent
    numbers = hyperparams_of(config)
    ladder = jnp.asarray(np.repeat(actors.epsilon_ladder(4)[:: -1 if permuted else 1], 2), jnp.float32)
    numbers = numbers._replace(actor=numbers.actor._replace(epsilon_start=ladder, epsilon_end=ladder))
    agent = make_agent(ENV, NETWORK, config)

    @jax.jit
    def train():
        return make_chunk(agent, STEPS)(agent.warm_up(agent.init(stream_key(SEED), hyperparams=numbers)))

    return train()


@pytest.mark.long
def test_actors_on_a_ladder_are_one_agent_with_an_epsilon_for_each_environment():
    state, info = with_actors(actors_config(4, exploration="ladder"))
    expected, plain = agent_with_epsilons()
    (parts, _), (plain_parts, _) = learned(state), learned(expected)
    assert_close(jax.tree.map(lambda x: x[0], parts), plain_parts)
    np.testing.assert_allclose(info["epsilon"], [plain["epsilon"]], rtol=1e-6)


@pytest.mark.long
def test_actors_on_another_ladder_are_not():
    state, _ = with_actors(actors_config(4, exploration="ladder"))
    parts, _ = learned(agent_with_epsilons(permuted=True)[0])
    assert_differs(jax.tree.map(lambda x: x[0], learned(state)[0]), parts)
