"""A prioritised memory draws each transition as often as its priority says, also after a million changes of priorities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from test_prioritised_replay import EPS, EXAMPLE, numbers, transitions_of

from dqn_jax import sum_tree
from dqn_jax.replay import make_prioritised_replay, make_ring

CAPACITY = 96
UPDATES, AT_ONCE = 5_000, 200
REPLAY = make_prioritised_replay(make_ring(EXAMPLE, CAPACITY), batch_size=256)
sample_often = jax.jit(jax.vmap(REPLAY.sample, (0, None)))


def counts_of(state):
    """How often each slot is drawn in 160 batches of 256."""
    indices = sample_often(jax.random.split(jax.random.key(1), 160), state).indices
    return np.bincount(np.ravel(indices), minlength=CAPACITY)


def shares_of(priorities, alpha):
    """P(i) of Schaul et al. (2016), equation 1, in double precision."""
    masses = (np.asarray(priorities, np.float64) + EPS) ** alpha
    return masses / masses.sum()


def p_value(counts, shares):
    """Probability of counts as far from their shares; strata make draws, if anything, more even than independent ones."""
    return chisquare(counts, counts.sum() * shares).pvalue


def assert_drawn_by(counts, priorities, alpha):
    """The counts fit the priorities' shares, and neither those of another exponent nor those of one priority halved."""
    assert p_value(counts, shares_of(priorities, alpha)) > 1e-3
    assert p_value(counts, shares_of(priorities, alpha + 0.1)) < 1e-9
    halved = np.array(priorities)
    halved[np.argmax(priorities)] /= 2
    assert p_value(counts, shares_of(halved, alpha)) < 1e-9


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_draws_fit_known_priorities(alpha):
    priorities = 10 ** np.random.default_rng(0).uniform(-1, 1, CAPACITY).astype(np.float32)
    state = REPLAY.add(REPLAY.init(numbers(alpha)), transitions_of(range(CAPACITY)), True, jnp.asarray(priorities))
    assert_drawn_by(counts_of(state), priorities, alpha)


def changes():
    """A million changes of priorities: slots [T, B] and priorities [T, B] of many sizes, of one in the last tenth."""
    rng = np.random.default_rng(0)
    slots = rng.integers(0, CAPACITY, (UPDATES, AT_ONCE))
    spread = np.where(np.arange(UPDATES) < 0.9 * UPDATES, 6.0, 1.0)[:, None]
    return slots, (10 ** rng.uniform(-spread, spread, slots.shape)).astype(np.float32)


def test_after_a_million_changes_nothing_has_drifted():
    slots, priorities = changes()
    assert slots.size == 1_000_000
    expected = np.ones(CAPACITY, np.float32)
    running, steps = np.float32(CAPACITY), []
    for row, values in zip(slots, priorities, strict=True):
        before = expected[np.unique(row)]
        # Of several priorities for one slot the largest stays.
        expected[row] = 0
        np.maximum.at(expected, row, values)
        steps.append(np.sum(expected[np.unique(row)] - before))
    # Control: a sum that follows by differences, as a tree could, is far off.
    running = np.cumsum(np.array([running, *steps], np.float32))[-1]
    assert abs(running / expected.sum() - 1) > 1e-2

    @jax.jit
    def changed(state):
        return jax.lax.scan(lambda state, change: (REPLAY.update(state, *change), None), state, (slots, priorities))[0]

    state = changed(REPLAY.add(REPLAY.init(numbers(1.0)), transitions_of(range(CAPACITY))))
    tree = state.priorities.tree
    leaves = tree[0].reshape(-1)[:CAPACITY]
    np.testing.assert_allclose(leaves, expected, rtol=1e-5)
    rebuilt = sum_tree.put(sum_tree.empty(CAPACITY), jnp.arange(CAPACITY), leaves, jnp.ones(CAPACITY, bool))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), tree, rebuilt)
    np.testing.assert_allclose(sum_tree.total(tree), expected.sum(dtype=np.float64), rtol=1e-5)
    assert_drawn_by(counts_of(state), expected, 1.0)
