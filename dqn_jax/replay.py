"""Replay memories: ring buffers from which batches are drawn uniformly, by priority, or the newest.

Their fields are private to this module.

Boolean observations are stored eight to a byte, every other leaf in its own dtype.

Not here: n-step returns (windows); rings that keep each frame of a stack once (frame_ring).

Shapes: N capacity, M transitions added at once, B batch, W workers.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

import flax
import jax
import jax.numpy as jnp

from dqn_jax import sum_tree
from dqn_jax.config import AgentConfig
from dqn_jax.streams import indices_below
from dqn_jax.types import Clock, ReplayHyperparams, Sample, Transition, Tree, Value

Valid: TypeAlias = jax.Array | bool
"""[] bool."""
_LEAST = 1e-6
"""Added to a priority, so that one of 0 is drawn now and then (epsilon in Schaul et al. 2016, section 3.3)."""
_RANGE = (1e-30, 1e28)
"""Limits of a mass in the tree: above the 0 of an empty slot, and with a finite sum of 2^31 of them."""


class Priorities(flax.struct.PyTreeNode):
    """How likely each slot of a prioritised memory is drawn."""

    tree: sum_tree.SumTree
    """Masses p^alpha, p = priority + a little; 0 in slots that are empty."""
    largest: jax.Array
    """[] float32 largest mass ever set, with which new transitions begin; at first 1."""
    hyperparams: ReplayHyperparams


class ReplayState(flax.struct.PyTreeNode):
    """The memory itself."""

    storage: Tree
    """What its ring keeps: transitions with leaves [N, ...], boolean ones bit-packed to [N, bytes], or frames."""
    added: Clock
    """Transitions ever added; the ring's position and its fill follow from it."""
    place: jax.Array | None = None
    """[] int32 number of this ring in a storage of several side by side; None where the storage is its own."""
    priorities: Tree = ()
    """Priorities; nothing where sampling is uniform."""
    rollout: Tree = ()
    """What a rollout keeps beside its steps; nothing in a replay."""


class MemoryInit(Protocol):
    """`Memory.init`."""

    def __call__(self, hyperparams: ReplayHyperparams | None = None) -> ReplayState:
        """Makes an empty memory; a prioritised one needs the hyperparams."""


class MemoryAdd(Protocol):
    """`Memory.add`."""

    def __call__(
        self, state: ReplayState, transitions: Tree, valid: Valid = True, priorities: jax.Array | None = None
    ) -> ReplayState:
        """Stores transitions [M, ...], or what its ring takes; without priorities [M] they begin with the largest one seen."""


class Update(Protocol):
    """`Memory.update`."""

    def __call__(self, state: ReplayState, indices: jax.Array, priority: jax.Array, valid: Valid = True) -> ReplayState:
        """Sets the priorities [B] of the slots [B] that were sampled."""


class Prepare(Protocol):
    """`Memory.prepare`."""

    def __call__(self, state: ReplayState, value: Value, key: jax.Array) -> ReplayState:
        """Prepares the state for the updates of an agent step; called once a step, before them.

        `value` gives what observations are worth by the parameters that those updates begin with.
        """


class Memory(NamedTuple):
    """A memory as pure functions. Where `valid` ([] bool) is false they change nothing."""

    init: MemoryInit
    add: MemoryAdd
    sample: Callable[[jax.Array, ReplayState], Sample]
    """(key, state) -> batch. An empty memory has nothing to draw: the agent's warm-up fills it first."""
    update: Update
    prepare: Prepare
    clear: Callable[[ReplayState], ReplayState]
    """state -> empty state; the old data stays in storage until it is overwritten, and is never drawn."""
    select: Callable[[jax.Array, ReplayState, ReplayState], ReplayState]
    """(valid, new, old) -> `new` where valid, else `old`; where not valid, nothing may have been written to `new`."""


class Ring(NamedTuple):
    """Where a memory keeps its transitions, as pure functions; how they are drawn is the memory's."""

    capacity: int
    """N."""
    init: Callable[[], ReplayState]
    add: Callable[[ReplayState, Tree, Valid], ReplayState]
    """(state, M transitions, valid) -> state."""
    read: Callable[[ReplayState, jax.Array], Sample]
    """(state, positions [B] of transitions in the ring) -> batch. Weights are 1, and 0 where a transition is lost."""


def make_memory(
    example: Transition, config: AgentConfig, num_shards: int = 1, axis_name: str | None = None, ring: Ring | None = None
) -> Memory:
    """Builds the memory of a config, or one of its `num_shards` shards on the mapped axis `axis_name`.

    Without a ring, of which a shard has its share of the capacity, whole transitions are kept.
    """
    ring = make_ring(example, config.replay_capacity // num_shards) if ring is None else ring
    batch_size = config.batch_size // num_shards
    if config.memory == "prioritised":
        frames = config.importance_anneal_frames
        return make_prioritised_replay(ring, batch_size, axis_name, None if frames is None else frames / num_shards)
    return (make_newest if config.memory == "newest" else make_uniform_replay)(ring, batch_size)


def make_ring(example: Tree, capacity: int) -> Ring:
    """Builds a ring of `capacity` whole transitions, or other records.

    Args:
      example: one of them; only its shapes and dtypes matter.
      capacity: N, a multiple of every block that is added, so that no block wraps.

    Returns:
      The ring. `add` raises ValueError for a block that does not divide the capacity.
    """

    def init() -> ReplayState:
        packed = jax.eval_shape(pack, example)
        storage = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), packed)
        return ReplayState(storage=storage, added=Clock(jnp.int32(0)))

    def add(state: ReplayState, transitions: Tree, valid: Valid) -> ReplayState:
        size = size_of(transitions)
        if capacity % size:
            raise ValueError(f"capacity is {capacity}, not a multiple of the {size} transitions added at once: change either")
        position = part(state, capacity) + state.added.count % capacity
        storage = jax.tree.map(
            lambda stored, new: write(stored, new, position, valid), state.storage, jax.vmap(pack)(transitions)
        )
        return state.replace(storage=storage, added=Clock(state.added.count + jnp.where(valid, size, 0)))

    def read(state: ReplayState, indices: jax.Array) -> Sample:
        packed = jax.tree.map(lambda x: x[part(state, capacity) + indices], state.storage)
        transitions = jax.vmap(lambda x: unpack(x, example))(packed)
        return Sample(transitions, indices, jnp.ones(len(indices)), age=(state.added.count - 1 - indices) % capacity)

    return Ring(capacity, init, add, read)


def make_uniform_replay(ring: Ring, batch_size: int) -> Memory:
    """Builds a memory whose batches of B are drawn uniformly with replacement (Lin 1992; Mnih et al. 2015)."""

    def init(hyperparams: ReplayHyperparams | None = None) -> ReplayState:
        del hyperparams
        return ring.init()

    def add(state: ReplayState, transitions: Tree, valid: Valid = True, priorities: jax.Array | None = None) -> ReplayState:
        del priorities
        return ring.add(state, transitions, valid)

    def sample(key: jax.Array, state: ReplayState) -> Sample:
        return ring.read(state, indices_below(key, jnp.minimum(state.added.count, ring.capacity), batch_size))

    def update(state: ReplayState, indices: jax.Array, priority: jax.Array, valid: Valid = True) -> ReplayState:
        del indices, priority, valid
        return state

    return Memory(init, add, sample, update, _as_it_is, clear, select)


def make_newest(ring: Ring, batch_size: int) -> Memory:
    """Builds a memory that draws nothing but the last B transitions: DQN without replay, for comparison."""

    def sample(key: jax.Array, state: ReplayState) -> Sample:
        del key
        return ring.read(state, (state.added.count - batch_size + jnp.arange(batch_size)) % ring.capacity)

    return make_uniform_replay(ring, batch_size)._replace(sample=sample)


def make_prioritised_replay(
    ring: Ring, batch_size: int, axis_name: str | None = None, anneal_transitions: float | None = None
) -> Memory:
    """Builds a memory drawn from in proportion to p_i^alpha, p_i = |td_i| + 1e-6, or the loss's own priority for |td|.

    Draws are stratified, one from each B-th of the sum of all masses: the paper's own way, with the same expectation as
    independent draws and less variance. Importance weights are (N P(i))^-beta over the largest of the batch. beta is constant,
    as in Horgan et al. (2018), or rises to 1 as in the paper.

    A priority that is not finite is ignored: its transition keeps the one it has, and a new transition begins with the
    largest, as without a priority. Both exponents are read from the state.

    With `axis_name` each device draws its share of the batch from its own shard, N and P(i) being the shard's: equally full
    shards have the same N P(i) as one memory drawn from evenly. The largest weight is that of the whole batch, on all devices,
    which takes a collective of one number: with each device's own, the gradients they average would be on different scales.

    Args:
      ring: where transitions are kept; its capacity N need not be a power of two.
      batch_size: B.
      axis_name: mapped axis of the shards; None where the memory is one, or each learns for itself.
      anneal_transitions: transitions added while beta rises linearly to 1; None keeps beta.

    Returns:
      The memory.

    Source: Schaul et al. (2016), equation 1, section 3.4 and appendix B.2.1.
    """

    def init(hyperparams: ReplayHyperparams | None = None) -> ReplayState:
        assert hyperparams is not None
        return ring.init().replace(priorities=Priorities(sum_tree.empty(ring.capacity), jnp.float32(1), hyperparams))

    def add(state: ReplayState, transitions: Tree, valid: Valid = True, priorities: jax.Array | None = None) -> ReplayState:
        size = size_of(transitions)
        indices = state.added.count % ring.capacity + jnp.arange(size)
        masses = jnp.full(size, state.priorities.largest)
        if priorities is not None:
            known = _masses(priorities, state.priorities.hyperparams)
            masses = jnp.where(jnp.isfinite(priorities), known, masses)
        after = ring.add(state, transitions, valid)
        return _prioritise(after, indices, masses, jnp.full(size, after.added.count != state.added.count))

    def exponent(state: ReplayState) -> jax.Array:
        beta = state.priorities.hyperparams.importance_exponent
        if anneal_transitions is None:
            return beta
        return beta + (1.0 - beta) * jnp.minimum(state.added.count / anneal_transitions, 1.0)

    def sample(key: jax.Array, state: ReplayState) -> Sample:
        tree = state.priorities.tree
        total = sum_tree.total(tree)
        points = (jnp.arange(batch_size) + jax.random.uniform(key, (batch_size,))) / batch_size * total
        indices, masses = sum_tree.find(tree, points)
        # In logarithms: the ratio of two masses can overflow, or vanish. N, the same on all shards, cancels.
        log_weights = -exponent(state) * (jnp.log(masses) - jnp.log(total))
        largest = jnp.max(log_weights)
        if axis_name is not None:
            largest = jax.lax.pmax(largest, axis_name)
        batch = ring.read(state, indices)
        return batch._replace(weights=batch.weights * jnp.exp(log_weights - largest))

    def update(state: ReplayState, indices: jax.Array, priority: jax.Array, valid: Valid = True) -> ReplayState:
        masses = _masses(priority, state.priorities.hyperparams)
        return _prioritise(state, indices, masses, valid & jnp.isfinite(priority))

    return Memory(init, add, sample, update, _as_it_is, clear, select)


def _as_it_is(state: ReplayState, value: Value, key: jax.Array) -> ReplayState:
    del value, key
    return state


def clear(state: ReplayState) -> ReplayState:
    """Empties a ring, as `Memory.clear`."""
    priorities = state.priorities
    if isinstance(priorities, Priorities):
        tree = jax.tree.map(jnp.zeros_like, priorities.tree)
        priorities = priorities.replace(tree=tree, largest=jnp.ones_like(priorities.largest))
    return state.replace(added=Clock(jnp.zeros_like(state.added.count)), priorities=priorities)


def select(valid: jax.Array, new: ReplayState, old: ReplayState) -> ReplayState:
    """Chooses between two states of a ring, as `Memory.select`; storage and priorities are `new`'s, without a copy."""
    large = {"storage": new.storage, "priorities": new.priorities}
    new, old = (state.replace(**dict.fromkeys(large, ())) for state in (new, old))
    return jax.tree.map(lambda x, y: jnp.where(valid, x, y), new, old).replace(**large)


def side_by_side(rings: ReplayState) -> ReplayState:
    """Joins the rings of W workers [W, N, ...] in one storage [W N, ...]; other leaves stay [W, ...]. Not for priorities."""
    return rings.replace(storage=jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rings.storage))


def ring_of(rings: ReplayState, worker: jax.Array) -> ReplayState:
    """Returns one worker's ring of rings `side_by_side`, its storage being that of all, without a copy."""
    own = jax.tree.map(lambda x: x[worker], rings.replace(storage=()))
    return own.replace(storage=rings.storage, place=worker)


def put_ring(rings: ReplayState, worker: jax.Array, ring: ReplayState) -> ReplayState:
    """Puts back a ring that `ring_of` gave, after something was added to it."""
    pairs = (one.replace(storage=(), place=None) for one in (rings, ring))
    return jax.tree.map(lambda x, new: x.at[worker].set(new), *pairs).replace(storage=ring.storage)


def bytes_per_transition(example: Transition) -> int:
    """Returns the bytes that a transition like the example takes in storage."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(pack, example)))


def pack(tree: Tree) -> Tree:
    """Stores boolean leaves, as of one transition, as [bytes] uint8, eight to a byte; leaves the others alone."""
    return jax.tree.map(lambda x: jnp.packbits(x.reshape(-1)) if x.dtype == bool else x, tree)


def unpack(packed: Tree, example: Tree) -> Tree:
    """Inverts `pack`, for what has the shapes and dtypes of `example`."""

    def restore(bits: jax.Array, like: jax.Array) -> jax.Array:
        if like.dtype != bool:
            return bits
        return jnp.unpackbits(bits, count=like.size).astype(bool).reshape(like.shape)

    return jax.tree.map(restore, packed, example)


def size_of(transitions: Tree) -> int:
    """Returns how many transitions [M, ...] there are."""
    return len(jax.tree.leaves(transitions)[0])


def write(stored: jax.Array, new: jax.Array, position: jax.Array, valid: Valid) -> jax.Array:
    """Writes a block [M, ...] at a position of an array [N, ...] where `valid`."""
    # Writing back what is there costs one block; selecting over the whole memory would cost all of it.
    old = jax.lax.dynamic_slice_in_dim(stored, position, len(new))
    return jax.lax.dynamic_update_slice_in_dim(stored, jnp.where(valid, new, old), position, axis=0)


def part(state: ReplayState, size: int) -> jax.Array | int:
    """Returns where a ring's own part begins in arrays of its storage of which each ring has `size` rows."""
    return 0 if state.place is None else state.place * size


def _masses(priority: jax.Array, hyperparams: ReplayHyperparams) -> jax.Array:
    """Computes (priority + 1e-6)^alpha: Schaul et al. (2016), equation 1."""
    return jnp.clip((jnp.maximum(priority, 0.0) + _LEAST) ** hyperparams.priority_exponent, *_RANGE)


def _prioritise(state: ReplayState, indices: jax.Array, masses: jax.Array, valid: jax.Array) -> ReplayState:
    """Sets `masses` [B] in the slots `indices` [B] where `valid` [B], and updates the largest."""
    priorities = state.priorities
    largest = jnp.max(masses, initial=priorities.largest, where=valid)
    tree = sum_tree.put(priorities.tree, indices, masses, valid)
    return state.replace(priorities=priorities.replace(tree=tree, largest=largest))
