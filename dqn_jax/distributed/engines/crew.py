"""The learner's side of an engine: who is at work, whose reports count, and what becomes of the lost.

A lost worker begins a new life with random streams that nobody has had. Reports of an earlier life, and any that come twice,
are dropped and counted. Not here: what is sent and what is done with it.

Shapes: W workers.
"""

import time

import numpy as np

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines.post import Engine, Lost, Order, Report
from dqn_jax.types import Tree

_LOSSES_IN_A_ROW = 5


class Crew:
    """W workers of an engine, with the lives they have had."""

    def __init__(self, engine: Engine, lives: np.ndarray, frames: np.ndarray, patience: float) -> None:
        """Gives every worker a new life.

        Args:
          engine: what carries orders and reports.
          lives: [W] lives that each worker has had in this run.
          frames: [W] frames that they have taken.
          patience: seconds that all may be silent.
        """
        self.engine, self.patience = engine, patience
        self.size = len(lives)
        self.lives, self.frames = lives + 1, frames.copy()
        self.reports = np.zeros(self.size, int)
        self.frames_before = frames.copy()
        self.at_work = np.zeros(self.size, bool)
        self._losses = np.zeros(self.size, int)
        self.lost = self.dropped = 0
        self.wait_seconds = 0.0

    def send(self, worker: int, version: int, params: Tree) -> None:
        """Tells an idle worker to go on: with new parameters, or with what it has where they are None."""
        self.at_work[worker] = True
        self.engine.send(worker, Order(self._stream(worker), int(self.frames_before[worker]), version, params))

    def receive(self) -> Report | Lost:
        """The next report that counts, or the news that a worker was lost; either way that worker is idle now.

        Raises:
          TrainingError: if nobody answers, a job fails, or a worker is lost time and again.
        """
        while True:
            begin = time.perf_counter()
            news = self.engine.receive(self.patience)
            self.wait_seconds += time.perf_counter() - begin
            worker = news.worker
            if isinstance(news, Lost):
                self._bury(news)
            elif (news.stream, news.sequence) != (self._stream(worker), self.reports[worker] + 1):
                self.dropped += 1
                continue
            else:
                self.reports[worker] += 1
                self._losses[worker] = 0
            self.at_work[worker] = False
            return news

    def counts(self) -> dict[str, float]:
        """So far: workers lost, reports dropped, and seconds in which nobody had anything to receive."""
        return {"workers_lost": self.lost, "reports_dropped": self.dropped, "wait_seconds": self.wait_seconds}

    def _bury(self, news: Lost) -> None:
        worker = news.worker
        self.lost += 1
        self._losses[worker] += 1
        if self._losses[worker] == _LOSSES_IN_A_ROW:
            raise TrainingError(
                f"worker {worker} was lost {self._losses[worker]} times in a row before it could report, the last time with: "
                f"{news.reason}"
            )
        self.lives[worker] += 1
        self.reports[worker] = 0
        self.frames_before[worker] = self.frames[worker]

    def _stream(self, worker: int) -> int:
        """Number of the worker's random streams: no two lives of any workers have the same."""
        return int(worker + self.size * (self.lives[worker] - 1))
