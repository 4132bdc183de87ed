"""Actors and their learner: who explores how, what is sent, what is learned from it, and what a restart keeps."""

import dataclasses
import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import ENV, NETWORK, STEADY, arrays, assert_close

from dqn_jax.actor import make_actor
from dqn_jax.agent import hyperparams_of, keys_of
from dqn_jax.config import InputError, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, engines
from dqn_jax.distributed.actor_learner import from_config
from dqn_jax.distributed.actors import Block, Policy, actor_hyperparams, epsilon_ladder, make_job, side_by_side
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig
from dqn_jax.distributed.engines.tasks import Task
from dqn_jax.distributed.roles import make_server, make_worker
from dqn_jax.learner import make_learner
from dqn_jax.losses import LossOutput
from dqn_jax.mapping import stream_key
from dqn_jax.replay import make_memory
from dqn_jax.types import Sample, Transition

pytestmark = pytest.mark.long

SEED = 5
# Two actors with two environments each. A block of 4 acts is two steps of the agent: 8 frames, 2 updates.
CONFIG = ActorLearnerExperiment(
    seed=SEED,
    backend="in-process",
    total_frames=10_000,
    agent=dataclasses.replace(STEADY, num_envs=4, batch_size=16, replay_capacity=256, learning_starts=32, n_step=3),
    network=NetworkConfig(hidden_sizes=(16, 16)),
    runner=RunnerConfig(log_every=9 * 8),
    actors=ActorLearnerConfig(num_actors=2, acts_per_block=4),
)


def changed(agent=None, actors=None, **fields):
    return dataclasses.replace(
        CONFIG,
        agent=dataclasses.replace(CONFIG.agent, **(agent or {})),
        actors=dataclasses.replace(CONFIG.actors, **(actors or {})),
        **fields,
    )


@functools.cache
def job_of(config):
    return make_job(config)


def start(config):
    """(driver, tasks as they are sent)."""
    engine = engines.start("in-process", lambda: job_of(config_of_job(config)), config.actors.num_actors)
    tasks = []

    def send(worker, task):
        tasks.append((worker, task))
        engine.send(worker, task)

    return from_config(config, engine._replace(send=send))[0], tasks


def config_of_job(config):
    """Of configs with one and the same job: what the learner does with blocks is nothing to actors."""
    actors = dataclasses.replace(config.actors, publish_period=1, lag_limit=None)
    return dataclasses.replace(config, actors=actors)


@functools.cache
def run_of(**actors):
    """(state, info, tasks) after one chunk of nine blocks."""
    driver, tasks = start(changed(actors=actors))
    state, info = driver.step(driver.init())
    return state, info, tasks


def number(info, name):
    (value,) = info[name].tolist()
    return value


def task(stream=0, frames=0, params=None, version=0):
    params = NETWORK.init(jax.random.key(0)) if params is None else params
    return Task(stream, frames, version, Policy(params, loss_hyperparams={}))


def test_the_ladder_is_that_of_the_paper():
    """0.4 to the power of 1, 10/3, 17/3 and 8."""
    np.testing.assert_allclose(epsilon_ladder(4), [0.4, 0.0471556, 0.00555911, 0.00065536], rtol=1e-5)
    np.testing.assert_allclose(epsilon_ladder(2), [0.4, 0.00065536])
    np.testing.assert_allclose(epsilon_ladder(1), [0.4])


def test_each_actor_has_its_rung_whatever_its_age():
    for actor in range(2):
        numbers = actor_hyperparams(CONFIG, actor, frames=12)
        epsilon = [0.4, 0.00065536][actor]
        np.testing.assert_allclose([numbers.epsilon_start, numbers.epsilon_end], [epsilon, epsilon], rtol=1e-6)
        # The actor's third start.
        (state, *_) = job_of(CONFIG).begin(task(stream=actor + 4))
        np.testing.assert_allclose(state.hyperparams.epsilon_start, epsilon, rtol=1e-6)


def test_shared_exploration_goes_on_where_the_frames_of_all_are():
    config = changed(agent={"epsilon_end": 0.0, "epsilon_decay_frames": 100}, actors={"exploration": "shared"})
    numbers = actor_hyperparams(config, 1, frames=20)
    # The others have taken as many: 40 of 100.
    assert int(numbers.epsilon_first_frame) == -40
    actor = make_actor(ENV, NETWORK, config.agent, num_shards=2)
    state = actor.init(jax.random.key(0), ENV.params, numbers)
    np.testing.assert_allclose(actor.choose(state, NETWORK.init(jax.random.key(0))).epsilon, 0.6, rtol=1e-6)


@pytest.mark.parametrize(("exploration", "greedy"), [("none", True), ("shared", False)])
def test_without_exploration_actors_are_greedy(exploration, greedy):
    """Of a rule that is epsilon-greedy with epsilon 1; a network that has noise explores by itself."""
    config = changed(agent={"epsilon_end": 1.0}, actors={"exploration": exploration})
    job = job_of(config)
    sent = task()
    _, block, info = job.work(job.begin(sent), sent)
    obs = np.asarray(block.transitions.s_tm1).reshape(-1, 4)
    best = np.argmax(jax.vmap(lambda obs: NETWORK.apply(sent.params.params, obs, None).q_values)(obs), axis=1)
    assert (best == np.asarray(block.transitions.a_tm1).reshape(-1)).all() == greedy
    assert info["epsilon"] == (0.0 if greedy else 1.0)


def test_the_ladder_composes_with_any_rule():
    """Greedy where it does not act at random: with epsilon 0.4 about a fifth of 320 actions of two are not the best."""
    config = changed(agent={"exploration": "greedy", "replay_capacity": 64 * 64}, actors={"acts_per_block": 160})
    job = job_of(config)
    sent = task()
    _, block, info = job.work(job.begin(sent), sent)
    obs = np.asarray(block.transitions.s_tm1).reshape(-1, 4)
    best = np.argmax(jax.vmap(lambda obs: NETWORK.apply(sent.params.params, obs, None).q_values)(obs), axis=1)
    share = np.mean(best != np.asarray(block.transitions.a_tm1).reshape(-1))
    assert 0.1 < share < 0.3
    np.testing.assert_allclose(info["epsilon"], 0.4, rtol=1e-6)


def counting(monkeypatch):
    """Counts traces of a memory's `prepare`."""
    calls = []

    def make(*args):
        def prepare(state, params, key):
            calls.append(key)
            return state

        return make_memory(*args)._replace(prepare=prepare)

    monkeypatch.setattr("dqn_jax.agent.make_memory", make)
    return calls


def test_whoever_learns_prepares_the_memory_once(monkeypatch):
    """A learner before the updates of a block, a worker before its gradient; storing alone prepares nothing."""
    calls = counting(monkeypatch)
    side = actor_learner.make_learner_side(CONFIG, ENV, NETWORK, jax.local_devices()[:1])
    sent = task()
    _, block, _ = job_of(CONFIG).work(job_of(CONFIG).begin(sent), sent)
    both = side_by_side([block, block])
    side.absorb(side.init(), both, False)
    assert calls == []
    side.absorb(side.init(), both, True)
    assert len(calls) == 1
    worker = make_worker(ENV, NETWORK, CONFIG.agent, ServerConfig())
    server = make_server(NETWORK, CONFIG.agent, ServerConfig()).init(0)
    jax.eval_shape(lambda: worker.work(worker.init(0, 0, server)))
    assert len(calls) == 2


def test_samples_per_insert_are_exact():
    state, info, _ = run_of()
    # An update on 16 transitions for each 4 frames.
    assert number(info, "samples_per_insert") == 4.0
    assert number(info, "updates") == 18
    assert number(info, "frames") == 9 * 8
    assert int(state.agent.learner.updates.count[0]) == int(state.agent.clock.count[0]) == 18
    # Warm-up: 32 transitions and the 8 that n = 3 does not have, in five blocks. Each actor's first two moments are missing.
    assert CONFIG.initial_frames == 5 * 8
    assert int(state.agent.replay.added.count[0]) == (5 + 9) * 8 - 2 * 2 * 2
    assert state.frames.sum() == (5 + 9) * 8
    np.testing.assert_allclose(number(info, "epsilon"), (0.4 + 0.00065536) / 2, rtol=1e-6)


def test_late_blocks_are_dropped_and_counted():
    """Two actors in turn: a block is ordered before the one before it is learned from."""
    state, info, _ = run_of(lag_limit=0)
    # Learned from, one overtaken, the other overtaken, and again.
    assert number(info, "dropped") == 6
    assert number(info, "updates") == 3 * 2
    assert int(state.agent.learner.updates.count[0]) == 6
    stored = int(state.agent.replay.added.count[0])
    assert stored == (5 + 3) * 8 - 2 * 2 * 2
    # Frames were taken all the same.
    assert number(info, "frames") == 9 * 8
    assert number(info, "samples_per_insert") == 4.0
    _, all_kept, _ = run_of()
    assert number(all_kept, "dropped") == 0
    # Its own block and the other's, two updates each.
    assert number(all_kept, "lag_max") == 4
    _, kept, _ = run_of(lag_limit=4)
    assert number(kept, "dropped") == 0


@pytest.mark.parametrize(("period", "expected"), [(1, 2), (3, 4), (4, 4)])
def test_versions_are_published_every_so_many_updates(period, expected):
    """A block is two updates, so a period of 3 ends with the second block."""
    _, _, tasks = run_of(publish_period=period)
    versions = [task.version for _, task in tasks]
    # The last block's version goes out with the next chunk.
    assert sorted(set(versions)) == list(range(0, 17, expected))
    for worker in range(2):
        before = -1
        for version, params in [(task.version, task.params) for who, task in tasks if who == worker]:
            # Parameters travel once.
            assert (params is None) == (version == before)
            before = version


PRIORITISED = {"memory": "prioritised", "n_step": 1}


def test_first_priorities_are_the_actors_errors():
    config = changed(agent=PRIORITISED)
    params = NETWORK.init(jax.random.key(7))
    job = job_of(config)
    _, block, _ = job.work(job.begin(task(params=params)), task(params=params))
    assert block.priorities.shape == (4, 2)
    flat = jax.tree.map(lambda x: x.reshape(8, *x.shape[2:]), block.transitions)
    q_tm1, q_t = (
        np.asarray(jax.vmap(lambda obs: NETWORK.apply(params, obs, None).q_values)(obs)) for obs in (flat.s_tm1, flat.s_t)
    )
    by_hand = np.abs(flat.r_t + flat.discount_t * q_t.max(axis=1) - q_tm1[np.arange(8), flat.a_tm1])
    np.testing.assert_allclose(block.priorities.reshape(-1), by_hand, rtol=1e-5)
    ones = jnp.ones(8)
    learner = make_learner(NETWORK, config.agent)
    state = learner.init(jax.random.key(0), hyperparams_of(config.agent).learner).replace(params=params, target_params=params)
    _, td_abs, _ = learner.grad(state, Sample(flat, ones, ones, ones), jax.random.key(0))
    np.testing.assert_allclose(block.priorities.reshape(-1), td_abs, rtol=1e-5)


def test_first_priorities_are_of_the_newest_parameters():
    """Those that the actor was sent with this task, and acted with."""
    job = job_of(changed(agent=PRIORITISED))
    old, new = (NETWORK.init(jax.random.key(seed)) for seed in (7, 8))
    _, block, _ = job.work(job.begin(task(params=old)), task(params=new))
    by_new = job.work(job.begin(task(params=new)), task(params=new))[1]
    np.testing.assert_array_equal(block.priorities, by_new.priorities)
    np.testing.assert_array_equal(block.transitions.a_tm1, by_new.transitions.a_tm1)
    by_old = job.work(job.begin(task(params=old)), task(params=old))[1]
    assert np.abs(by_old.priorities[0] - by_new.priorities[0]).max() > 0.01


def test_first_priorities_are_of_the_numbers_that_were_sent(monkeypatch):
    def scaled(network, config):
        def loss(params, target_params, batch, key, hyperparams):
            q_tm1 = jax.vmap(lambda obs: network.apply(params, obs, key).q_values)(batch.s_tm1)
            drawn = hyperparams["scale"] + jax.random.uniform(key)
            return LossOutput(q_tm1[:, 0], jnp.full(len(batch.r_t), drawn), q_tm1)

        return loss

    scaled.numbers = {"scale": 3.0}
    module = types.ModuleType("own_losses")
    module.scaled = scaled
    monkeypatch.setitem(sys.modules, "own_losses", module)
    config = changed(agent=PRIORITISED | {"loss": "own_losses:scaled"})
    job = make_job(config)
    params = NETWORK.init(jax.random.key(0))
    found = []
    for version in range(2):
        sent = Task(0, 0, version, Policy(params, {"scale": jnp.float32(5)}))
        _, block, _ = job.work(job.begin(sent), sent)
        found += np.unique(block.priorities).tolist()
    # One of each version: a network with noise must not see the same for ever.
    assert 5 < min(found) < max(found) < 6
    assert len(found) == 2


def test_first_priorities_reach_the_tree():
    config = changed(agent=PRIORITISED)
    side = actor_learner.make_learner_side(config, ENV, NETWORK, jax.local_devices()[:2])
    zeros = jnp.zeros((1, 2))
    transitions = Transition(zeros[..., None].repeat(4, -1), zeros.astype(int), zeros, zeros, zeros[..., None].repeat(4, -1))
    state = side.absorb(side.init(), Block(transitions, np.array([True]), np.array([[2.0, 0.5]])), False)
    # One environment on each device.
    masses = np.asarray(state.replay.priorities.tree[0]).reshape(2, -1)
    np.testing.assert_allclose(masses[:, 0], (np.array([2.0, 0.5]) + 1e-6) ** 0.6, rtol=1e-6)
    assert not masses[:, 1:].any()


def test_n_steps_reach_across_blocks():
    """Three blocks of four acts hold what the plain actor sees in twelve."""
    params = NETWORK.init(jax.random.key(7))
    job = job_of(CONFIG)
    state, blocks = job.begin(task(stream=1, params=params)), []
    for _ in range(3):
        state, block, _ = job.work(state, task(stream=1, params=params))
        blocks.append(jax.device_get(block))
    actor = make_actor(ENV, NETWORK, CONFIG.agent, num_shards=2)
    _, key, _ = keys_of(stream_key(SEED))

    @jax.jit
    def play():
        def act(state, _):
            state, transitions, valid, _ = actor.act(state, params)
            return state, (transitions, valid)

        # The second actor's environments are numbers 2 and 3.
        begin = actor.init(key, ENV.params, actor_hyperparams(CONFIG, 1, 0), first_env=2)
        return jax.lax.scan(act, begin, length=12)[1]

    transitions, valid = play()
    assert_close(jax.tree.map(lambda *parts: np.concatenate(parts), *(block.transitions for block in blocks)), transitions)
    np.testing.assert_array_equal(np.concatenate([block.valid for block in blocks]), valid)
    assert valid.tolist() == [False] * 2 + [True] * 10


def test_a_new_life_draws_what_no_other_has_drawn():
    job = job_of(CONFIG)

    def block_of(stream):
        _, block, _ = job.work(job.begin(task(stream)), task(stream))
        return np.asarray(block.transitions.s_tm1)

    # The first actor, the second, and the first one's second life.
    starts = [block_of(stream) for stream in range(3)]
    envs = [starts[stream][:, env] for stream in range(3) for env in range(2)]
    assert all(not np.array_equal(one, other) for n, one in enumerate(envs) for other in envs[:n])
    np.testing.assert_array_equal(block_of(1), starts[1])


def test_blocks_of_actors_are_side_by_side():
    def block(first, valid, priorities):
        obs = np.arange(first, first + 4).reshape(2, 2)
        return Block(Transition(obs, obs, obs, obs, obs), np.array(valid), priorities)

    together = side_by_side([block(0, [True, True], None), block(10, [False, True], None)])
    np.testing.assert_array_equal(together.transitions.r_t, [[0, 1, 10, 11], [2, 3, 12, 13]])
    assert together.valid.tolist() == [False, True]
    assert together.priorities is None
    known = side_by_side([block(0, [True] * 2, np.zeros((2, 2))), block(10, [True] * 2, np.ones((2, 2)))])
    np.testing.assert_array_equal(known.priorities, [[0, 0, 1, 1]] * 2)


def test_a_restart_keeps_the_replay_and_begins_new_lives():
    state, _, _ = run_of()
    # What a checkpoint has of it; the learner's side gives its state away.
    state = jax.tree.map(jnp.copy, state)
    before = {name: value.copy() for name, value in arrays(state.agent.replay.storage).items()}
    added = int(state.agent.replay.added.count[0])
    driver, tasks = start(CONFIG)
    after, info = driver.step(state)
    assert after.starts.tolist() == [2, 2]
    assert {task.stream for _, task in tasks} == {2, 3}
    # Both have taken frames before, and work with the version that was saved.
    assert [(task.frames, task.version) for _, task in tasks[:2]] == [(frames, 18) for frames in state.frames.tolist()]
    # No warm-up again: nine blocks, less the two first moments of each actor.
    assert int(after.agent.replay.added.count[0]) == added + 9 * 8 - 2 * 2 * 2
    assert int(after.agent.learner.updates.count[0]) == 36
    assert number(info, "updates") == 18
    kept = arrays(after.agent.replay.storage)
    for name, values in before.items():
        np.testing.assert_array_equal(kept[name][:, :added], values[:, :added])


REFUSED = {
    "environments that actors cannot divide": ({"actors": {"num_actors": 3}}, r"agent.num_envs is 4, .* a multiple of 3$"),
    "parts of agent steps": ({"actors": {"acts_per_block": 3}}, r"actors.acts_per_block is 3, .* multiple of 2$"),
    "warm-up in parts of agent steps": (
        {"actors": {"mode": "synchronous"}, "agent": {"acts_per_step": 3, "learning_starts": 36}},
        r"agent.learning_starts is 36, which takes 11 acts, .* change either$",
    ),
    "several seeds": ({"num_seeds": 2}, "num_seeds is 2 and backend 'in-process'"),
    "an address without Ray": ({"ray_address": "host:1"}, "ray_address is 'host:1' and backend 'in-process': add"),
    "no patience": ({"patience": 0.0}, r"patience is 0\.0: give a number of seconds above 0$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case):
    fields, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        changed(**fields)


def test_blocks_that_do_not_divide_over_devices_are_refused():
    with pytest.raises(InputError, match=r"num_devices is 4, and a block has 2 environment\(s\), .* use fewer devices$"):
        start(changed(num_devices=4))
