"""How a federation lies on devices, and comes back to the host: each has repetitions of its own, or clients of all of them.

Not here: what runs there.

Shapes: D devices, L repetitions on a device, S in all, n clients on a device, N in all.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from dqn_jax.config import check_divides
from dqn_jax.envs import EnvParams
from dqn_jax.mapping import from_devices, row, to_devices
from dqn_jax.types import Tree


class Layout(NamedTuple):
    """One of the two ways."""

    shared: bool
    """Whether devices share every repetition, so that sums over clients cross them."""
    rows: Callable[[Sequence[int], EnvParams], tuple[np.ndarray, EnvParams, np.ndarray]]
    """(seeds [S], leaves [S, N, ...]) -> (seeds [D, L], leaves [D, L, n, ...], numbers of clients [D, n])."""
    of_server: Callable[[Tree], Tree]
    """Brings leaves [D, L, ...] of the server, or of an info, to the host as [S, ...]."""
    of_clients: Callable[[Tree], Tree]
    """Brings leaves [D, L, n, ...] of the clients to the host as [S, N, ...]."""


def make_layout(num_seeds: int, num_clients: int, num_devices: int, seeds_over_devices: bool) -> Layout:
    """Builds the layout.

    Raises:
      InputError: where what is divided does not divide over the devices.
    """
    if seeds_over_devices:
        check_divides("num_seeds", num_seeds, num_devices)
        return _repetitions_apart(num_clients, num_devices)
    check_divides("federated.num_clients", num_clients, num_devices)
    return _clients_apart(num_clients, num_devices)


def _repetitions_apart(num_clients: int, num_devices: int) -> Layout:
    def rows(seeds: Sequence[int], env_params: EnvParams) -> tuple[np.ndarray, EnvParams, np.ndarray]:
        numbers = np.tile(np.arange(num_clients, dtype=np.uint32), (num_devices, 1))
        return to_devices(np.array(seeds, np.uint32), num_devices), to_devices(env_params, num_devices), numbers

    return Layout(False, rows, from_devices, from_devices)


def _clients_apart(num_clients: int, num_devices: int) -> Layout:
    def rows(seeds: Sequence[int], env_params: EnvParams) -> tuple[np.ndarray, EnvParams, np.ndarray]:
        numbers = np.arange(num_clients, dtype=np.uint32).reshape(num_devices, -1)
        return np.tile(np.array(seeds, np.uint32), (num_devices, 1)), jax.tree.map(split, env_params), numbers

    def split(leaf: Tree) -> np.ndarray:
        """[S, N, ...] as [D, S, N / D, ...]."""
        x = np.asarray(leaf)
        return np.moveaxis(x.reshape(len(x), num_devices, -1, *x.shape[2:]), 1, 0)

    def join(leaf: Tree) -> np.ndarray:
        """The inverse of `split`."""
        x = np.moveaxis(np.asarray(leaf), 0, 1)
        return x.reshape(len(x), -1, *x.shape[3:])

    return Layout(
        shared=True,
        rows=rows,
        # All devices have the same.
        of_server=lambda tree: jax.tree.map(lambda leaf: np.asarray(row(leaf, 0)), tree),
        of_clients=lambda tree: jax.tree.map(join, tree),
    )
