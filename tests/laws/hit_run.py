"""Runs whose processes are killed, or sent signals, at random moments of a seed, and resumed until they are done.

Times are fractions of what the reference took, so a trial that is repeated is hit at nearly the same moments, no more.
"""

import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from laws.long_run import Reference, changed_at, children_of, compare, end_of, last_end_of, start, wait_for
from laws.run_files import saved

from dqn_jax.runner.config_file import CONFIG
from dqn_jax.runner.records import CHECKPOINTS, METRICS

FROM_START = 0.25
"""The part of them whose time counts from the start of the process."""
PAST = 1.1
"""Times what the reference took: the latest moment to be hit."""
LAST_CHUNKS = 10
"""A signal that comes in them may find nothing left to stop."""


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
            # In turn: few are sent, and each kind should be among them.
            signum = signals[len(self.history) % len(signals)] if len(self.history) < hits else None
            status, allowed = self._process(signum)
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


def lines_of(run_dir: Path) -> int:
    """How many chunks a run has done."""
    return (run_dir / METRICS).read_bytes().count(b"\n")
