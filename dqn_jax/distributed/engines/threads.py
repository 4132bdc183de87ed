"""Workers on threads of this process: XLA runs without Python's lock, so they do work side by side.

A thread cannot be ended from outside: one that is frozen is abandoned, and another takes its place. Should it still answer, its
result has its old streams, and an error is dropped.
"""

import queue
import threading
import time

import jax

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines.silence import Activity, frozen, not_answered, seconds_left
from dqn_jax.distributed.engines.tasks import Engine, Job, Result, Task, WorkerLoop, WorkerLost, nobody_answers

_SECONDS_TO_END = 30.0


class _WorkerThread(Activity):
    """One thread, from its start to its end or its replacement."""

    def __init__(self, worker: int, job: Job, answers: "queue.SimpleQueue[tuple[_WorkerThread, Result | Exception]]") -> None:
        super().__init__()
        self.loop, self.answers = WorkerLoop(worker, job), answers
        # A task, and what to wait for before it: in turn, the first task of a thread; so the first of them compiles for all.
        self.tasks: queue.SimpleQueue[tuple[Task, threading.Event | None] | None] = queue.SimpleQueue()
        self.is_new, self.has_begun = True, threading.Event()
        self.thread = threading.Thread(target=self._live, name=f"worker-{worker}", daemon=True)
        self.thread.start()

    def _live(self) -> None:
        while (item := self.tasks.get()) is not None:
            task, before = item
            if before is not None:
                before.wait()
            self.begin()
            result: Result | Exception
            try:
                result = jax.block_until_ready(self.loop.run(task))
            except Exception as error:
                result = error
            self.has_begun.set()
            self.answer()
            self.answers.put((self, result))


def start(job: Job, num_workers: int) -> Engine:
    """Starts the engine. A job that raises ends the run: on a thread, that is not a lost worker."""
    answers: queue.SimpleQueue[tuple[_WorkerThread, Result | Exception]] = queue.SimpleQueue()
    lives = [_WorkerThread(worker, job, answers) for worker in range(num_workers)]
    # The one that was the last to be sent a first task.
    newest: _WorkerThread | None = None

    def send(worker: int, task: Task) -> None:
        nonlocal newest
        life, before = lives[worker], None
        if life.is_new:
            before, newest, life.is_new = newest.has_begun if newest else None, life, False
        life.send()
        life.tasks.put((task, before))

    def replace(worker: int, patience: float) -> WorkerLost:
        abandoned = lives[worker]
        # Whoever waits for its first answer goes on; should it ever wake up, it ends.
        abandoned.has_begun.set()
        abandoned.tasks.put(None)
        lives[worker] = _WorkerThread(worker, job, answers)
        return WorkerLost(worker, not_answered(patience))

    def receive(patience: float) -> Result | WorkerLost:
        end = time.monotonic() + patience
        while True:
            over = time.monotonic() >= end
            worker = frozen(lives, patience)
            if worker is not None:
                return replace(worker, patience)
            try:
                life, result = answers.get(timeout=seconds_left(lives, patience, end))
            except queue.Empty:
                if over:
                    raise TrainingError(nobody_answers(patience)) from None
                continue
            if not isinstance(result, Exception):
                return result
            if life in lives:
                raise TrainingError(f"a worker failed with {type(result).__name__}: {result}") from result

    def close() -> None:
        for life in lives:
            life.tasks.put(None)
        end = time.monotonic() + _SECONDS_TO_END
        for life in lives:
            life.thread.join(max(0.0, end - time.monotonic()))

    return Engine(send, receive, close)
