"""Workers that take turns in this very thread: an order is carried out when it is sent. Deterministic, for tests and laws."""

from collections import deque

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines.post import Engine, Job, Lost, Order, Post, Report


def start(job: Job, num_workers: int) -> Engine:
    """The engine; reports come in the order in which orders were sent."""
    posts = [Post(worker, job) for worker in range(num_workers)]
    reports: deque[Report] = deque()

    def send(worker: int, order: Order) -> None:
        reports.append(posts[worker].carry_out(order))

    def receive(patience: float) -> Report | Lost:
        if not reports:
            raise TrainingError("no worker is at work: nobody was sent an order")
        return reports.popleft()

    return Engine(send, receive, close=reports.clear)
