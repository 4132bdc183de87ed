"""A ring of frames gives what a ring of whole transitions gives, to the bit, and takes a seventh of its bytes or less."""

import functools
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.federation import config_of

from dqn_jax.agent import example_of, make_agent
from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.distributed.data_parallel import make_data_parallel
from dqn_jax.envs import Environment, EnvSpec, make_env
from dqn_jax.federated.driver import make_federated
from dqn_jax.federated.heterogeneity import draw_all
from dqn_jax.frame_ring import make_frame_ring
from dqn_jax.networks import make_network
from dqn_jax.replay import clear, make_memory, make_ring
from dqn_jax.types import Transition
from dqn_jax.windows import SingleStep, Window, transition_of

FRAME = (2, 3)


class Setting(NamedTuple):
    """Sizes of an agent and its observations."""

    num_envs: int = 2
    blocks: int = 5
    n_step: int = 1
    stack: int = 3
    return_lambda: float | None = None
    dtype: type = np.uint8


def agent_of(setting):
    return AgentConfig(
        num_envs=setting.num_envs,
        replay_capacity=setting.num_envs * setting.blocks,
        batch_size=setting.num_envs,
        learning_starts=setting.num_envs,
        n_step=setting.n_step,
        return_lambda=setting.return_lambda,
        loss="squared",
    )


def spec_of(setting, limit):
    return EnvSpec("frames", (*FRAME, setting.stack), np.dtype(setting.dtype), 2, limit, setting.stack)


def experience(setting, seed, length, limit, terminates):
    """Steps [length, E, ...] of random episodes, each cut after `limit` steps unless it has terminated, as whole stacks."""
    rng = np.random.default_rng(seed)

    def frame():
        return rng.integers(0, 2 if setting.dtype is bool else 256, FRAME).astype(setting.dtype)

    def one():
        steps, stack, age = [], [frame()] * setting.stack, 0
        for _ in range(length):
            before, age = np.stack(stack, axis=-1), age + 1
            stack = [*stack[1:], frame()]
            terminated = rng.random() < terminates
            ended = terminated or age == limit
            numbers = (np.int32(rng.integers(2)), np.float32(rng.normal()), np.float32(0 if terminated else 0.9))
            steps.append(Window(Transition(before, *numbers, np.stack(stack, axis=-1)), np.bool_(ended)))
            if ended:
                stack, age = [frame()] * setting.stack, 0
        return jax.tree.map(lambda *x: np.stack(x), *steps)

    return jax.tree.map(lambda *x: np.stack(x, axis=1), *(one() for _ in range(setting.num_envs)))


def both(setting, limit):
    """(add, read) of a ring of whole transitions and of frames; the first is added to by windows [n, E, ...]."""
    config, spec = agent_of(setting), spec_of(setting, limit)
    whole = make_ring(example_of(Environment(spec, None, None, ()), config), config.replay_capacity)
    return whole, frame_ring(setting, limit), transition_of(config)


def frame_ring(setting, limit):
    """A ring whose environments all step together."""
    return make_frame_ring(spec_of(setting, limit), agent_of(setting), setting.num_envs * setting.blocks, setting.num_envs)


def newest(window, age, time):
    """A step [E, ...] of whole stacks, as an actor gives it to a ring of frames."""
    (s_tm1, a_tm1, r_t, discount_t, s_t), ended = window
    here = Transition(s_tm1[..., -1:], a_tm1, r_t, discount_t, s_t[..., -1:])
    return SingleStep(here, ended, age, jnp.full(len(ended), time), jnp.arange(len(ended)))


def assert_same(whole, frames, exact_weights=True):
    """Everything is the same, but for what is bootstrapped from after a termination, whose value counts nothing."""
    np.testing.assert_array_equal(frames.indices, whole.indices)
    np.testing.assert_array_equal(frames.age, whole.age)
    kept = np.asarray(frames.weights) == 1
    assert kept.all() or not exact_weights
    for name in ("s_tm1", "a_tm1", "r_t", "discount_t"):
        one, other = getattr(whole.transitions, name), getattr(frames.transitions, name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(other, one, err_msg=name)
    discounts = np.asarray(whole.transitions.discount_t)
    counts = (discounts if discounts.ndim == 1 else np.cumprod(discounts, axis=1)) != 0
    counts &= kept.reshape(-1, *(1,) * (counts.ndim - 1))
    np.testing.assert_array_equal(frames.transitions.s_t[counts], whole.transitions.s_t[counts])
    return counts, kept


SETTINGS = (
    (Setting(), 4),
    (Setting(num_envs=1, blocks=1, stack=4), 1),
    (Setting(num_envs=3, blocks=4, n_step=3, stack=2, dtype=bool), 3),
    (Setting(num_envs=1, blocks=6, n_step=4, stack=4, dtype=np.float32), 2),
    (Setting(num_envs=2, blocks=3, n_step=2, return_lambda=0.7), 3),
    (Setting(num_envs=2, blocks=2, n_step=4, return_lambda=0.7, stack=2), 5),
)
"""With the limit of episodes: shorter, as long, and longer than windows, stacks and the ring."""
LENGTH = 24


@functools.cache
def readings(setting, limit):
    """A program: steps [LENGTH, E, ...] -> what both rings give for every position after each of them."""
    whole, frames, join = both(setting, limit)
    n_step, positions = setting.n_step, jnp.arange(setting.num_envs * setting.blocks)

    def once(states, step):
        window, whole_state, frames_state, age, time = states
        window = jax.tree.map(lambda past, new: jnp.concatenate([past[1:], new[None]]), window, step)
        whole_state = whole.add(whole_state, join(window), time >= n_step - 1)
        frames_state = frames.add(frames_state, newest(step, age, time), True)
        age = jnp.where(step.ended, 0, age + 1)
        given = (whole.read(whole_state, positions), frames.read(frames_state, positions))
        return (window, whole_state, frames_state, age, time + 1), (whole_state.added.count, frames_state.added.count, *given)

    def run(steps):
        window = jax.tree.map(lambda x: jnp.zeros((n_step, *x.shape[1:]), x.dtype), steps)
        ages = jnp.zeros(setting.num_envs, jnp.int32)
        return jax.lax.scan(once, (window, whole.init(), frames.init(), ages, 0), steps)[1]

    return jax.jit(run)


@hypothesis.settings(max_examples=60, deadline=None, database=None, derandomize=True)
@hypothesis.given(case=st.sampled_from(SETTINGS), terminates=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 2**31))
def test_the_same_transitions_as_whole_ones(case, terminates, seed):
    steps = experience(case[0], seed, LENGTH, case[1], terminates)
    added, same, whole, frames = jax.device_get(readings(*case)(steps))
    np.testing.assert_array_equal(added, same)
    bootstraps = 0
    for time, count in enumerate(added):
        there = slice(0, count)
        counts, _ = assert_same(*(jax.tree.map(lambda x, t=time, there=there: x[t][there], ring) for ring in (whole, frames)))
        bootstraps += counts.sum()
    assert bootstraps > 0 or terminates


def filled(ring, steps, first, last):
    state = ring.init() if isinstance(first, int) and first == 0 else first[0]
    for time in range(first if isinstance(first, int) else first[1], last):
        ended = steps.ended[:time]
        age = (
            np.argmax(np.concatenate([ended[::-1], np.ones_like(ended[:1], bool)]), axis=0) if time else np.zeros(len(ended.T))
        )
        state = ring.add(state, newest(jax.tree.map(lambda x, time=time: x[time], steps), age.astype(np.int32), time), True)
    return state


def test_a_stack_and_a_bootstrap_by_hand():
    """One environment, stacks of three, two steps a transition: frames 0 1 2 3 | 4 5 6, the first episode cut after frame 3."""
    setting = Setting(num_envs=1, blocks=4, n_step=2)
    ring = frame_ring(setting, 3)

    def picture(*numbers):
        return np.stack([np.full(FRAME, number, np.uint8) for number in numbers], axis=-1)

    def step(before, after, reward, ended=False):
        transition = Transition(picture(*before), np.int32(1), np.float32(reward), np.float32(0.5), picture(*after))
        return jax.tree.map(lambda x: np.asarray(x)[None], Window(transition, np.bool_(ended)))

    state = ring.init()
    for time, one in enumerate(
        (
            step((0, 0, 0), (0, 0, 1), 1),
            step((0, 0, 1), (0, 1, 2), 2),
            step((0, 1, 2), (1, 2, 3), 3, ended=True),
            step((4, 4, 4), (4, 4, 5), 4),
            step((4, 4, 5), (4, 5, 6), 5),
        )
    ):
        state = ring.add(state, newest(one, np.array([time if time < 3 else time - 3]), time), True)
    read = ring.read(state, jnp.arange(4))
    seen = [
        ([int(x) for x in before[0, 0]], [int(x) for x in after[0, 0]], float(r), float(d))
        for before, after, r, d in zip(
            read.transitions.s_tm1, read.transitions.s_t, read.transitions.r_t, read.transitions.discount_t, strict=True
        )
    ]
    assert seen == [
        ([0, 0, 0], [0, 1, 2], 1 + 0.5 * 2, 0.25),
        ([0, 0, 1], [1, 2, 3], 2 + 0.5 * 3, 0.25),
        ([0, 1, 2], [1, 2, 3], 3, 0.5),
        ([4, 4, 4], [4, 5, 6], 4 + 0.5 * 5, 0.25),
    ]


def test_frames_are_the_same_read_at_once_as_on_a_gpu(monkeypatch):
    setting = Setting(n_step=2)
    steps = experience(setting, 2, 12, limit=3, terminates=0.1)
    ring = frame_ring(setting, 3)
    state, there = filled(ring, steps, 0, 12), jnp.arange(setting.num_envs * setting.blocks)
    one_by_one = ring.read(state, there)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "scan" not in str(jax.make_jaxpr(ring.read)(state, there))
    jax.tree.map(np.testing.assert_array_equal, ring.read(state, there), one_by_one)


def test_after_a_termination_the_last_frame_stands_for_the_one_that_is_not_kept():
    setting = Setting(num_envs=1, blocks=8, stack=3)
    steps = experience(setting, 1, 8, limit=100, terminates=0.4)
    ring = frame_ring(setting, 100)
    read = ring.read(filled(ring, steps, 0, 8), jnp.arange(8)).transitions
    ended = np.asarray(read.discount_t) == 0
    assert 0 < ended.sum() < 8
    np.testing.assert_array_equal(read.s_t[ended][..., -1], read.s_tm1[ended][..., -1])


def test_an_invalid_step_leaves_every_bit():
    setting = Setting(n_step=2)
    steps = experience(setting, 0, 14, limit=3, terminates=0.2)
    ring = frame_ring(setting, 3)
    for length in range(14):
        state = filled(ring, steps, 0, length)
        for ended in (False, True):
            step = jax.tree.map(lambda x: x[0], steps)._replace(ended=np.full(setting.num_envs, ended))
            jax.tree.map(
                np.testing.assert_array_equal,
                ring.add(state, newest(step, jnp.arange(setting.num_envs), length), jnp.bool_(False)),
                state,
            )


def test_a_cleared_ring_draws_what_came_after_with_the_frames_from_before():
    setting = Setting(n_step=2)
    steps = experience(setting, 3, 12, limit=100, terminates=0.1)
    whole, frames, join = both(setting, 100)
    frames_state = filled(frames, steps, (clear(filled(frames, steps, 0, 8)), 8), 10)
    whole_state = whole.init()
    for time in (8, 9):
        whole_state = whole.add(whole_state, join(jax.tree.map(lambda x, t=time: jnp.asarray(x[t - 1 : t + 1]), steps)), True)
    assert_same(whole.read(whole_state, jnp.arange(4)), frames.read(frames_state, jnp.arange(4)))


@pytest.mark.parametrize("terminates", [0, 0.4])
def test_a_transition_whose_final_frame_is_lost_has_weight_0(terminates):
    """Every step ends an episode, where the limit promises one in four: what is lost is said, and nothing else is wrong."""
    setting = Setting(num_envs=1, blocks=8, stack=2)
    steps = experience(setting, 5, 20, limit=1, terminates=terminates)
    whole, frames, join = both(setting, 4)
    whole_state = whole.init()
    for time in range(20):
        whole_state = whole.add(whole_state, join(jax.tree.map(lambda x, t=time: jnp.asarray(x[t : t + 1]), steps)), True)
    there = jnp.arange(8)
    read = frames.read(filled(frames, steps, 0, 20), there)
    _, kept = assert_same(whole.read(whole_state, there), read, exact_weights=False)
    cut = np.asarray(read.transitions.discount_t) > 0
    assert cut.any()
    assert cut.all() == (terminates == 0)
    # A termination needs none. 9 moments are kept, so 9 // 4 + 1 = 3 final frames: of the newest three that were cut.
    assert kept[~cut].all()
    ages = np.asarray(read.age)[cut]
    assert sorted(np.asarray(read.age)[cut & kept]) == sorted(ages)[:3] != sorted(ages)


def test_bytes_of_a_transition_of_atari():
    spec = EnvSpec("pixels", (84, 84, 4), np.dtype(np.uint8), 6, 27_000, 4)
    capacity = 1_000_000
    config = AgentConfig(num_envs=8, replay_capacity=capacity, n_step=3)
    storage = jax.eval_shape(make_frame_ring(spec, config, capacity, config.num_envs).init).storage
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(storage))
    assert total <= 7_200 * capacity <= 8e9


STACKED = make_env("Catch-bsuite", wrappers=("frame-stack:3", "time-limit:4"))
WHOLE = STACKED._replace(spec=STACKED.spec._replace(stack=1))
"""The same, where nobody says that observations are stacked: they are stored whole."""


@pytest.mark.parametrize("memory", ["uniform", "prioritised", "newest"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_an_agent_learns_the_same(memory, n_step):
    """Parameters after 50 steps, with limits, priorities and steps that are not taken, are those with whole stacks."""
    config = AgentConfig(
        num_envs=4, replay_capacity=64, batch_size=8, learning_starts=8, n_step=n_step, memory=memory, updates_per_step=2
    )
    network = make_network(NetworkConfig(hidden_sizes=(8,)), STACKED.spec)

    def trained(env):
        agent = make_agent(env, network, config)

        def step(state, time):
            state, info = agent.step(state, active=time % 3 != 2)
            return state, info["loss"]

        return jax.jit(lambda: jax.lax.scan(step, agent.warm_up(agent.init(jax.random.key(0))), jnp.arange(50)))()

    (one, losses), (other, same) = trained(WHOLE), trained(STACKED)
    np.testing.assert_array_equal(losses, same)
    jax.tree.map(np.testing.assert_array_equal, one.learner, other.learner)
    assert np.any(np.asarray(losses) != losses[0])


def test_a_memory_of_an_agent_has_frames_where_observations_are_stacked():
    config = AgentConfig(num_envs=4, replay_capacity=64, batch_size=8, learning_starts=8)
    network = make_network(NetworkConfig(hidden_sizes=(8,)), STACKED.spec)
    agent = make_agent(STACKED, network, config)
    kept = jax.eval_shape(agent.memory.init).storage
    # 50 bits of a frame; of a whole stack, 150. Episodes are cut after four steps.
    steps = 64 + 2 * 4
    assert kept.pictures.shape == (steps + steps // 4 + 4 + 4, 7)
    plain = make_memory(example_of(STACKED, config), config)
    assert jax.eval_shape(plain.init).storage.s_t.shape == (64, 19)


CLIENT = AgentConfig(num_envs=4, replay_capacity=64, batch_size=8, learning_starts=16, n_step=2)


def in_parallel(env, network):
    return make_data_parallel(env, network, CLIENT, seeds=(0, 1), devices=jax.local_devices()[:2], steps_per_chunk=20)


def apart(env, network):
    """Clients whose replay is cleared every round, one of three at work on average."""
    config = config_of({"replay": "clear"}, num_clients=3, local_steps=5, participation="poisson", num_clients_per_round=1)
    return make_federated(
        *(env, network, CLIENT, config),
        env_params=draw_all(env, config, 1).seen,
        seeds=(0,),
        devices=jax.local_devices()[:1],
        rounds_per_step=4,
    )


@pytest.mark.long
@pytest.mark.parametrize("make", [in_parallel, apart])
def test_drivers_learn_the_same(make):
    network = make_network(NetworkConfig(hidden_sizes=(8,)), STACKED.spec)
    trained = []
    for env in (STACKED, WHOLE):
        driver = make(env, network)
        state = driver.init()
        agents = state.clients.agent if make is apart else state
        storage = sum(leaf.nbytes for leaf in jax.tree.leaves(agents.replay.storage))
        # Shards have a few rows more than a whole ring, and counters are shared.
        assert driver.replay_bytes == pytest.approx(storage, rel=0.2 if env is STACKED else 0.01)
        trained.append(driver.params(driver.step(state)[0]))
    jax.tree.map(np.testing.assert_array_equal, *trained)
