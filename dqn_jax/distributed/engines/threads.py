"""Workers on threads of this process: XLA runs without Python's lock, so they do work side by side."""

import queue
import threading

import jax

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines.tasks import Engine, Job, Result, Task, WorkerLoop, WorkerLost, nobody_answers

_SECONDS_TO_END = 30.0


def start(job: Job, num_workers: int) -> Engine:
    """Starts the engine. A job that raises ends the run: on a thread, that is not a lost worker."""
    tasks: list[queue.SimpleQueue[Task | None]] = [queue.SimpleQueue() for _ in range(num_workers)]
    results: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
    compiling = threading.Lock()

    def live(worker: int) -> None:
        loop = WorkerLoop(worker, job)
        while (task := tasks[worker].get()) is not None:
            try:
                if task.stream != loop.stream:
                    # The first of them compiles for all.
                    with compiling:
                        result = jax.block_until_ready(loop.run(task))
                else:
                    result = jax.block_until_ready(loop.run(task))
                results.put(result)
            except Exception as error:
                results.put(error)

    threads = [
        threading.Thread(target=live, args=(worker,), name=f"worker-{worker}", daemon=True) for worker in range(num_workers)
    ]
    for thread in threads:
        thread.start()

    def receive(patience: float) -> Result | WorkerLost:
        try:
            result = results.get(timeout=patience)
        except queue.Empty:
            raise TrainingError(nobody_answers(patience)) from None
        if isinstance(result, Exception):
            raise TrainingError(f"a worker failed with {type(result).__name__}: {result}") from result
        return result

    def close() -> None:
        for worker in range(num_workers):
            tasks[worker].put(None)
        for thread in threads:
            thread.join(_SECONDS_TO_END)

    return Engine(lambda worker, task: tasks[worker].put(task), receive, close)
