"""Some rows of a state of many clients, a block at a time: each block a `vmap`, one block after the other.

So a thousand clients need no more cache than a few. Not here: what is done with a client.

Shapes: n clients on this device, C of them chosen.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dqn_jax.federated.client import ClientState
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.mapping import lane_axes
from dqn_jax.types import Clock, Tree

DEFAULT_BLOCK = 16
"""Clients of a block, where the config does not say."""


def rows_where(mask: jax.Array, most: int) -> jax.Array:
    """Returns the positions [most] int32 where a mask [n] is true, in order, n after the last."""
    return jnp.nonzero(mask, size=most, fill_value=len(mask))[0]


def in_blocks(
    fn: Callable[[ClientState, jax.Array], tuple[ClientState, Tree]],
    clients: ClientState,
    ids: jax.Array,
    config: FederatedConfig,
) -> tuple[ClientState, jax.Array, Tree]:
    """Applies `fn` to the clients at rows `ids`, a block at a time.

    Args:
      fn: (state of one client, its row) -> (state, output).
      clients: leaves [n, ...].
      ids: [C] int32 rows, n for none.
      config: block size, and whether clients' clocks differ.

    Returns:
      (clients, rows [C'], outputs [C', ...]), C rounded up to whole blocks.
    """
    size = len(clients.stream)
    # Blocks as even as they can be: rows that only fill up the last are trained for nothing.
    number = -(-len(ids) // (config.block_size or DEFAULT_BLOCK))
    block = -(-len(ids) // number)
    ids = jnp.concatenate([ids, jnp.full(-len(ids) % block, size, ids.dtype)])
    shared = not config.varies
    start = clients

    def is_clock(x: Tree) -> bool:
        return isinstance(x, Clock)

    def one_block(clients: ClientState, rows: jax.Array) -> tuple[ClientState, Tree]:
        # Every block starts where shared clocks stood before the first; they end alike.
        inside = jnp.minimum(rows, size - 1)
        taken = jax.tree.map(
            lambda x, at_start: at_start if is_clock(x) and shared else jax.tree.map(lambda leaf: leaf[inside], x),
            clients,
            start,
            is_leaf=is_clock,
        )
        axes = lane_axes(taken, share_clocks=shared)
        new, out = jax.vmap(fn, in_axes=(axes, 0), out_axes=(axes, 0))(taken, inside)
        put = jax.tree.map(
            lambda x, y: y if is_clock(x) and shared else jax.tree.map(lambda a, b: a.at[rows].set(b, mode="drop"), x, y),
            clients,
            new,
            is_leaf=is_clock,
        )
        return put, out

    clients, outs = jax.lax.scan(one_block, clients, ids.reshape(-1, block))
    return clients, ids, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)
