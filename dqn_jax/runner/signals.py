"""Ctrl-C and SIGTERM as a request to stop between two chunks. Not here: saving."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Stopped(Exception):
    """The run was asked to stop and has saved its state. `exit_code` is what a shell expects after that signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopRequest:
    """Context in which the first SIGINT or SIGTERM is only remembered; a second one acts as usual.

    An interrupt inside a compiled call that was given the state's buffers would lose the state.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
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
