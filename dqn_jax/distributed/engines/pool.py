"""The worker pool: which workers are at work, which results count, and how lost workers are replaced.

The replacement of a lost worker starts with random streams that no worker has had. Results from before that start, and
duplicates, are dropped and counted. Not here: what tasks hold and what is done with results.

Shapes: W workers.
"""

import sys
import time

import numpy as np

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines.tasks import Engine, Result, Task, WorkerLost
from dqn_jax.types import Tree

_LOSSES_IN_A_ROW = 5


class WorkerPool:
    """W workers of an engine, and how often each has started."""

    def __init__(self, engine: Engine, starts: np.ndarray, frames: np.ndarray, patience: float) -> None:
        """Makes a pool whose workers all start afresh.

        Args:
          engine: what carries tasks and results.
          starts: [W] times that each worker has started in this run.
          frames: [W] frames that they have taken.
          patience: seconds to wait for a result of a worker, from the start of its task.
        """
        self.engine, self.patience = engine, patience
        self.size = len(starts)
        self.starts, self.frames = starts + 1, frames.copy()
        self.results = np.zeros(self.size, int)
        self.frames_before = frames.copy()
        self.at_work = np.zeros(self.size, bool)
        self._losses = np.zeros(self.size, int)
        self.lost = self.dropped = 0
        self.wait_seconds = 0.0

    def send(self, worker: int, version: int, params: Tree) -> None:
        """Sends a task to an idle worker; `params=None` keeps the worker's copy."""
        self.at_work[worker] = True
        self.engine.send(worker, Task(self._stream(worker), int(self.frames_before[worker]), version, params))

    def receive(self) -> Result | WorkerLost:
        """Waits for the next result that counts, or for the loss of a worker; either way that worker is idle then.

        Raises:
          TrainingError: if no worker answers, a job fails, or a worker is lost again and again.
        """
        while True:
            begin = time.perf_counter()
            news = self.engine.receive(self.patience)
            self.wait_seconds += time.perf_counter() - begin
            worker = news.worker
            if isinstance(news, WorkerLost):
                self._replace(news)
            elif (news.stream, news.sequence) != (self._stream(worker), self.results[worker] + 1):
                self.dropped += 1
                continue
            else:
                self.results[worker] += 1
                self._losses[worker] = 0
            self.at_work[worker] = False
            return news

    def counts(self) -> dict[str, float]:
        """Counts workers lost, results dropped, and seconds spent waiting, since the last call."""
        counts = {"workers_lost": self.lost, "results_dropped": self.dropped, "wait_seconds": self.wait_seconds}
        self.lost = self.dropped = 0
        self.wait_seconds = 0.0
        return counts

    def _replace(self, news: WorkerLost) -> None:
        worker = news.worker
        self.lost += 1
        self._losses[worker] += 1
        if self._losses[worker] == _LOSSES_IN_A_ROW:
            raise TrainingError(
                f"worker {worker} was lost {self._losses[worker]} times in a row before its first result, the last time with: "
                f"{news.reason}"
            )
        print(f"worker {worker} is lost, and another takes its place: {news.reason}", file=sys.stderr, flush=True)
        self.starts[worker] += 1
        self.results[worker] = 0
        self.frames_before[worker] = self.frames[worker]

    def _stream(self, worker: int) -> int:
        """Returns the number of the worker's random streams, unique to this worker and start."""
        return int(worker + self.size * (self.starts[worker] - 1))
