"""Runs of three workers behind a barrier, on threads and Ray, one of which fails, freezes or is killed at a random push.

- threads: a task of one of them raises, or waits for ever.
- ray: the process of one of them is killed, or stopped (SIGSTOP); or the raylet is killed.

A worker that freezes or is killed must be named and replaced, and the run must go to its end. An error, or a lost raylet, must
end the run with status 1 and one sentence, and `--resume` must take it to its end. Either way no push may be missing or counted
twice. Not here: a freeze before the first answer of all, after which nobody is left who answers.
"""

import collections
import functools
import itertools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from laws.long_run import SCRIPT, last_end_of, wait_for

from dqn_jax.commands.workers import prepare
from dqn_jax.config import AgentConfig, NetworkConfig, RunnerConfig
from dqn_jax.distributed.config import ServerConfig, ServerExperiment
from dqn_jax.distributed.engines.raylet import GONE, KILLED
from dqn_jax.runner.records import METRICS, SUMMARY

FAULTS = {"threads": ("error", "wait"), "ray": ("kill", "stop", "raylet")}
ENDS_THE_RUN = {
    "error": "a worker failed with ArithmeticError: injected",
    # Whoever is the first to see it tells.
    "raylet": f"{re.escape(GONE)}|{re.escape(KILLED)}",
}
"""What is said then, a regular expression."""
WORKERS, PUSHES_PER_LINE, LINES = 3, 30, 40
PATIENCE = {"threads": 10.0, "ray": 60.0}
"""Seconds; a Ray process needs some to start."""
LOST = r"worker [0-2] is lost, and another takes its place: .*"


def config_of(backend: Any, run_dir: Path) -> ServerExperiment:
    """A push is one frame."""
    agent = AgentConfig(num_envs=1, batch_size=4, replay_capacity=32, learning_starts=8)
    return ServerExperiment(
        max_episode_steps=20,
        num_seeds=1,
        num_devices=1,
        backend=backend,
        patience=PATIENCE[backend],
        total_frames=WORKERS * agent.warm_up_frames + LINES * PUSHES_PER_LINE,
        run_dir=run_dir,
        resume=True,
        agent=agent,
        network=NetworkConfig(hidden_sizes=(16,)),
        runner=RunnerConfig(log_every=PUSHES_PER_LINE, eval_every=10_000, checkpoint_every=4 * PUSHES_PER_LINE),
        server=ServerConfig(num_workers=WORKERS, mode="barrier"),
    )


def train_with_workers(backend: str, run_dir: str, fault: str = "", at: str = "0") -> None:
    """What these processes do; on threads, task `at` of all workers is the one that is struck."""
    config = config_of(backend, Path(run_dir))
    prepare(config, WORKERS)
    from dqn_jax.distributed import engines, server_on_workers, workers
    from dqn_jax.runner.loop import run

    make_job: Callable[[], Any] = functools.partial(workers.make_job, config)
    make_struck = make_job if backend == "ray" else lambda: struck(make_job(), fault, int(at))
    driver, evaluator = server_on_workers.from_config(config, engines.start(backend, make_struck, WORKERS))
    run(driver, config, evaluator)


def struck(job: Any, fault: str, at: int) -> Any:
    """The job, one task of which raises or waits for ever."""
    numbers = itertools.count()

    def work(state: Any, task: Any) -> Any:
        if next(numbers) == at:
            if fault == "error":
                raise ArithmeticError("injected")
            if fault == "wait":
                threading.Event().wait()
        return job.work(state, task)

    return job._replace(work=work)


class WorkerTrial:
    """One run, to which one thing happens."""

    def __init__(self, backend: str, fault: str, number: int, seed: int, work: Path, counts: collections.Counter) -> None:
        self.backend, self.fault, self.counts = backend, fault, counts
        self.name = f"{backend}, {fault}, seed {seed}, trial {number}"
        self.rng = random.Random(self.name)
        self.run_dir = work / f"{backend}-{fault}-{number}"

    def run(self) -> list[str]:
        """Lets it happen, and resumes the run if that ended it; returns what is wrong then."""
        # Every worker has a first task before.
        at = self.rng.randrange(WORKERS, LINES * PUSHES_PER_LINE * 3 // 4)
        process = self._start(self.fault, at)
        if self.backend == "ray":
            self._hit(process, at // PUSHES_PER_LINE)
        status, said = last_end_of(process), self._said()
        sentence = ENDS_THE_RUN.get(self.fault)
        self.counts[f"{self.fault}, status {status}"] += 1
        wrong = [] if status == (0 if sentence is None else 1) else [f"status {status}"]
        if not re.fullmatch(sentence or LOST, said):
            wrong.append(f"it said {said!r}")
        if sentence is not None and not wrong:
            status = last_end_of(self._start())
            self.counts[f"{self.fault}, resumed"] += 1
            wrong = [] if status == 0 else [f"status {status} when resumed"]
        wrong = wrong or self._miscounted()
        if not wrong:
            shutil.rmtree(self.run_dir)
        return [f"{self.name}, at push {at}: {', '.join(wrong)}"] if wrong else []

    def _start(self, *flags: Any) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPT), "workers", self.backend, str(self.run_dir), *map(str, flags)]
        with open(self.run_dir.with_suffix(".log"), "a") as out, open(self.run_dir.with_suffix(".err"), "w") as err:
            return subprocess.Popen(command, stdout=out, stderr=err)

    def _said(self) -> str:
        return self.run_dir.with_suffix(".err").read_text().removesuffix("\n")

    def _lines(self) -> list[dict]:
        path = self.run_dir / METRICS
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _hit(self, process: subprocess.Popen, line: int) -> None:
        """Hits one of the run's processes once that many lines are written; as many runs are not done so soon."""
        wait_for(lambda: len(self._lines()) > line, process)
        if process.poll() is not None:
            return
        title = "raylet" if self.fault == "raylet" else "ray::RayPost"
        children = psutil.Process(process.pid).children(recursive=True)
        hit = self.rng.choice([child for child in children if child.name().startswith(title)])
        hit.send_signal(signal.SIGSTOP if self.fault == "stop" else signal.SIGKILL)

    def _miscounted(self) -> list[str]:
        """Names what is wrong with the files of a run that went to its end."""
        lines, pushes = self._lines(), LINES * PUSHES_PER_LINE
        summary = json.loads((self.run_dir / SUMMARY).read_text())
        lost = sum(line["workers_lost"][0] for line in lines)
        wrong = [] if summary["updates"] == pushes // WORKERS else [f"{summary['updates']} updates"]
        if lost != (self.fault not in ENDS_THE_RUN):
            wrong.append(f"{lost} workers lost")
        return wrong
