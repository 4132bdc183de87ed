"""Messages between the learning side and its workers, and the worker's loop. Imports no jax: Ray's processes set it up.

A task may carry new parameters (a pull). A result carries gradients, or transitions to add (a push).
"""

from collections.abc import Callable
from typing import NamedTuple

from dqn_jax.types import Info, Tree


class Task(NamedTuple):
    """The next piece of work for one worker."""

    stream: int
    """Number of its random streams. With a number it has not had yet the worker starts afresh: environments, replay and all."""
    frames: int
    """Frames that the worker took before this start."""
    version: int
    """Version of the parameters, in updates."""
    params: Tree
    """What a job works with; None keeps the worker's copy."""


class Result(NamedTuple):
    """The outcome of one task."""

    worker: int
    stream: int
    sequence: int
    """Results since the worker's start, this one included."""
    version: int
    """Version of the parameters it worked with."""
    payload: Tree
    """What is pushed."""
    info: Info
    """Named numbers about the work."""


class WorkerLost(NamedTuple):
    """A worker that is gone or frozen. The engine has started another in its place, which waits for a task."""

    worker: int
    reason: str


class Job(NamedTuple):
    """What workers do, as functions of a state that stays with the worker."""

    begin: Callable[[Task], Tree]
    """task -> the worker's first state."""
    work: Callable[[Tree, Task], tuple[Tree, Tree, Info]]
    """(state, task) -> (state, payload, info)."""


class Engine(NamedTuple):
    """Workers numbered from 0, each doing one task at a time."""

    send: Callable[[int, Task], None]
    """Sends a task: (worker, task). A worker gets its next one after its result has been received."""
    receive: Callable[[float], Result | WorkerLost]
    """Waits for the next result, or for the loss of a worker: (patience in seconds) -> it. A worker that takes longer for its
    task, from its start, while others answer, is lost. Raises TrainingError if nobody answers for that time, or a job fails."""
    close: Callable[[], None]
    """Ends all workers."""


class WorkerLoop:
    """Runs the tasks of one worker, and keeps its state between them."""

    def __init__(self, worker: int, job: Job) -> None:
        self.worker, self.job = worker, job
        self.stream: int | None = None

    def run(self, task: Task) -> Result:
        """Runs one task, from a fresh start if its stream is new."""
        if task.stream != self.stream:
            self.state, self.stream, self.sequence = self.job.begin(task), task.stream, 0
        if task.params is not None:
            self.version = task.version
        self.state, payload, info = self.job.work(self.state, task)
        self.sequence += 1
        return Result(self.worker, task.stream, self.sequence, self.version, payload, info)


def nobody_answers(patience: float) -> str:
    """Returns the message that no worker has answered in time."""
    return f"no worker has answered for {patience:g} seconds: raise --patience if compiling takes that long, or look for a hang"
