"""Workers in the calling thread: a task runs when it is sent. Deterministic, for tests."""

from collections import deque

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines.tasks import Engine, Job, Result, Task, WorkerLoop, WorkerLost


def start(job: Job, num_workers: int) -> Engine:
    """Starts the engine; results come in the order of the tasks."""
    loops = [WorkerLoop(worker, job) for worker in range(num_workers)]
    results: deque[Result] = deque()

    def send(worker: int, task: Task) -> None:
        results.append(loops[worker].run(task))

    def receive(patience: float) -> Result | WorkerLost:
        if not results:
            raise TrainingError("no worker is at work: nobody was sent a task")
        return results.popleft()

    return Engine(send, receive, close=results.clear)
