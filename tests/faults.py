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

Not here: the points at which a kill could do most harm (laws 8 and 9 have them by name); workers on threads and Ray, whose runs
are not resumed to the bit; a SIGKILL of the launcher, whose processes then go on; damages to several hosts' shards (law 9).
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import tyro
from hurry import hurry
from laws import killed_run
from laws.run_files import differences, saved
from rich.console import Console
from rich.table import Table

from dqn_jax import runtime
from dqn_jax.runner.checkpoint import MANIFEST
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.records import CHECKPOINTS, CONFIG, METRICS, SUMMARY, provenance

# Driver: (its config in killed_run.py, how many times that budget). The longest first.
DRIVERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "hosts": (killed_run.hosts_config_of, 3),
    "federated": (killed_run.federated_config_of, 20),
    "server": (killed_run.server_config_of, 10),
    "data_parallel": (killed_run.config_of, 15),
}
WANTED = {"kill": 20, "signal": 4, "damage": 50}
"""Of each driver."""
WANTED_OF_HOSTS = {"kill": 5, "signal": 4, "damage": 0}
FIRST = {"kill": 0, "signal": 100, "damage": 200}
"""Numbers of the trials."""
HITS_OF_ONE_RUN = 5
"""At most."""
FROM_START = 0.25
"""The part of them whose time counts from the start of the process."""
PAST = 1.1
"""Times what the reference took: the latest moment to be hit."""
LIMIT_SECONDS = 300
"""A process that takes longer hangs."""
LAST_CHUNKS = 10
"""A signal that comes in them may find nothing left to stop."""
SIDE_BY_SIDE = 2
"""Trials at a time."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to try and where to write what came of it."""

    out: Path | None = None
    """JSON file to write."""
    seed: int = 0
    """Of all that is random."""
    only: Literal["hosts", "federated", "server", "data_parallel"] | None = None
    """One driver; None for all."""
    trial: int | None = None
    """One trial of each driver; None for all."""
    length: float = 1.0
    """Times the usual budgets: longer runs are hit less often while they start."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A run that nothing happened to."""

    driver: str
    run_dir: Path
    times_longer: int
    seconds: float = 0.0
    """What it took with compiled programs at hand."""
    training_seconds: float = 0.0
    """The part of it after the file that is written when all is ready to train."""


def main(options: Options) -> int:
    """Tries everything, prints a table, writes the JSON file; returns the exit status."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As a shell starts what runs behind its back; the processes below would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["JAX_PLATFORMS"] = "cpu"
    hurry()
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="faults-"))
    drivers = [options.only] if options.only else list(DRIVERS)
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        references = list(pool.map(lambda driver: make_reference(driver, work, options.length), drivers))
        tasks = [(reference, fault) for fault in FIRST for reference in references]
        tried = list(pool.map(lambda task: try_all(task[0], task[1], options, work), tasks))
    results: dict[str, Any] = {
        reference.driver: {"seconds": reference.seconds, "training_seconds": reference.training_seconds}
        for reference in references
    }
    for (reference, fault), (counts, _) in zip(tasks, tried, strict=True):
        results[reference.driver][fault] = dict(sorted(counts.items()))
    wrong = [sentence for _, sentences in tried for sentence in sentences]
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


def print_results(results: dict[str, Any], facts: dict[str, Any]) -> None:
    """Prints a row for each number and a column for each driver, then what is wrong."""
    table = Table("", *results)
    for fault in FIRST:
        for name in sorted({name for of_driver in results.values() for name in of_driver[fault]}):
            table.add_row(f"{fault}: {name}", *(str(of_driver[fault].get(name, "")) for of_driver in results.values()))
    Console().print(table)
    print(f"{facts['minutes']:.1f} minutes, {facts['differences']} differences", *facts["wrong"], sep="\n")


# Processes.


def start(reference: Reference, run_dir: Path) -> subprocess.Popen:
    """Starts or resumes a run in a process of its own, or in two and their launcher."""
    launcher = ["-m", "dqn_jax.runner.launch", "--num-processes", "2"] if reference.driver == "hosts" else []
    script = [__file__, "train", reference.driver, str(reference.times_longer), str(run_dir)]
    with open(run_dir.with_suffix(".log"), "a") as log:
        return subprocess.Popen([sys.executable, *launcher, *script], stdout=log, stderr=log)


def train(driver: str, times_longer: str, run_dir: str, *flags: str) -> None:
    """What these processes do: killed_run.py with a larger budget."""
    make = functools.partial(config_of, driver, int(times_longer))
    setattr(killed_run, DRIVERS[driver][0].__name__, make)
    sys.argv = [sys.argv[0], run_dir, "", driver, *flags]
    killed_run.main()


def config_of(driver: str, times_longer: int, run_dir: Path) -> Any:
    """The driver's config with so many times the budget."""
    config = DRIVERS[driver][0](run_dir)
    budget = "rounds" if driver == "federated" else "total_frames"
    return dataclasses.replace(config, **{budget: times_longer * config.budget})


def end_of(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit status, None if it is not done by then."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def last_end_of(process: subprocess.Popen) -> int | None:
    """The exit status; None if it hung, and was ended."""
    status = end_of(process, LIMIT_SECONDS)
    if status is None:
        for pid in [*children_of(process), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    return status


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits until a condition holds, or the process is done or hangs."""
    limit = time.monotonic() + LIMIT_SECONDS
    while not condition() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)


def children_of(process: subprocess.Popen) -> list[int]:
    """Ids of the processes that a launcher has started."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def make_reference(driver: str, work: Path, length: float) -> Reference:
    """Runs two that nothing happens to: the first one compiles, the second one's time counts."""
    times_longer = max(1, round(DRIVERS[driver][1] * length))
    first, second = (work / f"{driver}-reference-{number}" for number in (1, 2))
    for run_dir in (first, second):
        began = time.time()
        status = last_end_of(start(Reference(driver, run_dir, times_longer), run_dir))
        assert status == 0, run_dir.with_suffix(".log").read_text()
    ended = time.time()
    assert compare(first, second) == [], f"two runs of {driver} are not the same: there is nothing to compare with"
    return Reference(driver, second, times_longer, ended - began, ended - changed_at(second / CONFIG))


def compare(run_dir: Path, other: Path) -> list[str]:
    """Names of all that differs, but for which checkpoints are left: that depends on where a run was stopped."""
    try:
        return sorted(differences(run_dir, other) - {CHECKPOINTS})
    except (AssertionError, KeyError, OSError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]


# Kills and signals.


class Trial:
    """One run directory, whose processes are hit one after the other."""

    def __init__(self, reference: Reference, number: int, seed: int, work: Path, counts: collections.Counter) -> None:
        self.reference, self.counts = reference, counts
        self.name = f"{reference.driver}, seed {seed}, trial {number}"
        self.rng = random.Random(self.name)
        self.run_dir = work / f"{reference.driver}-{number}"
        self.history: list[str] = []

    def run(self, hits: int, signals: Sequence[signal.Signals]) -> list[str]:
        """Hits the run until it is done, at most so many times; returns what is wrong then."""
        wrong: list[str] = []
        status = None
        while status != 0 and not wrong:
            self.counts["processes that resumed"] += bool(self.history)
            status, allowed = self._process(self.rng.choice(signals) if len(self.history) < hits else None)
            if status not in allowed:
                wrong = ["a process hung" if status is None else f"a process ended with status {status}"]
        self.counts["runs compared"] += 1
        wrong = wrong or compare(self.run_dir, self.reference.run_dir)
        if not wrong:
            shutil.rmtree(self.run_dir)
            return []
        return [f"{self.name}: {', '.join(wrong)}, after {', '.join(self.history) or 'nothing'}"]

    def _process(self, signum: signal.Signals | None) -> tuple[int | None, tuple[int, ...]]:
        """(exit status, those that it may have) of the next process, hit by a signal or not."""
        began = time.time()
        process = start(self.reference, self.run_dir)
        if signum is None:
            return last_end_of(process), (0,)
        from_start, fraction = self.rng.random() < FROM_START, self.rng.uniform(0, PAST)
        if not from_start:
            wait_for(lambda: changed_at(self.run_dir / CONFIG) > began, process)
        status = end_of(process, fraction * (self.reference.seconds if from_start else self.reference.training_seconds))
        if status is not None:
            return status, (0,)
        target = self._target(process, signum)
        phase, delay = self._phase(began), time.time() - began
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, signum)
        status = last_end_of(process)
        if status == 0 and signum == signal.SIGKILL:
            return status, (0,)
        if signum == signal.SIGKILL:
            # Nothing has happened since, so this is exact.
            phase = self._phase(began)
        self.history.append(f"{signum.name} at {delay:.2f} s ({phase})")
        self.counts.update(["hit", f"hit while {phase}", f"status {status} after {signum.name}"])
        self.counts["hit before the first checkpoint"] += not saved(self.run_dir)
        late = (0,) if phase == "ending" else ()
        lost = (1, 128 + signal.SIGABRT) if self.reference.driver == "hosts" and signum == signal.SIGKILL else ()
        return status, (-signum, 128 + signum, *late, *lost)

    def _target(self, process: subprocess.Popen, signum: signal.Signals) -> int:
        """Whom to send it: of several hosts any one, or the launcher if it is no SIGKILL."""
        if self.reference.driver != "hosts":
            return process.pid
        wait_for(lambda: children_of(process) != [], process)
        children = children_of(process)
        return self.rng.choice(children if children and signum == signal.SIGKILL else [process.pid, *children])

    def _phase(self, began: float) -> str:
        """What the newest process was doing, by the files that it has written."""
        config, metrics = (changed_at(self.run_dir / name) for name in (CONFIG, METRICS))
        if config < began and saved(self.run_dir)[-1:] != saved(self.reference.run_dir)[-1:]:
            return "starting"
        if lines_of(self.run_dir) > lines_of(self.reference.run_dir) - LAST_CHUNKS:
            return "ending"
        if any(changed_at(path) > began for path in self.run_dir.glob(f"{CHECKPOINTS}/.writing_*")):
            return "saving"
        return "training" if metrics > config else "compiling"


def changed_at(path: Path) -> float:
    """When a file was changed last, 0 where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def lines_of(run_dir: Path) -> int:
    """How many chunks a run has done."""
    return (run_dir / METRICS).read_bytes().count(b"\n")


# Damages.


@dataclasses.dataclass(frozen=True)
class Damage:
    """One bit that is not what it was."""

    path: Path
    offset: int
    bit: int
    checkpoints: list[Path]
    """Those that the copy has, the newest last."""
    harmless: bool
    """Whether the file still says the same: E for e in a number, or a digit beyond its precision."""

    def outcome(self, status: int, said: str, reference: Reference) -> tuple[str, list[str]]:
        """(what came of it, what is wrong with that)."""
        newest = self.checkpoints[-1]
        in_the_way, named = newest == self.path.parent, f"{newest.name} is damaged" in said
        if status == 2:
            right = in_the_way and not self.harmless and named and len(self.checkpoints) == 1 and said.count("\n") == 1
            return "refused, none was left", [] if right else [f"refused: {said}"]
        if status != 0:
            return "failed", [f"status {status}: {said.splitlines()[-1]}"]
        wrong = compare(newest.parent.parent, reference.run_dir)
        if named != (in_the_way and not self.harmless):
            wrong.append("the damage is not named" if in_the_way else "what is whole is called damaged")
        if named:
            return "named, resumed from the one before", wrong
        return "harmless: reads as the same" if in_the_way else "in an older one, not read", wrong


def damage_all(reference: Reference, numbers: Sequence[int], seed: int, work: Path) -> tuple[collections.Counter, list[str]]:
    """Damages and resumes a copy of the reference for each number; returns as `try_all`."""
    config = config_of(reference.driver, reference.times_longer, reference.run_dir)
    runtime.setup(config.num_devices if reference.driver == "data_parallel" else 4)
    from dqn_jax.distributed import data_parallel, parameter_server
    from dqn_jax.federated import driver as federated
    from dqn_jax.runner import loop

    drivers: dict[str, Any] = {"federated": federated, "server": parameter_server, "data_parallel": data_parallel}
    driver, evaluator = drivers[reference.driver].from_config(config)
    counts: collections.Counter = collections.Counter()
    wrong = []
    for number in numbers:
        name = f"{reference.driver}, seed {seed}, trial {number}"
        copy = work / f"{reference.driver}-{number}"
        damage = damage_copy(reference, copy, random.Random(name))
        again = functools.partial(loop.run, driver, dataclasses.replace(config, run_dir=copy), evaluator)
        # What is drawn is not compared, and takes longer than all the rest.
        with mock.patch.object(loop, "draw_run"):
            status, said = quietly(again)
        outcome, found = damage.outcome(status, said, reference)
        counts.update(["resumed", outcome])
        if found:
            where = damage.path.relative_to(copy)
            wrong.append(f"{name}: {', '.join(found)}, after bit {damage.bit} of byte {damage.offset} of {where} was flipped")
        else:
            shutil.rmtree(copy)
    return counts, wrong


def quietly(run: Callable[[], Any]) -> tuple[int, str]:
    """(the exit status that a script would have, what it would have printed)."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return exit_code_of(run), said.getvalue()
        except Exception:
            traceback.print_exc()
            return 1, said.getvalue()


def damage_copy(reference: Reference, copy: Path, rng: random.Random) -> Damage:
    """Copies the reference as it was at one of its checkpoints, with up to two older ones, and flips one bit of them."""
    shutil.copytree(reference.run_dir, copy)
    (copy / SUMMARY).unlink()
    steps = sorted((copy / CHECKPOINTS).glob("step_*"))
    newest = rng.randrange(len(steps))
    left = steps[max(0, newest - rng.randrange(3)) : newest + 1]
    for step in set(steps) - set(left):
        shutil.rmtree(step)
    path = rng.choice(sorted(file for step in left for file in step.iterdir()))
    before = path.read_bytes()
    offset, bit = rng.randrange(len(before)), rng.randrange(8)
    after = bytearray(before)
    after[offset] ^= 1 << bit
    path.write_bytes(after)
    return Damage(path, offset, bit, left, path.name == MANIFEST and reads_as(after) == reads_as(before))


def reads_as(data: bytes | bytearray) -> Any:
    """What a manifest says; None if it cannot be read."""
    with contextlib.suppress(ValueError):
        return json.loads(data)
    return None


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        sys.exit(exit_code_of(lambda: train(*sys.argv[2:])))
    sys.exit(main(tyro.cli(Options, description=(__doc__ or "").split("\n")[0])))
