"""Timing that can be compared: contestants take turns in one process. Not here: what is timed."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

from dqn_jax import runtime


def on_one_core(measure: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """`measure(*args)` in a process of its own, with one device and, where the system can, one core."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn, initializer=keep_to_one_core) as process:
        return process.submit(measure, *args).result()


def keep_to_one_core() -> None:
    """Before jax starts its threads, which inherit it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    runtime.setup(1)


@dataclasses.dataclass
class Contestant:
    """A state that is stepped: every turn continues where the last one ended."""

    state: Any
    step: Callable[[Any], tuple[Any, Any]]

    def turn(self) -> float:
        """Seconds of one call."""
        import jax

        began = time.perf_counter()
        self.state, _ = self.step(self.state)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def take_turns(contestants: dict[Any, Contestant], turns: int) -> dict[Any, list[float]]:
    """Seconds of every turn; contestants alternate, so a machine that slows down slows them all. The first turn compiles."""
    for contestant in contestants.values():
        contestant.turn()
    rounds = [{name: contestant.turn() for name, contestant in contestants.items()} for _ in range(turns)]
    return {name: [seconds[name] for seconds in rounds] for name in contestants}


def median_ratio(above: list[float], below: list[float]) -> float:
    """Median over the turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def print_table(results: dict[str, Any]) -> None:
    """Prints one row per key."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", "value")
    for name, value in results.items():
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
