"""A sum-tree: N numbers (masses), and partial sums with which one is drawn in proportion to its mass in O(log N).

Inner nodes are always recomputed from their children, never changed by a difference: differences drift, and are wrong where
the same mass is set twice.

Not here: what the masses mean.

Shapes: N masses, W children of a node, B masses or points at a time.
"""

from typing import TypeAlias

import chex
import jax
import jax.numpy as jnp

WIDTH = 4
"""Children of a node. Half the levels of a binary tree are half the gathers and scatters: of 2 to 64 the fastest on a CPU."""

SumTree: TypeAlias = tuple[jax.Array, ...]
"""Levels [rows, W] float32, the masses first (in row-major order, then zeros), the root's children last."""


def empty(size: int, width: int = WIDTH) -> SumTree:
    """Makes a tree of `size` masses of 0; any size will do."""
    levels: list[jax.Array] = []
    while not levels or size > 1:
        # The rows of one level are the entries of the next.
        size = -(-size // width)
        levels.append(jnp.zeros((size, width)))
    return tuple(levels)


def total(tree: SumTree) -> jax.Array:
    """Returns the sum of all masses, [] float32."""
    return jnp.sum(tree[-1])


def put(tree: SumTree, indices: jax.Array, masses: jax.Array, valid: jax.Array) -> SumTree:
    """Sets masses, and recomputes the sums above them.

    Args:
      tree: the tree.
      indices: [B] int32; of several masses for one index the largest stays, in whatever order they are written.
      masses: [B] float32, at least 0.
      valid: [B] bool; where it is false nothing is written.

    Returns:
      The tree.
    """
    chex.assert_equal_shape([indices, masses, valid])
    levels: list[jax.Array] = []
    for level in tree:
        flat, width = level.reshape(-1), level.shape[1]
        # Writes beyond the end are dropped: selecting over the tree would cost all of it.
        at = jnp.where(valid, indices, flat.size)
        if not levels:
            flat = flat.at[at].set(0.0, mode="drop").at[at].max(masses, mode="drop")
        else:
            flat = flat.at[at].set(masses, mode="drop")
        levels.append(flat.reshape(level.shape))
        indices = indices // width
        masses = jnp.sum(levels[-1][indices], axis=1)
    return tuple(levels)


def find(tree: SumTree, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the masses that points fall on, with all masses laid end to end.

    A mass of 0 is never found, despite rounding. A float32 point is exact to 2^-24 of the total: each of N equal masses is
    found with a probability whose relative error is about N / 2^24 (0.8% for 131,072).

    Args:
      tree: the tree; not all masses are 0.
      points: [B] float32 in [0, total].

    Returns:
      ([B] int32 indices, [B] float32 masses).
    """
    entries, masses = jnp.zeros(points.shape, jnp.int32), jnp.zeros(points.shape)
    for level in reversed(tree):
        width = level.shape[1]
        children = jnp.arange(width)
        row = level[entries]
        ends = jnp.cumsum(row, axis=1)
        inside = (ends > points[:, None]) & (row > 0)
        # A point that rounding put beyond them all falls on the last.
        last = jnp.max(jnp.where(row > 0, children, 0), axis=1)
        child = jnp.minimum(jnp.min(jnp.where(inside, children, width), axis=1), last)
        chosen = children == child[:, None]
        masses = jnp.sum(jnp.where(chosen, row, 0.0), axis=1)
        points = jnp.maximum(points - jnp.sum(jnp.where(children < child[:, None], row, 0.0), axis=1), 0.0)
        entries = entries * width + child
    return entries, masses
