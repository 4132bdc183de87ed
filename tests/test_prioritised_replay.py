"""Prioritised replay draws by priority, weighs by importance, and nothing that is fed to it breaks it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import ENV, NETWORK, STEADY, arrays, assert_bitwise

from dqn_jax.agent import hyperparams_of, make_agent
from dqn_jax.mapping import lane_axes
from dqn_jax.replay import clear, make_memory, make_prioritised_replay, make_ring
from dqn_jax.types import ReplayHyperparams, Transition

CAPACITY = 12
BATCH = 256
EPS = 1e-6
EXAMPLE = Transition(jnp.zeros(2), jnp.int32(0), jnp.float32(0), jnp.float32(0), jnp.zeros(2))
REPLAY = make_prioritised_replay(make_ring(EXAMPLE, CAPACITY), BATCH)
add, sample, update = jax.jit(REPLAY.add), jax.jit(REPLAY.sample), jax.jit(REPLAY.update)
sample_often = jax.jit(jax.vmap(REPLAY.sample, (0, None)))


def numbers(alpha=1.0, beta=0.5):
    return ReplayHyperparams(jnp.float32(alpha), jnp.float32(beta), return_lambda=jnp.float32(0))


def transitions_of(serials):
    serials = np.asarray(serials, np.float32)
    obs = np.stack([serials, -serials], axis=1)
    return Transition(obs, serials.astype(np.int32), serials, 0 * serials, obs + 1)


def filled(td_abs, **exponents):
    """A memory of transitions 0, 1, ... with these |td|, from slot 0."""
    td_abs = np.asarray(td_abs, np.float32)
    return add(REPLAY.init(numbers(**exponents)), transitions_of(range(len(td_abs))), True, td_abs)


def masses(state):
    return np.asarray(state.priorities.tree[0]).reshape(-1)[:CAPACITY]


def draws(state):
    """[40, BATCH] slots."""
    return np.asarray(sample_often(jax.random.split(jax.random.key(1), 40), state).indices)


def chi_square(counts, shares):
    expected = counts.sum() * shares
    return np.sum((counts - expected) ** 2 / expected)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_slots_are_drawn_by_their_priorities(alpha):
    td_abs = np.array([0.1, 0.5, 1, 2, 3, 5, 0.1, 0.2, 8, 1, 1, 0.7])
    shares = (td_abs + EPS) ** alpha / np.sum((td_abs + EPS) ** alpha)
    counts = np.bincount(draws(filled(td_abs, alpha=alpha)).reshape(-1), minlength=CAPACITY)
    # With 11 degrees of freedom a chi-square above 37.4 has a probability of 1e-4; strata make it smaller still.
    assert chi_square(counts, shares) < 37.4
    assert chi_square(counts, np.full(CAPACITY, 1 / CAPACITY)) > 374


def test_draws_are_stratified():
    """Of every batch of 256, a slot with a quarter of the mass has the 64 strata that it covers."""
    indices = draws(filled([1, 1, 1, 1]))
    counts = np.stack([np.bincount(batch, minlength=4) for batch in indices])
    assert np.abs(counts - 64).max() <= 1


def test_importance_weights_by_hand():
    batch = sample(jax.random.key(0), filled(np.array([1, 2, 4, 1]) - EPS, beta=0.5))
    # N P = 4 (1, 2, 4, 1) / 8 = (1/2, 1, 2, 1/2), to the power -1/2 over the largest, sqrt(2).
    expected = np.array([1, 2**-0.5, 0.5, 1])
    indices = np.asarray(batch.indices)
    assert set(indices) == {0, 1, 2, 3}
    np.testing.assert_allclose(batch.weights, expected[indices], rtol=1e-5)
    np.testing.assert_array_equal(batch.transitions.r_t, indices)
    np.testing.assert_array_equal(batch.age, 3 - indices)


def test_importance_weights_undo_the_bias_of_priorities():
    """The value of a gamble that pays 1 three times in twelve: drawn by their errors, the wins are drawn too often."""
    rewards = jnp.float32([0, 0, 0, 1] * 3)

    @jax.jit
    @jax.vmap
    def learn(beta):
        def step(carry, key):
            state, value = carry
            batch = REPLAY.sample(key, state)
            errors = rewards[batch.indices] - value
            state = REPLAY.update(state, batch.indices, jnp.abs(errors))
            return (state, value + 0.1 * jnp.mean(batch.weights * errors)), None

        start = REPLAY.add(REPLAY.init(numbers(1.0, beta)), transitions_of(range(12)))
        return jax.lax.scan(step, (start, jnp.float32(0.5)), jax.random.split(jax.random.key(0), 300))[0][1]

    corrected, left = learn(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(corrected, 1 / 4, atol=0.01)
    # Errors weighted by themselves balance where 3/4 q^2 = 1/4 (1 - q)^2.
    np.testing.assert_allclose(left, 1 / (1 + 3**0.5), atol=0.01)


def test_without_exponent_all_are_drawn_alike_and_weigh_1():
    state = filled([1e-3, 1, 50, 1e6, 0, 3], alpha=0.0, beta=1.0)
    np.testing.assert_array_equal(sample(jax.random.key(0), state).weights, np.ones(BATCH))
    assert chi_square(np.bincount(draws(state).reshape(-1), minlength=6), np.full(6, 1 / 6)) < 37.4


def test_new_transitions_begin_with_the_largest_priority_seen():
    state = add(REPLAY.init(numbers(alpha=0.5)), transitions_of(range(4)))
    assert masses(state).tolist() == [1] * 4 + [0] * 8
    state = update(state, jnp.array([2]), jnp.float32([6.25 - EPS]))
    # Not cut to a whole number, and remembered when its transition is gone or has another.
    state = add(update(state, jnp.array([2]), jnp.float32([0.25 - EPS])), transitions_of(range(4, 8)))
    np.testing.assert_allclose(masses(state), [1, 1, 0.5, 1, *[2.5] * 4, *[0] * 4], rtol=1e-6)


def test_a_ring_gone_round_overwrites_priorities():
    state = filled(np.arange(1, 13) - EPS)
    state = add(state, transitions_of(range(12, 15)), True, np.float32([0.5, 0.25, 0.125]) - EPS)
    np.testing.assert_allclose(masses(state), [0.5, 0.25, 0.125, *range(4, 13)], rtol=1e-5)
    batch = sample(jax.random.key(0), state)
    assert (np.asarray(batch.indices) >= 3).mean() > 0.9
    np.testing.assert_array_equal(batch.transitions.r_t, np.where(batch.indices < 3, batch.indices + 12, batch.indices))


def test_a_slot_drawn_twice_is_counted_once():
    state = update(filled(np.ones(4)), jnp.array([1, 1, 3, 1]), jnp.float32([2, 2, 5, 2]) - EPS)
    np.testing.assert_allclose(masses(state)[:4], [1, 2, 1, 5], rtol=1e-5)
    np.testing.assert_allclose(np.sum(state.priorities.tree[-1]), 9, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_odd_errors_break_nothing(alpha):
    """One that is not finite says nothing; a zero is rare, not never; a huge one is still finite when summed."""
    state = filled([1, 2, 3, 4], alpha=alpha)
    before = masses(state)
    state = update(state, jnp.arange(4), jnp.float32([jnp.nan, jnp.inf, 0, 3e38]))
    np.testing.assert_array_equal(masses(state)[:2], before[:2])
    np.testing.assert_allclose(masses(state)[2], EPS**alpha, rtol=1e-5)
    assert np.isfinite(np.asarray(jax.tree.leaves(state.priorities.largest))).all()
    assert np.isfinite(np.sum(state.priorities.tree[-1]))
    state = add(state, transitions_of(range(4)), True, jnp.float32([jnp.nan, -jnp.inf, 0, 1]))
    np.testing.assert_array_equal(masses(state)[4:6], np.full(2, state.priorities.largest))
    batch = sample(jax.random.key(0), state)
    assert np.isfinite(batch.weights).all()
    # No slot but those that are filled, and more than the one with a huge error.
    assert set(np.asarray(batch.indices)) <= set(range(8))
    assert len(set(np.asarray(batch.indices))) > 1


def test_a_memory_of_zeros_is_drawn_evenly():
    state = filled(np.zeros(6))
    batch = sample(jax.random.key(0), state)
    np.testing.assert_array_equal(batch.weights, np.ones(BATCH))
    assert set(np.asarray(batch.indices)) == set(range(6))


@pytest.mark.parametrize("num_transitions", [4, 12])
def test_what_is_not_valid_leaves_every_bit(num_transitions):
    state = filled(np.linspace(0.1, 7, num_transitions), alpha=0.7)
    new, td_abs = transitions_of(range(50, 54)), jnp.float32([9, 1, 0, jnp.nan])
    for masked in (
        add(state, new, jnp.array(False)),
        add(state, new, jnp.array(False), td_abs),
        update(state, jnp.array([0, 1, 1, 3]), td_abs, jnp.array(False)),
    ):
        assert_bitwise(masked, state)
    assert_bitwise(add(add(state, new, jnp.array(False)), new, jnp.array(True)), add(state, new))


def test_a_cleared_memory_draws_only_what_comes_after():
    state = clear(filled(np.arange(12)))
    fresh = REPLAY.init(numbers())
    assert_bitwise((state.added, state.priorities), (fresh.added, fresh.priorities))
    state = add(state, transitions_of(range(20, 23)))
    assert set(np.asarray(sample(jax.random.key(0), state).transitions.r_t)) == {20, 21, 22}


def use(replay, exponents, key):
    """A memory, added to twice and updated in between, and a batch of it."""
    state = replay.add(replay.init(exponents), transitions_of(range(4)))
    first = replay.sample(key, state)
    state = replay.update(state, first.indices, jnp.abs(jnp.sin(1.0 + first.indices)))
    state = replay.add(state, transitions_of(range(4, 8)))
    return state, replay.sample(jax.random.fold_in(key, 0), state)


def test_lanes_are_memories_each_with_its_own_exponents_and_one_clock():
    exponents = [numbers(0.0, 0.4), numbers(0.6, 0.4), numbers(0.6, 1.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *exponents)
    keys = jax.random.split(jax.random.key(0), 3)
    one = lambda exponents, key: use(REPLAY, exponents, key)  # noqa: E731
    axes = lane_axes(jax.eval_shape(one, exponents[0], keys[0])[0])
    state, batch = jax.jit(jax.vmap(one, out_axes=(axes, 0)))(stacked, keys)
    assert state.added.count.shape == ()
    for lane, (exponent, key) in enumerate(zip(exponents, keys, strict=True)):
        alone, alone_batch = jax.jit(one)(exponent, key)
        np.testing.assert_allclose(state.priorities.tree[0][lane], alone.priorities.tree[0], rtol=1e-5)
        np.testing.assert_array_equal(batch.indices[lane], alone_batch.indices)
        np.testing.assert_allclose(batch.weights[lane], alone_batch.weights, rtol=1e-5)


def test_shards_weigh_as_one_memory():
    """Two shards of four slots, 128 draws each: weights (N P)^-beta over the largest of all 256, whichever shard has it."""
    td_abs = np.array([[1, 2, 4, 1], [3, 3, 3, 7]], np.float32)
    alpha, beta = 1.0, 0.4
    near_and_far = {}
    for axis_name in ("devices", None):
        replay = make_prioritised_replay(make_ring(EXAMPLE, 4), 128, axis_name)

        def shard(td_abs, key, replay=replay):
            state = replay.add(replay.init(numbers(alpha, beta)), transitions_of(range(4)), True, td_abs)
            return replay.sample(key, state)

        batch = jax.jit(jax.vmap(shard, axis_name="devices"))(td_abs, jax.random.split(jax.random.key(0), 2))
        near_and_far[axis_name] = np.asarray(batch.weights)
    ratios = 4 * td_abs / td_abs.sum(axis=1, keepdims=True)
    weights = ratios**-beta / ratios.min() ** -beta
    expected = np.take_along_axis(weights, np.asarray(batch.indices), axis=1)
    np.testing.assert_allclose(near_and_far["devices"], expected, rtol=1e-5)
    # Each for itself, the second shard's small weights are blown up.
    assert near_and_far[None][1].max() == 1 > 1.1 * expected[1].max()


CONFIG = dataclasses.replace(STEADY, memory="prioritised", num_envs=4, batch_size=8, replay_capacity=64, learning_starts=16)
AGENT = make_agent(ENV, NETWORK, CONFIG)


@pytest.fixture(scope="module")
def ready():
    return jax.jit(lambda: AGENT.warm_up(AGENT.init(jax.random.key(0))))()


def test_learning_sets_the_priorities_of_what_was_drawn(ready):
    """To those of the errors before the update; `grad` sets the same. Slots not drawn stay as they were."""
    (learned, info), (pushed, _, _) = jax.jit(lambda state: (AGENT.learn(state), AGENT.grad(state)))(ready)
    before, after = (np.asarray(state.replay.priorities.tree[0]).reshape(-1)[:64] for state in (ready, learned))
    assert before.tolist() == [1] * 16 + [0] * 48
    drawn = np.flatnonzero(after != before)
    # Eight strata of two equal slots each: one of every pair is drawn.
    assert (drawn // 2).tolist() == list(range(8))
    errors = after[drawn] ** (1 / 0.6)
    assert errors.min() < info["priority"] < errors.max()
    np.testing.assert_allclose(pushed.replay.priorities.tree[0], learned.replay.priorities.tree[0], rtol=1e-5)
    assert_bitwise(learned.replay.storage, ready.replay.storage)


def test_an_inactive_step_changes_nothing(ready):
    step_if = jax.jit(lambda state, active: AGENT.step(state, None, active)[0])
    state = ready
    for _ in range(15):
        state = step_if(state, jnp.array(True))
    assert int(state.replay.added.count) > CONFIG.replay_capacity
    for before in (ready, state):
        assert_bitwise(step_if(before, jnp.array(False)), before)


def test_a_uniform_agent_carries_no_priorities(ready):
    uniform = make_agent(ENV, NETWORK, dataclasses.replace(CONFIG, memory="uniform"))
    shapes = jax.eval_shape(uniform.init, jax.random.key(0))
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    assert {name for name in arrays(ready) if name not in names} == {
        *(f".replay.priorities.tree[{level}]" for level in range(3)),
        ".replay.priorities.largest",
        ".replay.priorities.hyperparams.priority_exponent",
        ".replay.priorities.hyperparams.importance_exponent",
        ".replay.priorities.hyperparams.return_lambda",
    }
    assert not any("priorit" in name for name in names)
    assert hyperparams_of(CONFIG).replay == (jnp.float32(0.6), jnp.float32(0.4), 0)


def test_the_importance_exponent_rises_to_1():
    """From 0.4, over twice the capacity: half of the way once the ring is full, and 1 from then on when it has gone round."""
    rising = make_prioritised_replay(make_ring(EXAMPLE, CAPACITY), BATCH, anneal_transitions=2 * CAPACITY)
    errors = np.float32([1, 2, 3, 4] * 3)
    state = rising.init(numbers(alpha=1.0, beta=0.4))
    for exponent in (0.7, 1.0, 1.0):
        state = rising.add(state, transitions_of(range(CAPACITY)), True, errors)
        batch = rising.sample(jax.random.key(0), state)
        # Weights are (p / p_min)^-beta, p |td| + a little.
        np.testing.assert_allclose(batch.weights, errors[batch.indices] ** -exponent, rtol=1e-4)


def test_shards_anneal_by_the_frames_of_all():
    config = dataclasses.replace(CONFIG, importance_anneal_frames=64, batch_size=64, learning_starts=64)
    for shards in (1, 2):
        memory = make_memory(EXAMPLE, config, shards)
        state = memory.init(numbers(alpha=1.0, beta=0.5))
        state = memory.add(state, transitions_of(range(32 // shards)), True, np.float32([1, 4] * (16 // shards)))
        weights = np.unique(np.asarray(memory.sample(jax.random.key(0), state).weights))
        np.testing.assert_allclose(weights, [4**-0.75, 1], rtol=1e-4)
