"""The data-parallel driver counts, divides and orders as it says, and compiles once."""

import dataclasses

import jax
import numpy as np
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_bitwise, assert_close

from dqn_jax.agent import make_agent, repeat
from dqn_jax.config import DataParallelExperiment, InputError, NetworkConfig, RunnerConfig, TrainingError
from dqn_jax.distributed.data_parallel import AXIS, from_config, make_data_parallel
from dqn_jax.envs import make_env
from dqn_jax.mapping import check_replicas, over, stream_key

pytestmark = pytest.mark.long

DEVICES = jax.local_devices()


def driver(num_devices=2, seeds=(3, 4), env=ENV, config=STEADY, **options):
    return make_data_parallel(env, NETWORK, config, seeds=seeds, devices=DEVICES[:num_devices], steps_per_chunk=5, **options)


def test_counts_are_those_of_one_seed():
    config = dataclasses.replace(STEADY, acts_per_step=3, updates_per_step=2)
    parallel = driver(config=config)
    state, info = parallel.step(parallel.init())
    assert parallel.unit == "frames"
    # 64 frames of 8 environments are 8 acts, and the first transition of two steps takes one more.
    assert parallel.initial == parallel.initial_frames == 9 * 8
    assert parallel.per_step == 5 * 3 * 8
    assert info["frames"].tolist() == [5 * 3 * 8] * 2
    assert info["updates"].tolist() == [5 * 2] * 2
    np.testing.assert_array_equal(state.actor.clock.count, [9 + 15] * 2)
    np.testing.assert_array_equal(state.learner.updates.count, [10] * 2)
    # Each of the two replays has half of everything but the first act.
    np.testing.assert_array_equal(state.replay.added.count, [(9 + 15 - 1) * 4] * 2)
    assert all(values.shape == (2,) for values in info.values())


def test_shards_act_in_the_environments_of_one_agent():
    """Environment e of the whole agent starts alike however many devices share the environments."""
    alone = make_agent(ENV, NETWORK, STEADY).init(stream_key(3)).actor.streams
    halves = driver(seeds=(3,)).init().actor.streams[:, 0].reshape(-1)
    assert_bitwise(halves, alone)


def test_counts_are_sums_over_the_devices():
    """Every episode is cut after three steps: of acts 10 to 14 it is the 12th, in the eight environments of both devices."""
    parallel = driver(env=make_env("CartPole-v1", max_episode_steps=3))
    _, info = parallel.step(parallel.init())
    expected = {"episodes": 8, "truncated": 8, "terminated": 0, "return_sum": 24}
    assert {name: info[name].tolist() for name in expected} == {name: [count] * 2 for name, count in expected.items()}
    # What is not counted is averaged.
    np.testing.assert_array_equal(info["epsilon"], [1.0, 1.0])
    assert info["finite"].all()


@pytest.mark.parametrize("part", ["params", "target_params", "opt_state"])
def test_replicas_that_differ_in_one_bit_are_refused(part):
    """One float32 further in one row of one leaf, which no tolerance would see."""
    parallel = driver(config=dataclasses.replace(STEADY, optimizer="adam"))
    state = parallel.init()
    parallel.check(state)
    leaves, structure = jax.tree.flatten(getattr(state.learner, part))
    values = np.array(leaves[-1])
    values[1].flat[-1] = np.nextafter(values[1].flat[-1], np.float32(np.inf))
    leaves[-1] = jax.device_put(values, leaves[-1].sharding)
    broken = state.replace(learner=state.learner.replace(**{part: jax.tree.unflatten(structure, leaves)}))
    with pytest.raises(TrainingError, match=r"replicas differ in .*: device row\(s\) \[1\] are not bitwise equal to row 0"):
        parallel.check(broken)


@pytest.mark.parametrize("seeds_over_devices", [False, True])
def test_params_are_in_the_order_of_the_seeds(seeds_over_devices):
    seeds = (9, 3, 7, 5)
    parallel = driver(seeds=seeds, seeds_over_devices=seeds_over_devices)
    params = parallel.params(parallel.init())
    for row, seed in enumerate(seeds):
        alone = make_agent(ENV, NETWORK, STEADY).init(stream_key(seed)).learner.params
        assert_close(jax.tree.map(lambda x, row=row: x[row], params), alone)


def test_a_problem_names_the_seeds_and_a_remedy():
    parallel = driver(seeds=(3, 7, 9))
    finite = {"finite": np.array([True, True, True])}
    assert parallel.problem(finite) is None
    problem = parallel.problem({"finite": np.array([True, False, False])})
    assert problem.startswith("seed(s) [7, 9]: a loss or parameter is not finite: lower agent.learning_rate")


def test_seeds_over_devices_does_not_average():
    parallel = driver(num_devices=2, seeds=(3, 4), seeds_over_devices=True)
    state, info = parallel.step(parallel.init())
    kernels = np.asarray(state.learner.params["head"]["kernel"])
    assert not np.array_equal(kernels[0], kernels[1])
    assert info["loss"].shape == (2,)
    parallel.check(state)


def test_prioritised_shards_keep_replicas_alike_and_priorities_apart():
    config = dataclasses.replace(STEADY, memory="prioritised", n_step=1)
    agent = make_agent(ENV, NETWORK, config, axis_name=AXIS, num_shards=2)

    def train(shard):
        return repeat(agent.step, 5)(agent.warm_up(agent.init(stream_key(3), shard=shard)))[0]

    state = over(train, AXIS, DEVICES[:2])(np.arange(2))
    check_replicas(state.learner.params)
    masses = np.asarray(state.replay.priorities.tree[0])
    assert masses.shape == (2, 64, 4)
    assert not np.array_equal(*masses)


def test_the_chunk_is_traced_once():
    traces = []

    def counting_step(*args):
        traces.append(1)
        return ENV.step(*args)

    parallel = driver(env=ENV._replace(step=counting_step))
    state = parallel.init()
    state, _ = parallel.step(state)
    after_first = len(traces)
    for _ in range(2):
        state, _ = parallel.step(state)
    assert len(traces) == after_first > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_devices": 3, "seeds": (1, 2, 3)}, "agent.num_envs is 8.*3 devices"),
        ({"num_devices": 2, "seeds": (1, 2, 3), "seeds_over_devices": True}, "num_seeds is 3.*2 devices"),
        ({"num_devices": 4, "config": dataclasses.replace(STEADY, batch_size=30)}, "agent.batch_size is 30.*4 devices"),
    ],
)
def test_what_does_not_divide_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        driver(**options)


def test_a_config_becomes_its_driver():
    config = DataParallelExperiment(
        max_episode_steps=9,
        num_devices=2,
        num_seeds=3,
        agent=STEADY,
        network=NetworkConfig(hidden_sizes=(8,)),
        runner=RunnerConfig(log_every=100),
    )
    parallel, evaluator = from_config(config)
    # 100 frames are 12 whole steps of 8 environments.
    assert parallel.per_step == 96
    params = parallel.params(parallel.init())
    assert params["trunk"]["Dense_0"]["kernel"].shape == (3, 4, 8)
    returns, unfinished = jax.eval_shape(evaluator.play, jax.random.split(jax.random.key(0), 3), params)
    assert (returns.shape, unfinished.shape) == ((3, 1), (3,))
    column = {"env_params": {"max_steps_in_episode": 9}}
    assert evaluator.columns == [[column]] * 3
    whole_episodes = from_config(dataclasses.replace(config, max_episode_steps=None))[1]
    assert [row["env_params"] for (row,) in whole_episodes.columns] == [{}] * 3
    with pytest.raises(InputError, match="num_devices is 5"):
        from_config(dataclasses.replace(config, num_devices=5))
