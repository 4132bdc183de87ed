"""Which worker is frozen: it is at a task for longer than the patience, and others have answered since it was sent that task.

Where nobody has answered since, no worker is singled out: the engine ends the run once its patience is over.
"""

import dataclasses
import math
import time
from collections.abc import Sequence


@dataclasses.dataclass(eq=False)
class Activity:
    """What one life of a worker was last seen to do; times are those of `time.monotonic`."""

    sent: float = -math.inf
    """When it was sent its task."""
    since: float = math.inf
    """When it took it up; inf while it has none, or has not started."""
    answered: float = -math.inf
    """When it last had an answer."""

    def send(self) -> None:
        """Notes that the worker is sent a task now."""
        self.sent = time.monotonic()

    def begin(self) -> None:
        """Notes that the worker takes up a task now."""
        self.since = time.monotonic()

    def answer(self) -> None:
        """Notes that the worker has an answer now."""
        self.since, self.answered = math.inf, time.monotonic()


def overdue(workers: Sequence[Activity], patience: float) -> list[int]:
    """Returns the workers at a task for longer than `patience` seconds."""
    now = time.monotonic()
    return [number for number, worker in enumerate(workers) if worker.since + patience <= now]


def frozen(workers: Sequence[Activity], patience: float) -> int | None:
    """Returns a worker that is overdue although another has answered since it was sent its task, if there is one."""
    latest = max(worker.answered for worker in workers)
    return next((number for number in overdue(workers, patience) if workers[number].sent < latest), None)


def seconds_left(workers: Sequence[Activity], patience: float, end: float) -> float:
    """Returns the seconds until `end`, or until another worker is overdue if that is sooner; 0 where that is over."""
    now = time.monotonic()
    moments = [worker.since + patience for worker in workers if worker.since + patience > now]
    return max(0.0, min([*moments, end]) - now)


def not_answered(patience: float) -> str:
    """Returns why a worker that is frozen counts as lost."""
    return f"it has not answered for {patience:g} seconds"
