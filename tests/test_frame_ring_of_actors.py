"""A ring of frames that several actors add to, one faster than another, started again, some of what they send being dropped.

What is read is compared with a list of all that was ever added, from which transitions are made one by one.
"""

import functools
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import AgentConfig
from dqn_jax.envs import EnvSpec
from dqn_jax.frame_ring import make_frame_ring
from dqn_jax.types import Transition
from dqn_jax.windows import SingleStep

FRAME, NUM_ACTORS, LIMIT = (2, 2), 3, 4


class Setting(NamedTuple):
    """Sizes of the ring, and environments of each of three actors."""

    num_envs: int = 2
    capacity: int = 12
    n_step: int = 1
    stack: int = 3

    @property
    def num_rows(self):
        """SingleSteps that are kept."""
        return self.capacity + (self.n_step - 1 + self.stack - 1 + 1) * NUM_ACTORS * self.num_envs


SETTINGS = (Setting(), Setting(1, 5, 3, 2), Setting(2, 8, 2, 4))


@functools.cache
def programs(setting):
    """(first state, add, read all)."""
    agent = AgentConfig(
        num_envs=NUM_ACTORS * setting.num_envs,
        replay_capacity=100 * setting.num_envs * NUM_ACTORS,
        n_step=setting.n_step,
        loss="squared",
    )
    spec = EnvSpec("frames", (*FRAME, setting.stack), np.dtype(np.uint8), 2, LIMIT, setting.stack)
    ring = make_frame_ring(spec, agent, setting.capacity, NUM_ACTORS * setting.num_envs, turn=1)
    everything = jnp.arange(setting.capacity)
    return (
        ring.init(),
        jax.jit(lambda state, step: ring.add(state, step, True)),
        jax.jit(lambda state: ring.read(state, everything)),
    )


class Past(NamedTuple):
    """One step of one environment as it was."""

    before: np.ndarray
    action: int
    reward: float
    discount: float
    after: np.ndarray
    ended: bool
    number: int
    """In the ring."""
    age: int
    """SingleSteps of its episode before it."""


class Stream:
    """An environment of an actor: what happens in it, and the list of its steps that were added, None standing for a gap."""

    def __init__(self, rng, setting):
        self.rng, self.setting, self.added = rng, setting, []
        self.start()

    def frame(self):
        return self.rng.integers(0, 256, FRAME).astype(np.uint8)

    def start(self):
        self.obs, self.age = [self.frame()] * self.setting.stack, 0

    def step(self, number, terminates):
        before, after = self.obs, [*self.obs[1:], self.frame()]
        terminated = self.rng.random() < terminates
        ended = terminated or self.age + 1 == LIMIT
        numbers = (int(self.rng.integers(2)), np.float32(self.rng.normal()), np.float32(0 if terminated else 0.9))
        past = Past(np.stack(before, -1), *numbers, np.stack(after, -1), ended, number, self.age)
        self.obs, self.age = after, self.age + 1
        if ended:
            self.start()
        return past


def transition(setting, added, at, oldest):
    """The transition of n steps that ends with the step `at` of a list, and whether one of its frames is lost."""
    window = added[at - setting.n_step + 1 : at + 1]
    taken = next((window[: k + 1] for k, step in enumerate(window) if step.ended), window)
    first, last = window[0], taken[-1]
    reward = discount = None
    for step in reversed(taken):
        reward = step.reward if reward is None else step.reward + step.discount * reward
        discount = step.discount if discount is None else step.discount * discount
    start = at - setting.n_step + 1
    seen = added[max(0, start - min(setting.stack - 1, first.age)) : start + 1]
    missing = None in seen or len(seen) <= min(setting.stack - 1, first.age)
    lost = missing or any(step.number < oldest for step in [*window, *seen])
    after = added[at - setting.n_step + 1 + len(taken) :]
    # What a step led to is there until another is added that does not go on from it.
    if not last.ended and after and after[0] is None and any(after):
        lost = True
    return Transition(first.before, first.action, reward, discount, last.after), lost


def play(setting, seed, events, terminates):
    """Lets actors act in turn; after every event yields what the ring gives beside what it should."""
    rng = np.random.default_rng(seed)
    state, add, read = programs(setting)
    streams = [[Stream(rng, setting) for _ in range(setting.num_envs)] for _ in range(NUM_ACTORS)]
    times, starts, count, completed = [0] * NUM_ACTORS, [0] * NUM_ACTORS, 0, []
    for actor, event in events:
        if event == "restart":
            times[actor] = 0
            starts[actor] += 1
            for stream in streams[actor]:
                stream.start()
                stream.added.append(None)
            continue
        taken = [stream.step(count + k, terminates) for k, stream in enumerate(streams[actor])]
        times[actor] += 1
        if event == "drop":
            for stream in streams[actor]:
                stream.added.append(None)
            continue
        step = SingleStep(
            Transition(
                *(
                    np.stack([getattr(past, name) for past in taken])
                    for name in ("before", "action", "reward", "discount", "after")
                )
            ),
            np.array([past.ended for past in taken]),
            np.array([past.age for past in taken], np.int32),
            np.full(setting.num_envs, times[actor] - 1, np.int32),
            # Of an actor that is started again numbers grow by that of all environments.
            (actor + NUM_ACTORS * starts[actor]) * setting.num_envs + np.arange(setting.num_envs, dtype=np.int32),
        )
        newest = step.transition._replace(s_tm1=step.transition.s_tm1[..., -1:], s_t=step.transition.s_t[..., -1:])
        state = add(state, step._replace(transition=newest))
        count += setting.num_envs
        for stream, past in zip(streams[actor], taken, strict=True):
            stream.added.append(past)
        if len(streams[actor][0].added) >= setting.n_step and None not in streams[actor][0].added[-setting.n_step :]:
            completed += [(stream.added, len(stream.added) - 1) for stream in streams[actor]]
        wanted = [transition(setting, *one, count - setting.num_rows) for one in completed[-setting.capacity :]]
        yield int(state.added.count), len(completed), wanted, jax.device_get(read(state))


def check(setting, added, completed, wanted, given):
    assert added == completed
    lost = 0
    for k, (want, is_lost) in enumerate(wanted):
        position = (completed - len(wanted) + k) % setting.capacity
        assert given.age[position] == len(wanted) - 1 - k
        assert given.weights[position] == (not is_lost)
        lost += is_lost
        got = jax.tree.map(lambda x, position=position: x[position], given.transitions)
        if not is_lost:
            for name in ("a_tm1", "r_t", "discount_t"):
                np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-6, err_msg=name)
            np.testing.assert_array_equal(got.s_tm1, want.s_tm1)
            if want.discount_t > 0:
                np.testing.assert_array_equal(got.s_t, want.s_t)
    return lost


EVENTS = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 1, 1, 2]), st.sampled_from(["add"] * 12 + ["drop", "restart"])),
    min_size=30,
    max_size=60,
)


@hypothesis.settings(max_examples=40, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    setting=st.sampled_from(SETTINGS), events=EVENTS, terminates=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 2**31)
)
def test_what_actors_added_is_read_as_it_was_or_not_at_all(setting, events, terminates, seed):
    for now in play(setting, seed, events, terminates):
        check(setting, *now)


def test_nothing_is_lost_of_actors_that_take_turns():
    for setting in SETTINGS:
        events = [(time % NUM_ACTORS, "add") for time in range(60)]
        assert sum(check(setting, *now) for now in play(setting, 0, events, 0.2)) == 0


def test_beside_a_gap_a_stack_is_lost_and_then_no_more():
    setting = Setting(num_envs=1, capacity=12, n_step=1, stack=3)
    events = [(0, "add")] * 2 + [(0, "drop")] + [(0, "add")] * 5
    *_, (added, completed, wanted, given) = play(setting, 3, events, 0.0)
    check(setting, added, completed, wanted, given)
    # Episodes have four steps. The third step is not there: the second led to it, and the fourth acted on it.
    assert given.weights[:completed].tolist() == [1, 0, 0, 1, 1, 1, 1]


def test_an_actor_that_was_started_again_is_not_taken_for_the_one_before():
    """What it sent first is dropped, so that it has taken as many steps as the other had: nothing joins the two."""
    setting = Setting(num_envs=1, capacity=5, n_step=3, stack=2)
    events = [(0, "add")] * 3 + [(0, "restart")] + [(0, "drop")] * 3 + [(0, "add")] * 4
    *_, last = play(setting, 0, events, 0.0)
    check(setting, *last)
    assert last[1] == 1 + 2
