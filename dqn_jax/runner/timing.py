"""Timing that can be compared: contestants take turns, in one process or in one for each of two checkouts.

Not here: what is timed.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dqn_jax import runtime
from dqn_jax.config import InputError, Record, TrainingError


def on_one_core(measure: Callable[..., Record], *args: Any) -> Record:
    """Calls `measure(*args)` in a separate process, with one device and, where the system can, one core."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn, initializer=keep_to_one_core) as process:
        return process.submit(measure, *args).result()


def keep_to_one_core() -> None:
    """Pins this process to one core, before jax starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    runtime.setup(1)


@dataclasses.dataclass
class Contestant:
    """A state that is stepped: every turn continues where the last one ended."""

    state: Any
    step: Callable[[Any], tuple[Any, Any]]
    info: Any = None
    """What the last turn gave beside the state."""

    def turn(self) -> float:
        """Times one call, in seconds."""
        import jax

        began = time.perf_counter()
        self.state, self.info = self.step(self.state)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


class Turn(Protocol):
    """Anything that can be timed."""

    def turn(self) -> float:
        """Times one call, in seconds."""


def take_turns(contestants: Mapping[Any, Turn], turns: int) -> dict[Any, list[float]]:
    """Times every turn, in seconds; contestants alternate, so a slow phase slows them all. The first turn compiles."""
    for contestant in contestants.values():
        contestant.turn()
    rounds = [{name: contestant.turn() for name, contestant in contestants.items()} for _ in range(turns)]
    return {name: [seconds[name] for seconds in rounds] for name in contestants}


def serve(contestants: Mapping[str, Callable[[], Turn]]) -> None:
    """Gives a turn to each contestant that a line of stdin names, and prints its seconds, until stdin ends.

    The first line printed is a JSON list of their names. A contestant is made when it is first named.
    """
    print(json.dumps(list(contestants)), flush=True)
    made: dict[str, Turn] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in made:
            made[name] = contestants[name]()
        print(made[name].turn(), flush=True)


class Remote:
    """A contestant served by another process, which waits between its turns."""

    def __init__(self, process: subprocess.Popen[str], name: str) -> None:
        self.process, self.name = process, name

    def turn(self) -> float:
        """Times one call in the other process, in seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(self.name, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise TrainingError(
                f"the process that serves {self.name!r} ended with status {self.process.wait()}: see its message"
            )
        return float(answer)


@contextlib.contextmanager
def served(checkout: Path, script: str, *args: str) -> Iterator[dict[str, Remote]]:
    """Starts a checkout's script, which must `serve`, with that checkout's package, and ends it afterwards.

    Args:
      checkout: directory with the package and the script.
      script: name of the script, which is somewhere below its `experiments`.
      args: arguments of the script.

    Yields:
      Its contestants by name.

    Raises:
      InputError: where the checkout has no such script, or one that serves nothing.
    """
    path = next((checkout / "experiments").rglob(script), None)
    if path is None:
        raise InputError(f"against is {checkout}, which has no {script}: give the directory of a checkout")
    command = [sys.executable, str(path.resolve()), *args]
    env = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        names = process.stdout.readline()
        if not names.startswith("["):
            process.kill()
            raise InputError(f"{path} serves no contestants: give a checkout that is not older than this option")
        # Leaving closes its stdin, and then it ends.
        yield {name: Remote(process, name) for name in json.loads(names)}


def median_ratio(above: list[float], below: list[float]) -> float:
    """Computes the median over the turns of the ratio within a turn."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def conclude(results: Record, out: Path | None, missed: Sequence[str] = (), check: bool = False) -> None:
    """Ends a benchmark: prints its results but for nested ones, writes all to a JSON file, and names missed targets.

    Args:
      results: named numbers, and where they come from.
      out: the file; None writes none.
      missed: a sentence for each target that is missed.
      check: whether to end the process with status 1 where one is.
    """
    print_table({name: value for name, value in results.items() if not isinstance(value, dict)})
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=2) + "\n")
    for sentence in missed:
        print(sentence, file=sys.stderr)
    if check and missed:
        sys.exit(1)


def print_table(results: Record) -> None:
    """Prints one row per key."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measured", "value")
    for name, value in results.items():
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
