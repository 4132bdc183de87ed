"""Memory that a run's replays take, and that is free. Not here: what they are made of."""

from pathlib import Path

import jax

from dqn_jax.config import require

GIB = 2**30
SHOWN = GIB // 10
"""Bytes from which a run says how many its replays take."""
_MEMINFO = Path("/proc/meminfo")


def check_replays(num_bytes: int, free: int | None) -> None:
    """Refuses replays that are larger than the memory that is free, where that is known.

    Raises:
      InputError: naming both sizes.
    """
    require(
        free is None or num_bytes <= free,
        f"agent.replay_capacity is too large: with all seeds, clients and workers it takes {num_bytes / GIB:.2f} GiB, and "
        f"{(free or 0) / GIB:.2f} GiB are free",
    )


def free_bytes() -> int | None:
    """Returns the bytes that are free on this process's devices, or on a machine that they are cores of; None if not known."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return sum(one["bytes_limit"] - one["bytes_in_use"] for one in stats if one)
    if jax.default_backend() != "cpu" or not _MEMINFO.exists():
        return None
    sizes = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    return 1024 * int(sizes["MemAvailable"].split()[0]) if "MemAvailable" in sizes else None
