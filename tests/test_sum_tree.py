"""A sum-tree agrees with a list of its masses, to the last bit where their sums are exact."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax import sum_tree

put, find = jax.jit(sum_tree.put), jax.jit(sum_tree.find)


def tree_of(masses, width=sum_tree.WIDTH):
    masses = jnp.asarray(masses, jnp.float32)
    return put(sum_tree.empty(len(masses), width), jnp.arange(len(masses)), masses, jnp.ones(len(masses), bool))


def test_by_hand():
    """Five masses with two children a node: sums of two, of four, of all."""
    tree = tree_of([1, 2, 0, 4, 3], width=2)
    assert [level.tolist() for level in tree] == [[[1, 2], [0, 4], [3, 0]], [[3, 4], [3, 0]], [[7, 3]]]
    assert sum_tree.total(tree) == 10
    # The last is the very end, where rounding can put a point.
    indices, masses = find(tree, jnp.array([0, 0.5, 1, 2.9, 3, 6.9, 7, 9.9, 10]))
    assert indices.tolist() == [0, 0, 1, 1, 3, 3, 4, 4, 4]
    assert masses.tolist() == [1, 1, 2, 2, 4, 4, 3, 3, 3]


@pytest.mark.parametrize(
    ("size", "shapes"), [(1, [(1, 4)]), (4, [(1, 4)]), (5, [(2, 4), (1, 4)]), (17, [(5, 4), (2, 4), (1, 4)])]
)
def test_levels(size, shapes):
    assert [level.shape for level in sum_tree.empty(size)] == shapes


@pytest.mark.parametrize("masses", [[5, 2, 3], [2, 3, 5], [3, 5, 2]])
def test_the_largest_of_several_masses_for_one_index_stays(masses):
    tree = put(tree_of([1, 7, 1, 1, 1]), jnp.array([1, 1, 1]), jnp.float32(masses), jnp.ones(3, bool))
    assert tree[0].reshape(-1).tolist() == [1, 5, 1, 1, 1, 0, 0, 0]
    assert sum_tree.total(tree) == 9


def test_invalid_masses_leave_every_bit():
    tree = tree_of(np.random.default_rng(0).random(50))
    indices, masses = jnp.array([3, 49, 3]), jnp.array([2.0, jnp.nan, 4.0])
    same = put(tree, indices, masses, jnp.zeros(3, bool))
    jax.tree.map(np.testing.assert_array_equal, same, tree)
    one = put(tree, indices, masses, jnp.array([True, False, False]))
    jax.tree.map(np.testing.assert_array_equal, one, put(tree, jnp.array([3]), jnp.array([2.0]), jnp.array([True])))


# Whole numbers, whose sums are exact.
WRITES = st.lists(
    st.lists(st.tuples(st.integers(0, 22), st.integers(0, 999), st.booleans()), min_size=6, max_size=6), max_size=8
)


@hypothesis.settings(max_examples=25, deadline=None, database=None, derandomize=True)
@hypothesis.given(writes=WRITES)
def test_every_node_is_the_sum_of_its_children_after_any_writes(writes):
    tree, expected = sum_tree.empty(23), np.zeros(24, np.float32)
    for block in writes:
        indices, masses, valid = map(np.array, zip(*block, strict=True))
        tree = put(tree, indices.astype(np.int32), masses.astype(np.float32), valid)
        for index in set(indices[valid]):
            expected[index] = masses[valid & (indices == index)].max()
    np.testing.assert_array_equal(tree[0].reshape(-1), expected)
    for level, above in itertools.pairwise(tree):
        np.testing.assert_array_equal(above.reshape(-1)[: len(level)], np.sum(level, axis=1))
    assert sum_tree.total(tree) == expected.sum()


def test_sums_do_not_drift():
    """Ten thousand writes of masses of all sizes; what is left at the end are small ones."""

    @jax.jit
    def many():
        def write(tree, key):
            indices = jax.random.randint(key, (20,), 0, 100)
            masses = 10.0 ** jax.random.uniform(key, (20,), minval=-6, maxval=6)
            return sum_tree.put(tree, indices, masses, jnp.ones(20, bool)), None

        tree = jax.lax.scan(write, sum_tree.empty(100), jax.random.split(jax.random.key(0), 500))[0]
        return sum_tree.put(tree, jnp.arange(100), jnp.full(100, 1e-3), jnp.ones(100, bool))

    np.testing.assert_allclose(sum_tree.total(many()), 0.1, rtol=1e-6)


def test_a_mass_of_zero_is_never_found():
    """Nor are points lost where masses differ by more than float32 can add."""
    rng = np.random.default_rng(0)
    masses = np.where(rng.random(100) < 0.6, 0.0, 10.0 ** rng.uniform(-30, 28, 100)).astype(np.float32)
    tree = tree_of(masses)
    points = np.concatenate([rng.random(1500), [0, 1, 1 - 2**-24]]).astype(np.float32) * np.asarray(sum_tree.total(tree))
    indices, found = find(tree, points)
    assert (np.asarray(found) > 0).all()
    np.testing.assert_array_equal(found, masses[np.asarray(indices)])
