"""Kills and signals runs at random moments, damages their checkpoints, and proves that nothing of it changes what comes out.

python tests/faults.py --out experiments/results/faults.json
python tests/faults.py --only federated --trial 3

For every driver whose resumed run is bitwise the one that nothing happened to. The program is `laws/killed_run.py`, its budget
some times as large. A trial is one run directory:

- kills (trials from 0) and signals (from 100): a process is started and hit after a random time, and so is each that resumes
  it, until one is done before or enough were hit, and the next is left alone. One in four times counts from the start of the
  process, the rest from when it is ready to train: else most would hit imports. Of several hosts one of the launcher's
  processes is hit; a signal may go to the launcher as well.
- damages (from 200): a copy of the finished run goes back to one of its checkpoints, with up to two older ones; one bit of a
  file of theirs is flipped, and the copy is resumed. All those of a driver are in one process.

Then the directory must be that of the reference, to the last bit; the reference is one of two that are compared first. Times
are fractions, by the seed, of what the reference took: a trial that is repeated is hit at nearly the same moments, no more.

Runs of workers on threads and Ray are not compared to the bit: `laws/worker_faults.py` says what is done to them, and what must
come of it.

Not here: the points at which a kill could do most harm (laws 8 and 9 have them by name); a SIGKILL of the launcher; damages to
several hosts' shards (law 9).
"""

import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import tyro
from hurry import hurry
from laws.damaged_run import damage_all
from laws.hit_run import Trial
from laws.long_run import DRIVERS, Reference, make_reference, train
from laws.worker_faults import FAULTS, WorkerTrial, train_with_workers
from rich.console import Console
from rich.table import Table

from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.records import provenance

WANTED = {"kill": 20, "signal": 4, "damage": 50}
"""Of each driver."""
WANTED_OF_WORKERS = {"threads": 10, "ray": 3}
"""Of each fault."""
WANTED_OF_HOSTS = {"kill": 5, "signal": 4, "damage": 0}
FIRST = {"kill": 0, "signal": 100, "damage": 200}
"""Numbers of the trials."""
HITS_OF_ONE_RUN = 5
"""At most."""
SIDE_BY_SIDE = 2
"""Trials at a time."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try and where to write what came of it."""

    out: Path | None = None
    """JSON file to write."""
    seed: int = 0
    """Of all that is random."""
    only: Literal["hosts", "federated", "server", "data_parallel", "threads", "ray"] | None = None
    """One driver, or the workers of one backend; None for all."""
    trial: int | None = None
    """One trial of each driver, or of each fault of workers; None for all."""
    length: float = 1.0
    """Times the usual budgets: longer runs are hit less often while they start."""


def main(options: Options) -> int:
    """Tries everything, prints a table, writes the JSON file; returns the exit status."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As a shell starts what runs behind its back; the processes below would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["JAX_PLATFORMS"] = "cpu"
    hurry()
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    drivers = [driver for driver in DRIVERS if options.only in (driver, None)]
    backends = [backend for backend in WANTED_OF_WORKERS if options.only in (backend, None)]
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        references = list(pool.map(lambda driver: make_reference(driver, work, options.length), drivers))
        tasks = [(reference, fault) for fault in FIRST for reference in references]
        tried = list(pool.map(lambda task: try_all(task[0], task[1], options, work), tasks))
        tried_workers = list(pool.map(lambda backend: try_workers(backend, options, work), backends))
    results: dict[str, Any] = {
        reference.driver: {"seconds": reference.seconds, "training_seconds": reference.training_seconds}
        for reference in references
    }
    for (reference, fault), (counts, _) in zip(tasks, tried, strict=True):
        results[reference.driver][fault] = dict(sorted(counts.items()))
    for backend, (counts, _) in zip(backends, tried_workers, strict=True):
        results[backend] = {fault: {} for fault in FIRST} | {"worker": dict(sorted(counts.items()))}
    wrong = [sentence for _, sentences in [*tried, *tried_workers] for sentence in sentences]
    facts: dict[str, Any] = {"seed": options.seed, "length": options.length, "minutes": (time.monotonic() - began) / 60}
    facts |= {"differences": len(wrong), "wrong": wrong}
    print_results(results, facts)
    if options.out is not None:
        options.out.write_text(json.dumps(provenance() | facts | {"drivers": results}, indent=2) + "\n")
    if not wrong:
        shutil.rmtree(work)
        return 0
    print(f"run directories that differ, and what their processes said, are kept in {work}")
    return 1


def try_all(reference: Reference, fault: str, options: Options, work: Path) -> tuple[collections.Counter, list[str]]:
    """All trials of one fault, or the one that is asked for: (what was counted, a sentence about each that went wrong)."""
    wanted = (WANTED_OF_HOSTS if reference.driver == "hosts" else WANTED)[fault]
    # More than are needed to hit so many, unless all goes wrong.
    numbers = range(FIRST[fault], FIRST[fault] + (wanted if fault == "damage" else 3 * wanted))
    if options.trial is not None:
        numbers = range(options.trial, options.trial + (options.trial in numbers))
    counts: collections.Counter = collections.Counter()
    if fault == "damage" and numbers:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
            return process.submit(damage_all, reference, numbers, options.seed, work).result()
    signals = [signal.SIGKILL] if fault == "kill" else [signal.SIGTERM, signal.SIGINT]
    wrong: list[str] = []
    for number in numbers:
        if counts["hit"] == wanted:
            break
        hits = min(HITS_OF_ONE_RUN, wanted - counts["hit"])
        wrong += Trial(reference, number, options.seed, work, counts).run(hits, signals)
    return counts, wrong


def try_workers(backend: str, options: Options, work: Path) -> tuple[collections.Counter, list[str]]:
    """All trials of a backend's faults, or the one that is asked for: as `try_all`."""
    counts: collections.Counter = collections.Counter()
    numbers = range(WANTED_OF_WORKERS[backend]) if options.trial is None else [options.trial]
    wrong = [
        sentence
        for fault in FAULTS[backend]
        for number in numbers
        for sentence in WorkerTrial(backend, fault, number, options.seed, work, counts).run()
    ]
    return counts, wrong


def print_results(results: dict[str, Any], facts: dict[str, Any]) -> None:
    """Prints a row for each number and a column for each driver, then what is wrong."""
    table = Table("", *results)
    for fault in (*FIRST, "worker"):
        for name in sorted({name for of_driver in results.values() for name in of_driver.get(fault, {})}):
            cells = (str(of_driver.get(fault, {}).get(name, "")) for of_driver in results.values())
            table.add_row(f"{fault}: {name}", *cells)
    Console().print(table)
    print(f"{facts['minutes']:.1f} minutes, {facts['differences']} differences", *facts["wrong"], sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        sys.exit(exit_code_of(lambda: train(*sys.argv[2:])))
    if sys.argv[1:2] == ["workers"]:
        sys.exit(exit_code_of(lambda: train_with_workers(*sys.argv[2:])))
    sys.exit(main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0])))
