"""The replay memory is a ring: it agrees with a list of everything that was ever added, to the last bit."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.config import AgentConfig
from dqn_jax.envs import make_env
from dqn_jax.replay import (
    bytes_per_transition,
    clear,
    make_memory,
    make_newest,
    make_ring,
    make_uniform_replay,
    pack,
    put_ring,
    ring_of,
    select,
    side_by_side,
    unpack,
)
from dqn_jax.types import Transition

CAPACITY = 12
BATCH = 256
OBS_SHAPE = (2, 5)  # Ten bits: not a whole number of bytes.


def transitions_of(serials):
    """Numpy transitions [M, ...] that their serial numbers determine, with boolean observations."""
    serials = np.asarray(serials)
    bits = (serials[:, None] >> np.arange(10)) & 1
    s_tm1 = bits.astype(bool).reshape(-1, *OBS_SHAPE)
    r_t, discount_t = serials.astype(np.float32), (0.5 / (1 + serials)).astype(np.float32)
    return Transition(s_tm1, (serials % 3).astype(np.int32), r_t, discount_t, ~s_tm1)


EXAMPLE = jax.tree.map(lambda x: jnp.asarray(x[0]), transitions_of([0]))
REPLAY = make_uniform_replay(make_ring(EXAMPLE, CAPACITY), BATCH)
add = jax.jit(REPLAY.add)
sample = jax.jit(REPLAY.sample)


def filled(num_transitions, block):
    state = REPLAY.init()
    for first in range(0, num_transitions, block):
        state = add(state, transitions_of(range(first, first + block)))
    return state


def assert_same(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("block", [1, 3, 4, CAPACITY])
def test_agrees_with_a_list(block):
    state, added = REPLAY.init(), []
    # Three times round, whatever the block.
    for turn in range(3 * CAPACITY // block):
        serials = list(range(len(added), len(added) + block))
        state = add(state, transitions_of(serials))
        added += serials
        kept = added[-CAPACITY:]

        batch = sample(jax.random.key(turn), state)
        serials = np.asarray(batch.transitions.r_t).astype(int)
        # 256 draws miss one of twelve slots with a probability of 1e-9: exactly those kept are drawn.
        assert sorted(set(serials)) == kept
        assert_same(batch.transitions, transitions_of(serials))
        np.testing.assert_array_equal(batch.indices, serials % CAPACITY)
        np.testing.assert_array_equal(batch.age, len(added) - 1 - serials)
        np.testing.assert_array_equal(batch.weights, np.ones(BATCH))
        assert state.added.count == len(added)


@pytest.mark.parametrize("num_transitions", [4, 12, 20])
def test_an_invalid_block_leaves_every_bit(num_transitions):
    state = filled(num_transitions, block=4)
    new = transitions_of(range(100, 104))
    assert_same(add(state, new, jnp.bool_(False)), state)
    assert_same(add(state, new, jnp.bool_(True)), add(state, new))
    # The next valid block goes where the invalid one would have gone.
    assert_same(add(add(state, new, jnp.bool_(False)), new), add(state, new))


def test_the_first_blocks_may_be_invalid():
    state = add(REPLAY.init(), transitions_of(range(100, 104)), jnp.bool_(False))
    state = add(state, transitions_of(range(4)), jnp.bool_(True))
    assert set(np.asarray(sample(jax.random.key(0), state).transitions.r_t)) == {0, 1, 2, 3}


def test_refuses_a_block_that_would_wrap():
    with pytest.raises(ValueError, match="capacity is 12, not a multiple of the 5"):
        REPLAY.add(REPLAY.init(), transitions_of(range(5)))


@pytest.mark.parametrize("num_transitions", [8, 20])
def test_slots_are_drawn_alike(num_transitions):
    state = filled(num_transitions, block=4)
    slots = min(num_transitions, CAPACITY)
    indices = jax.jit(jax.vmap(REPLAY.sample, in_axes=(0, None)))(jax.random.split(jax.random.key(0), 40), state).indices
    counts = np.bincount(np.asarray(indices).reshape(-1), minlength=slots)
    assert len(counts) == slots
    expected = 40 * BATCH / slots
    # With 11 degrees of freedom a chi-square above 37.4 has a probability of 1e-4.
    assert np.sum((counts - expected) ** 2 / expected) < 37.4


def test_the_key_decides_the_draw():
    state = filled(12, block=4)
    one, same, other = (sample(jax.random.key(seed), state).indices for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_storage_dtypes():
    storage = REPLAY.init().storage
    assert [(x.shape, x.dtype) for x in storage] == [
        ((CAPACITY, 2), jnp.uint8),  # Ten bits take two bytes.
        ((CAPACITY,), jnp.int32),
        ((CAPACITY,), jnp.float32),
        ((CAPACITY,), jnp.float32),
        ((CAPACITY, 2), jnp.uint8),
    ]


def test_float_observations_are_kept_as_they_are():
    obs = np.array([[0.1, -2.5e-30, 7e30], [1, 2, 3]], np.float32)
    new = transitions_of([0, 1])._replace(s_tm1=obs, s_t=-obs)
    replay = make_uniform_replay(make_ring(jax.tree.map(lambda x: jnp.asarray(x[0]), new), capacity=4), batch_size=64)
    state = replay.add(replay.init(), new)
    assert state.storage.s_tm1.dtype == jnp.float32
    batch = replay.sample(jax.random.key(0), state)
    assert_same(batch.transitions, jax.tree.map(lambda x: x[np.asarray(batch.indices)], new))
    assert set(np.asarray(batch.indices)) == {0, 1}


def test_bytes_of_a_breakout_transition():
    env, capacity = make_env("Breakout-MinAtar"), 64
    obs = jnp.zeros(env.spec.obs_shape, env.spec.obs_dtype)
    example = Transition(obs, jnp.int32(0), jnp.float32(0), jnp.float32(0), obs)
    storage = make_uniform_replay(make_ring(example, capacity), 8).init().storage
    # Two observations of 400 bits, and three numbers: 2 * 50 + 3 * 4.
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(storage)) == 112 * capacity <= 120 * capacity


@hypothesis.settings(max_examples=20, deadline=None, database=None, derandomize=True)
@hypothesis.given(
    obs=hnp.array_shapes(min_dims=0, max_dims=3, max_side=7).flatmap(lambda s: hnp.arrays(bool, s)), seed=st.integers(0, 99)
)
def test_packing_is_lossless(obs, seed):
    transition = transitions_of([seed])
    transition = jax.tree.map(lambda x: x[0], transition)._replace(s_tm1=jnp.array(obs), s_t=jnp.array(~obs))
    packed = pack(transition)
    assert packed.s_tm1.dtype == jnp.uint8
    assert packed.s_tm1.shape == (-(-obs.size // 8),)
    assert_same(unpack(packed, transition), transition)


def test_the_newest_are_the_last_that_were_added():
    newest = make_newest(make_ring(EXAMPLE, CAPACITY), batch_size=4)
    state = newest.init()
    for added in range(4, 3 * CAPACITY, 2):
        first = 0 if added == 4 else added - 2
        state = add(state, transitions_of(range(first, added)))
        batch = newest.sample(jax.random.key(added), state)
        assert batch.transitions.r_t.tolist() == list(range(added - 4, added))
        assert batch.age.tolist() == [3, 2, 1, 0]
        assert batch.weights.tolist() == [1] * 4


def test_rings_side_by_side_are_rings_of_their_own():
    """Worker 1's view of the storage of three adds and draws as a ring of its own would, and the others' stay as they are."""
    rings = [filled(count, 4) for count in (4, 12, 8)]
    together = side_by_side(jax.tree.map(lambda *x: jnp.stack(x), *rings))
    before = jax.tree.map(np.asarray, together.storage)
    for _ in range(3):
        one = ring_of(together, jnp.int32(1))
        assert_same(sample(jax.random.key(5), one), sample(jax.random.key(5), rings[1]))
        new = transitions_of(range(20, 24))
        rings[1], together = add(rings[1], new), put_ring(together, jnp.int32(1), add(one, new))
    assert together.added.count.tolist() == [4, 24, 8]
    assert together.place is None
    for worker, ring in enumerate(rings):
        part = slice(worker * CAPACITY, (worker + 1) * CAPACITY)
        assert_same(jax.tree.map(lambda x, part=part: x[part], together.storage), ring.storage)
    assert not np.array_equal(before.r_t, together.storage.r_t)


def test_a_choice_between_two_states_keeps_the_counts_of_one():
    old = filled(4, 4)
    new = add(old, transitions_of(range(4, 8)), valid=False).replace(added=filled(8, 4).added)
    assert int(select(jnp.array(True), new, old).added.count) == 8
    assert_same(select(jnp.array(False), new, old), old)


def test_a_cleared_ring_draws_what_came_after():
    state = add(clear(filled(CAPACITY, 4)), transitions_of(range(40, 44)))
    assert set(np.asarray(sample(jax.random.key(0), state).transitions.r_t)) == {40, 41, 42, 43}


def test_bytes_of_a_transition():
    # Ten bits are two bytes, twice; action, reward and discount four each.
    assert bytes_per_transition(EXAMPLE) == 2 * 2 + 3 * 4


@pytest.mark.parametrize(("memory", "rewards"), [("newest", [[8, 9, 10, 11]] * 2), ("uniform", None)])
def test_a_memory_by_its_name(memory, rewards):
    made = make_memory(EXAMPLE, AgentConfig(memory=memory, replay_capacity=48, batch_size=4, learning_starts=4))
    state = made.add(made.init(), transitions_of(range(12)))
    drawn = [made.sample(jax.random.key(k), state).transitions.r_t.tolist() for k in range(2)]
    assert drawn == rewards if rewards else drawn[0] != drawn[1]
