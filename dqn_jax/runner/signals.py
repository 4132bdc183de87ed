"""Ctrl-C, SIGTERM and SIGHUP as a request to stop between two chunks. Not here: saving."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self


def stop_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that ask to stop: SIGHUP, of a terminal that is closed, only where it is not ignored, as by nohup."""
    hang_up = getattr(signal, "SIGHUP", None)
    if hang_up is None or signal.getsignal(hang_up) == signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, hang_up)


@contextlib.contextmanager
def ended_by_interrupts() -> Iterator[None]:
    """Ends the process at a Ctrl-C in the body, at once and with a sentence, where Python would raise KeyboardInterrupt.

    Raised while a library is imported, that may be swallowed, or become a page of other errors. A `StopRequest` in the body
    takes the first Ctrl-C of training.
    """

    def end(signum: int, _: FrameType | None) -> None:
        sys.stdout.flush()
        os.write(sys.stderr.fileno(), b"interrupted: nothing is saved since the last checkpoint\n")
        os._exit(128 + signum)

    if (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Stopped(Exception):
    """The run was asked to stop and has saved its state. `exit_code` is what a shell expects after that signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopRequest:
    """Context in which the first of `stop_signals` is only remembered; a second one acts as usual.

    An interrupt inside a compiled call that was given the state's buffers would lose the state.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in stop_signals():
                self._previous[signum] = signal.signal(signum, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _remember(self, signum: int, _: FrameType | None) -> None:
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}
