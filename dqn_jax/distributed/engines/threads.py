"""Workers on threads of this process: XLA runs without Python's lock, so they do work side by side."""

import queue
import threading

import jax

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines.post import Engine, Job, Lost, Order, Post, Report, nobody_answers

_SECONDS_TO_END = 30.0


def start(job: Job, num_workers: int) -> Engine:
    """The engine. A job that raises ends the run: on a thread, that is an error and not a lost machine."""
    orders: list[queue.SimpleQueue[Order | None]] = [queue.SimpleQueue() for _ in range(num_workers)]
    reports: queue.SimpleQueue[Report | Exception] = queue.SimpleQueue()
    compiling = threading.Lock()

    def live(worker: int) -> None:
        post = Post(worker, job)
        while (order := orders[worker].get()) is not None:
            try:
                if order.stream != post.stream:
                    # The first of them compiles for all.
                    with compiling:
                        report = jax.block_until_ready(post.carry_out(order))
                else:
                    report = jax.block_until_ready(post.carry_out(order))
                reports.put(report)
            except Exception as error:
                reports.put(error)

    threads = [
        threading.Thread(target=live, args=(worker,), name=f"worker-{worker}", daemon=True) for worker in range(num_workers)
    ]
    for thread in threads:
        thread.start()

    def receive(patience: float) -> Report | Lost:
        try:
            report = reports.get(timeout=patience)
        except queue.Empty:
            raise TrainingError(nobody_answers(patience)) from None
        if isinstance(report, Exception):
            raise TrainingError(f"a worker failed with {type(report).__name__}: {report}") from report
        return report

    def close() -> None:
        for worker in range(num_workers):
            orders[worker].put(None)
        for thread in threads:
            thread.join(_SECONDS_TO_END)

    return Engine(lambda worker, order: orders[worker].put(order), receive, close)
