"""Replay memory: a ring of transitions, sampled uniformly. Not here: n-step returns, which the actor builds before adding.

Boolean observations are stored eight to a byte, every other leaf in its own dtype.

Shapes: N capacity, M transitions added at once, B batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from dqn_jax.types import Clock, Sample, Transition


class ReplayState(flax.struct.PyTreeNode):
    """The memory itself."""

    storage: Transition
    """Leaves [N, ...], boolean ones bit-packed to [N, bytes]."""
    added: Clock
    """Transitions ever added; the ring's position and its fill follow from it."""


class Replay(NamedTuple):
    """A replay memory as pure functions."""

    init: Callable[[], ReplayState]
    """() -> empty memory."""
    add: Callable[..., ReplayState]
    """(state, transitions [M, ...], valid=True) -> state; nothing is written where `valid` ([] bool) is false."""
    sample: Callable[[jax.Array, ReplayState], Sample]
    """(key, state) -> batch. An empty memory has nothing to draw: the agent's warm-up fills it first."""


def make_uniform_replay(example: Transition, capacity: int, batch_size: int) -> Replay:
    """A ring of `capacity` transitions, sampled uniformly with replacement (Lin 1992; Mnih et al. 2015).

    Args:
      example: one transition; only its shapes and dtypes matter.
      capacity: N, a multiple of every block that is added, so that no block wraps.
      batch_size: B.

    Returns:
      The replay. `add` raises ValueError for a block that does not divide the capacity.
    """

    def init() -> ReplayState:
        packed = jax.eval_shape(pack, example)
        storage = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), packed)
        return ReplayState(storage=storage, added=Clock(jnp.int32(0)))

    def add(state: ReplayState, transitions: Transition, valid: jax.Array | bool = True) -> ReplayState:
        size = transitions.r_t.shape[0]
        if capacity % size:
            raise ValueError(f"capacity is {capacity}, not a multiple of the {size} transitions added at once: change either")
        position = state.added.count % capacity

        def write(stored: jax.Array, new: jax.Array) -> jax.Array:
            # Writing back what is there costs one block; selecting over the whole memory would cost all of it.
            old = jax.lax.dynamic_slice_in_dim(stored, position, size)
            return jax.lax.dynamic_update_slice_in_dim(stored, jnp.where(valid, new, old), position, axis=0)

        storage = jax.tree.map(write, state.storage, jax.vmap(pack)(transitions))
        return ReplayState(storage=storage, added=Clock(state.added.count + jnp.where(valid, size, 0)))

    def sample(key: jax.Array, state: ReplayState) -> Sample:
        added = state.added.count
        indices = jax.random.randint(key, (batch_size,), 0, jnp.minimum(added, capacity))
        packed = jax.tree.map(lambda x: x[indices], state.storage)
        transitions = jax.vmap(lambda x: unpack(x, example))(packed)
        return Sample(transitions, indices, weights=jnp.ones(batch_size), age=(added - 1 - indices) % capacity)

    return Replay(init, add, sample)


def pack(transition: Transition) -> Transition:
    """Stores boolean leaves of one transition as [bytes] uint8, eight to a byte; leaves the others alone."""
    return jax.tree.map(lambda x: jnp.packbits(x.reshape(-1)) if x.dtype == bool else x, transition)


def unpack(packed: Transition, example: Transition) -> Transition:
    """Inverse of `pack`, for a transition with the shapes and dtypes of `example`."""

    def restore(bits: jax.Array, like: jax.Array) -> jax.Array:
        if like.dtype != bool:
            return bits
        return jnp.unpackbits(bits, count=like.size).astype(bool).reshape(like.shape)

    return jax.tree.map(restore, packed, example)
