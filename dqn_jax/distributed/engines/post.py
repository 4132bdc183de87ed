"""What passes between the one who learns and its workers, and a worker's side of it. Imports no jax: Ray's processes set it up.

An order is a pull: perhaps new parameters, and leave to go on. A report is a push: gradients, or transitions to add.
"""

from collections.abc import Callable
from typing import NamedTuple

from dqn_jax.types import Info, Tree


class Order(NamedTuple):
    """What one worker is told to do next."""

    stream: int
    """Number of its random streams. A number it has not had yet begins a new life: fresh environments, an empty replay."""
    frames: int
    """Frames that earlier lives of the worker have taken."""
    version: int
    """Of the parameters, in updates."""
    params: Tree
    """What a job works with; None: go on with what you have."""


class Report(NamedTuple):
    """What one worker has done."""

    worker: int
    stream: int
    sequence: int
    """Reports of this life so far, this one included."""
    version: int
    """Of the parameters it worked with."""
    payload: Tree
    """What is pushed."""
    info: Info
    """Named numbers about the work."""


class Lost(NamedTuple):
    """A worker whose process is gone. The engine has put a new one in its place, which awaits orders."""

    worker: int
    reason: str


class Job(NamedTuple):
    """What workers do, as functions of a state that stays with the worker."""

    begin: Callable[[Order], Tree]
    """order -> state of a new life."""
    work: Callable[[Tree, Order], tuple[Tree, Tree, Info]]
    """(state, order) -> (state, payload, info)."""


class Engine(NamedTuple):
    """Workers numbered from 0, each doing one order at a time."""

    send: Callable[[int, Order], None]
    """(worker, order); a worker is sent its next order after its report has been received."""
    receive: Callable[[float], Report | Lost]
    """Seconds of patience -> the next report of anybody. Raises TrainingError when patience runs out or a job fails."""
    close: Callable[[], None]
    """Ends all workers."""


class Post:
    """One worker at its post, carrying out orders."""

    def __init__(self, worker: int, job: Job) -> None:
        self.worker, self.job = worker, job
        self.stream: int | None = None

    def carry_out(self, order: Order) -> Report:
        """Does the work and reports it."""
        if order.stream != self.stream:
            self.state, self.stream, self.sequence = self.job.begin(order), order.stream, 0
        if order.params is not None:
            self.version = order.version
        self.state, payload, info = self.job.work(self.state, order)
        self.sequence += 1
        return Report(self.worker, order.stream, self.sequence, self.version, payload, info)


def nobody_answers(patience: float) -> str:
    """What to say when patience has run out."""
    return f"no worker has answered for {patience:g} seconds: raise --patience if compiling takes that long, or look for a hang"
