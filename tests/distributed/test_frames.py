"""Servers' workers and actors send and store each frame once, and learn the same, to the bit, as from whole stacks."""

import dataclasses

import jax
import numpy as np
import pytest

from dqn_jax.config import AgentConfig, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, actors, engines
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig
from dqn_jax.distributed.engines.tasks import Task
from dqn_jax.distributed.parameter_server import make_parameter_server
from dqn_jax.envs import make_env
from dqn_jax.frame_ring import make_frame_ring
from dqn_jax.networks import make_network

pytestmark = pytest.mark.long

# Episodes end by the rules after five steps, or are cut after four.
ENV = make_env("Catch-bsuite", wrappers=("frame-stack:3", "time-limit:4"))
WHOLE = ENV._replace(spec=ENV.spec._replace(stack=1))
"""The same, where nobody says that observations are stacked: they are sent and stored whole."""
NETWORK_CONFIG = NetworkConfig(hidden_sizes=(8,))
NETWORK = make_network(NETWORK_CONFIG, ENV.spec)
AGENT = AgentConfig(num_envs=4, replay_capacity=128, batch_size=16, learning_starts=16, n_step=2, epsilon_decay_frames=100)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, *(jax.device_get(params) for params in (one, other)))


@pytest.mark.parametrize("mode", ["asynchronous", "barrier"])
@pytest.mark.parametrize(("replay", "memory"), [("local", "uniform"), ("shared", "uniform"), ("shared", "prioritised")])
def test_a_server_on_a_device(mode, replay, memory):
    config = ServerConfig(num_workers=3, mode=mode, replay=replay, service_time="exponential")
    agent = dataclasses.replace(AGENT, memory=memory)
    trained = []
    for env in (ENV, WHOLE):
        driver = make_parameter_server(
            env, NETWORK, agent, config, seeds=(0,), devices=jax.local_devices()[:1], pushes_per_chunk=90
        )
        state = driver.init()
        first = jax.device_get(driver.params(state))
        state, info = driver.step(state)
        trained.append((driver.params(state), info["loss"], info["lag_max"]))
        assert any(np.any(x != y) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(trained[-1][0]), strict=True))
    assert_same(*trained)


def test_nothing_is_lost_of_workers_that_take_turns():
    """Once the ring has come round, after which nobody's warm-up lies between two of its steps."""
    config = ServerConfig(num_workers=3, mode="barrier", replay="shared")
    agent = dataclasses.replace(AGENT, replay_capacity=32)
    driver = make_parameter_server(
        ENV, NETWORK, agent, config, seeds=(0,), devices=jax.local_devices()[:1], pushes_per_chunk=60
    )
    replay = jax.tree.map(lambda x: x[0, 0], driver.step(driver.init())[0].workers.replay)
    capacity, num_envs = 3 * agent.replay_capacity, 3 * agent.num_envs
    assert replay.added.count >= 2 * capacity
    ring = make_frame_ring(ENV.spec, agent, capacity, num_envs, turn=1)
    # What is kept is as large as a turn more: without it, the oldest have lost what they go back to.
    assert replay.storage.before.shape == (capacity + (agent.n_step - 1 + 2 + 1) * num_envs,)
    weights = ring.read(replay, np.arange(capacity)).weights
    assert (np.asarray(weights) == 1).all()


CONFIG = ActorLearnerExperiment(
    seed=5,
    backend="in-process",
    env="Catch-bsuite",
    total_frames=10_000,
    agent=AGENT,
    network=NETWORK_CONFIG,
    runner=RunnerConfig(log_every=192),
    actors=ActorLearnerConfig(num_actors=2, acts_per_block=6),
)


def learn(monkeypatch, env, config, num_devices=1, chunks=2):
    """Parameters of actors and a learner after some chunks, and the bytes of the learner's replay."""
    for module in (actor_learner, actors):
        monkeypatch.setattr(module, "build", lambda *_, **__: (env, NETWORK))
    engine = engines.start("in-process", lambda: actors.make_job(config), config.actors.num_actors)
    driver, _ = actor_learner.from_config(dataclasses.replace(config, num_devices=num_devices), engine)
    state = driver.init()
    for _ in range(chunks):
        state, info = driver.step(state)
    storage = jax.tree.leaves(state.agent.replay.storage)
    return (driver.params(state), info["loss"], info["dropped"]), sum(leaf.nbytes for leaf in storage)


@pytest.mark.parametrize("memory", ["uniform", "prioritised"])
@pytest.mark.parametrize(("mode", "num_devices"), [("synchronous", 1), ("asynchronous", 1), ("asynchronous", 2)])
def test_actors_and_their_learner(monkeypatch, mode, num_devices, memory):
    config = dataclasses.replace(
        CONFIG,
        agent=dataclasses.replace(AGENT, memory=memory),
        actors=dataclasses.replace(CONFIG.actors, mode=mode),
    )
    frames, whole = (learn(monkeypatch, env, config, num_devices) for env in (ENV, WHOLE))
    assert_same(frames[0], whole[0])


def test_what_was_dropped_is_not_joined_to_what_comes_after(monkeypatch):
    """Blocks that are late are dropped now and then; the learner goes on, from what it can put together."""
    config = dataclasses.replace(CONFIG, actors=dataclasses.replace(CONFIG.actors, lag_limit=0))
    (_, loss, dropped), _ = learn(monkeypatch, ENV, config, chunks=3)
    assert dropped.item() > 0
    assert np.isfinite(loss).all()


def block_of(monkeypatch, num_blocks):
    monkeypatch.setattr(actors, "build", lambda *_, **__: (ENV, NETWORK))
    job = actors.make_job(CONFIG)
    task = Task(0, 0, 0, actors.Policy(NETWORK.init(jax.random.key(0)), {}))
    state = job.begin(task)
    for _ in range(num_blocks):
        state, block, _ = job.work(state, task)
    return block


def test_a_block_has_each_frame_once(monkeypatch):
    sent = block_of(monkeypatch, 3)
    whole = actors.with_every_frame(sent)
    acted_on, reached = (np.asarray(x) for x in (whole.transitions.transition.s_tm1, whole.transitions.transition.s_t))
    steps, envs = CONFIG.acts_per_block, CONFIG.envs_per_actor
    ended = np.asarray(whole.transitions.ended)
    assert acted_on.shape == reached.shape == (steps, envs, 10, 5, 1)
    # Beside those acted on, what the last steps led to, and what no step acted on as its episode was over.
    assert sent.transitions.transition.s_t.shape == (envs + ended[:-1].sum(), 10, 5, 1)
    assert 0 < ended[:-1].sum() < ended[:-1].size
    # The ball falls by a row a step: within an episode, and to its end.
    rows = [np.argwhere(frame[..., 0])[0, 0] for frame in acted_on.reshape(-1, 10, 5, 1)]
    led_to = [np.argwhere(frame[..., 0])[0, 0] for frame in reached.reshape(-1, 10, 5, 1)]
    assert np.array_equal(np.array(led_to), np.array(rows) + 1)
    again = actors.with_every_frame(actors.each_frame_once(whole))
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_blocks_of_whole_transitions_are_sent_as_they_are():
    block = actors.Block(transitions=(), valid=(), priorities=None)
    assert actors.each_frame_once(block) is block
    assert actors.with_every_frame(block) is block
