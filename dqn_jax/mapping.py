"""Maps functions over seeds, clients, workers and replicas: `vmap`, `pmap`, or one inside the other, by one helper.

Leading axes are checked here, shards are placed here, and values cross between host and devices here. Not here: what is mapped.

Devices may belong to several processes that run the same program (`runner.hosts`). Each process then holds the rows of its
own devices, and a collective is over all of them.

Shapes: D devices, S lanes of a `vmap`.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dqn_jax.config import InputError, TrainingError
from dqn_jax.types import Clock, Tree

# Random streams of a run that belong to no learner: none has these numbers.
EVALUATIONS, PLANS, ENVIRONMENTS = (np.uint32(2**32 - 1 - n) for n in range(3))


def lane_axes(tree: chex.ArrayTree, share_clocks: bool = True) -> Tree:
    """Returns the `vmap` axes of a state: 0 for each leaf, None for a `Clock`, unless the lanes' clocks differ."""
    clock_axis = None if share_clocks else 0
    return jax.tree.map(lambda x: clock_axis if isinstance(x, Clock) else 0, tree, is_leaf=lambda x: isinstance(x, Clock))


def lane(tree: chex.ArrayTree, index: int) -> chex.ArrayTree:
    """Returns one lane of a state whose lanes share their clocks."""

    def pick(x: Tree) -> Tree:
        return x if isinstance(x, Clock) else x[index]

    return jax.tree.map(pick, tree, is_leaf=lambda x: isinstance(x, Clock))


def stream_key(seed: jax.Array | int, index: jax.Array | np.uint32 | int = 0) -> jax.Array:
    """Returns the key of all random numbers of learner `index`; a single learner is number 0."""
    return jax.random.fold_in(jax.random.key(seed), index)


def evaluation_key(seed: jax.Array | int, done: jax.Array | int) -> jax.Array:
    """Returns the key of the evaluation after `done` frames or rounds."""
    return jax.random.fold_in(stream_key(seed, EVALUATIONS), done)


def over(
    fn: Callable,
    axis_name: str | None = None,
    devices: Sequence[jax.Device] | None = None,
    in_axes: Tree = 0,
    out_axes: Tree = 0,
    donate: bool = False,
) -> Callable:
    """Maps a function over the leading axis of its arguments.

    Args:
      fn: function of positional arguments.
      axis_name: name that collectives inside `fn` use.
      devices: one device per row (`pmap`), those of all processes in the same order in each; None maps on one device
        (`vmap`), the like-for-like reference for a `pmap`.
      in_axes: as for `jax.vmap`; only with `devices=None`.
      out_axes: as for `jax.vmap`; only with `devices=None`.
      donate: whether the first argument's buffers may be reused; only with `devices`.

    Returns:
      The mapped function. Over devices it raises ValueError, naming the leaf, for a leading axis that is not their number.
    """
    if devices is None:
        if donate:
            raise ValueError("donate is True without devices: buffers are given away by a `pmap` or `jit` alone")
        return jax.vmap(fn, in_axes=in_axes, out_axes=out_axes, axis_name=axis_name)
    if in_axes != 0 or out_axes != 0:
        raise ValueError("in_axes and out_axes are for one device: over devices every leaf has its leading axis")
    mapped = jax.pmap(fn, axis_name=axis_name, devices=devices, donate_argnums=(0,) if donate else ())
    num_rows = len(own_rows(devices))

    def checked(*args: chex.ArrayTree) -> Tree:
        _check_leading_axes(args, num_rows)
        return mapped(*args)

    return checked


def local_devices(count: int | None) -> list[jax.Device]:
    """Returns the first `count` local devices, or all of them.

    Raises:
      InputError: where there are fewer.
    """
    devices = jax.local_devices()
    if count is not None and count > len(devices):
        kind = devices[0].platform
        raise InputError(
            f"num_devices is {count}, and this process has {len(devices)} {kind} device(s): ask for at most that many"
        )
    return devices[:count]


def devices_for(count: int | None, num_seeds: int) -> list[jax.Device]:
    """Returns the first `count` local devices; for None as many as `num_seeds` repetitions divide over."""
    devices = local_devices(count)
    if count is not None:
        return devices
    return devices[: max(n for n in range(1, len(devices) + 1) if num_seeds % n == 0)]


def names_of(devices: Sequence[jax.Device]) -> tuple[str, ...]:
    """Describes devices to users: platform, number and kind."""
    return tuple(f"{device.platform}:{device.id} {device.device_kind}" for device in devices)


def devices_of_all(count: int | None) -> list[jax.Device]:
    """Returns the first `count` devices of each process, or all of them, in the order of the processes.

    Raises:
      InputError: where a process has fewer, or more than another.
    """
    local_devices(count)
    of_each = [jax.local_devices(process) for process in range(jax.process_count())]
    numbers = [len(devices) for devices in of_each]
    if len(set(numbers)) > 1:
        raise InputError(f"num_devices: the processes have {numbers} device(s): start each with the same number")
    return [device for devices in of_each for device in devices[:count]]


def own_rows(devices: Sequence[jax.Device]) -> np.ndarray:
    """Returns the indices of the devices that belong to this process."""
    return np.flatnonzero([device.process_index == jax.process_index() for device in devices])


def place(tree: chex.ArrayTree, devices: Sequence[jax.Device]) -> chex.ArrayTree:
    """Puts row d of every leaf [D, ...] on device d. Unplaced arguments of a `pmap` would not be donated.

    Every process gives all the rows and keeps those of its own devices.
    """
    _check_leading_axes(tree, len(devices))
    own = own_rows(devices)
    if len(own) < len(devices):
        tree = jax.tree.map(lambda x: x[own], tree)
    return jax.device_put(tree, NamedSharding(Mesh(np.array(devices)[own], ("rows",)), PartitionSpec("rows")))


def to_devices(tree: chex.ArrayTree, num_devices: int) -> chex.ArrayTree:
    """Divides rows evenly: leaves [S, ...] of the host as [D, S / D, ...]."""
    return jax.tree.map(lambda x: np.reshape(x, (num_devices, -1, *np.shape(x)[1:])), tree)


def from_devices(tree: chex.ArrayTree) -> chex.ArrayTree:
    """Inverts `to_devices`: leaves [D, L, ...] as [S, ...] of the host."""
    return jax.tree.map(lambda x: np.concatenate(np.asarray(x)), tree)


def row(tree: chex.ArrayTree, index: int) -> chex.ArrayTree:
    """Returns own row `index` of every leaf, from the device that holds it; plain indexing would gather from all."""
    return jax.tree.map(lambda x: x.addressable_shards[index].data[0], tree)


def make_gather(devices: Sequence[jax.Device]) -> Callable[[chex.ArrayTree], chex.ArrayTree]:
    """Makes the function that brings every row of a mapped tree [D, ...] to the host, those of other processes included.

    All processes must call it at the same point.
    """
    if len(own_rows(devices)) == len(devices):
        return lambda tree: jax.tree.map(np.asarray, tree)
    gathered = over(lambda tree: jax.lax.all_gather(tree, "rows"), "rows", devices)
    return lambda tree: jax.tree.map(np.asarray, row(gathered(tree), 0))


def check_replicas(tree: chex.ArrayTree) -> None:
    """Raises TrainingError, naming the leaf, unless every own row of every leaf is the same to the last bit."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        values = np.asarray(leaf)
        rows = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
        unequal = [device for device in range(1, len(rows)) if not np.array_equal(rows[0], rows[device])]
        if unequal:
            name = jax.tree_util.keystr(path)
            raise TrainingError(
                f"replicas differ in {name}: device row(s) {unequal} are not bitwise equal to row 0: an update was not averaged"
            )


def _check_leading_axes(tree: chex.ArrayTree, size: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not leaf.shape or leaf.shape[0] != size:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"leaf {name} has shape {leaf.shape}: its leading axis must be the number of devices, {size}")
