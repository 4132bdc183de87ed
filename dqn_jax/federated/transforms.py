"""What happens to a client's update before it is sent: a chain of transforms, in the manner of optax.

A transform maps the delta of one client, keeps a state for that client, and gives the size of its output as sent. Not here:
aggregation.

Shapes: P parameters in all.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from dqn_jax.config import InputError
from dqn_jax.lookup import Found, check_like, function_of, is_users, lookup, record_of
from dqn_jax.types import Params, Tree


class Payload(NamedTuple):
    """The size of one update as sent."""

    parameters: int
    """Numbers in an update (P)."""
    leaves: int
    """Arrays in an update."""
    entries: int
    """Numbers sent."""
    bits: int = 32
    """Bits of each."""
    indexed: bool = False
    """Whether each travels with its 32-bit position."""
    extra_bytes: int = 0
    """Scales and the like."""

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return math.ceil(self.entries * (self.bits + 32 * self.indexed) / 8) + self.extra_bytes


class Transform(NamedTuple):
    """One member of a chain."""

    init: Callable[[Params], Tree]
    """parameters -> state of one client."""
    update: Callable[[jax.Array, Tree, Params], tuple[Tree, Params]]
    """(key, state, delta) -> (state, delta as the server will see it)."""
    payload: Callable[[Payload], Payload]
    """Size with this transform, given the size without it."""
    compress: Callable[[jax.Array, Params], Params] | None = None
    """For a compressor, (key, delta) -> compressed delta; `update` is this with error feedback."""


def chain(*transforms: Transform) -> Transform:
    """Applies transforms in order, each with a state and a key of its own; none at all sends the delta as it is.

    Compressors that follow one another share one error memory: with a memory each, the second would send what the first has
    cut away.
    """
    members: list[Transform] = []
    for transform in transforms:
        if members and members[-1].compress and transform.compress:
            transform = _then(members.pop(), transform)
        members.append(transform)

    def init(params: Params) -> tuple:
        return tuple(member.init(params) for member in members)

    def update(key: jax.Array, state: tuple, delta: Params) -> tuple[tuple, Params]:
        states = []
        for number, (member, own) in enumerate(zip(members, state, strict=True)):
            own, delta = member.update(jax.random.fold_in(key, number), own, delta)
            states.append(own)
        return tuple(states), delta

    def payload(before: Payload) -> Payload:
        for member in members:
            before = member.payload(before)
        return before

    return Transform(init, update, payload)


def compressor(compress: Callable[[jax.Array, Params], Params], payload: Callable[[Payload], Payload]) -> Transform:
    """Builds a transform that compresses its input, and adds the error to its next input.

    Args:
      compress: (key, delta) -> compressed delta.
      payload: its size as sent, from the size before.

    Source: Seide et al. (2014); Karimireddy et al. (2019), error feedback, algorithm 1.
    """

    def init(params: Params) -> Params:
        return jax.tree.map(jnp.zeros_like, params)

    def update(key: jax.Array, lost: Params, delta: Params) -> tuple[Params, Params]:
        wanted = jax.tree.map(jnp.add, delta, lost)
        sent = compress(key, wanted)
        return jax.tree.map(jnp.subtract, wanted, sent), sent

    return Transform(init, update, payload, compress)


def _then(first: Transform, second: Transform) -> Transform:
    """Joins two compressors."""

    def compress(key: jax.Array, delta: Params) -> Params:
        for transform, own_key in zip((first, second), jax.random.split(key), strict=True):
            assert transform.compress is not None
            delta = transform.compress(own_key, delta)
        return delta

    return compressor(compress, lambda payload: second.payload(first.payload(payload)))


def from_optax(rule: optax.GradientTransformation) -> Transform:
    """Wraps an optax transformation of updates; it gets no parameters, and its output is as large as its input."""

    def update(key: jax.Array, state: optax.OptState, delta: Params) -> tuple[optax.OptState, Params]:
        delta, state = rule.update(delta, state)
        return state, delta

    return Transform(rule.init, update, payload=lambda before: before)


def clip(max_norm: float) -> Transform:
    """Scales the delta down to a global norm of at most `max_norm`."""
    if not 0 < max_norm < math.inf:
        raise InputError(f"federated.transforms has clip:{max_norm}: give a finite norm above 0")
    return from_optax(optax.clip_by_global_norm(max_norm))


def int8() -> Transform:
    """Rounds each leaf to 255 levels at random, so that its mean is kept, and feeds the error back.

    A level is max |x| / 127 of the leaf, sent with it. Source: Alistarh et al. (2017), QSGD, with the largest entry as scale.
    """

    def compress(key: jax.Array, delta: Params) -> Params:
        leaves, structure = jax.tree.flatten(delta)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(structure, [round_to_int8(k, leaf) for k, leaf in zip(keys, leaves, strict=True)])

    def payload(before: Payload) -> Payload:
        return before._replace(bits=8, extra_bytes=before.extra_bytes + 4 * before.leaves)

    return compressor(compress, payload)


def round_to_int8(key: jax.Array, x: jax.Array) -> jax.Array:
    """Rounds x [...] at random to multiples of max |x| / 127: up with the probability that keeps the mean."""
    chex.assert_type(x, float)
    level = jnp.max(jnp.abs(x)) / 127
    steps = x / jnp.where(level > 0, level, 1.0)
    below = jnp.floor(steps)
    # No entry is beyond 127 levels, but one that is equal to it may be a rounding error above.
    rounded = jnp.clip(below + jax.random.bernoulli(key, steps - below, x.shape), -127, 127)
    return level * rounded


def top_k(share: float) -> Transform:
    """Sends the entries largest in absolute value, `share` of all (at least one), and feeds the rest back.

    Source: Stich et al. (2018), sparsified SGD with memory.
    """
    if not 0 < share <= 1:
        raise InputError(f"federated.transforms has top-k:{share}: give a share above 0 and at most 1")

    def count(size: int) -> int:
        return max(1, round(share * size))

    def compress(key: jax.Array, delta: Params) -> Params:
        flat, unravel = ravel_pytree(delta)
        _, kept = jax.lax.top_k(jnp.abs(flat), count(flat.size))
        return unravel(jnp.zeros_like(flat).at[kept].set(flat[kept]))

    def payload(before: Payload) -> Payload:
        return before._replace(entries=min(before.entries, count(before.parameters)), indexed=True)

    return compressor(compress, payload)


def payload_of(params: Params) -> Payload:
    """Returns the size of an uncompressed update."""
    leaves = jax.tree.leaves(params)
    size = sum(leaf.size for leaf in leaves)
    return Payload(parameters=size, leaves=len(leaves), entries=size)


TRANSFORMS: dict[str, Callable[..., Transform]] = {"clip": clip, "int8": int8, "top-k": top_k}


def make_transforms(specs: tuple[str, ...]) -> Transform:
    """Builds the chain that a config names.

    Args:
      specs: clip:NORM, int8, top-k:SHARE, or module:attribute, the attribute being a Transform, or a function that makes one of
        the numbers that follow.

    Raises:
      InputError: for a name without meaning, or numbers that cannot be used.
    """
    return chain(*(_make_transform(spec) for spec in specs))


def _make_transform(spec: str) -> Transform:
    argument = "federated.transforms"
    found = lookup(argument, spec, TRANSFORMS, lambda found: callable(found) or isinstance(found, Transform))
    transform = record_of(argument, spec, found, Transform)
    if not is_users(spec):
        return transform
    names = {"init": 1, "update": 3, "payload": 1} | ({"compress": 2} if transform.compress else {})
    guarded = {name: function_of(argument, spec, Found(getattr(transform, name), ()), n) for name, n in names.items()}

    def update(key: jax.Array, state: Tree, delta: Params) -> tuple[Tree, Params]:
        state, sent = guarded["update"](key, state, delta)
        check_like(argument, spec, sent, delta)
        return state, sent

    return transform._replace(**guarded | {"update": update})
