"""A lock on a run directory: one run at a time writes there. The first process locks for all of a run; readers need no lock.

The operating system releases the lock when the process ends, however it ends, and no child inherits it. Where the file system
has no locks, a file that the process touches now and then stands for one.
"""

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dqn_jax.config import InputError, Record
from dqn_jax.runner import peers

LOCK = ".lock"
HEARTBEAT_SECONDS = 20.0
"""Time between two touches of the file, where the file system has no locks; three times that without one, and it is free."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds the lock of a run directory while the body runs; makes the directory if it is not there.

    Raises:
      InputError: in all processes, if another run holds it, with its process id and host; or if it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        peers.agreed(lambda: _acquire(run_dir, stack) if peers.is_first() else None, "run directory")
        yield


def _acquire(run_dir: Path, stack: contextlib.ExitStack) -> None:
    path = run_dir / LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"run_dir {run_dir} cannot be written ({error.strerror}): name another directory") from None
    stack.callback(os.close, file)
    try:
        _lock(file)
    except BlockingIOError:
        raise _in_use(run_dir, _holder(path)) from None
    except OSError:
        _beat(run_dir, path, stack)
        return
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(_myself()).encode(), 0)


def _lock(file: int) -> None:
    """Takes the operating system's lock; raises BlockingIOError where another process has it, OSError where there is none."""
    try:
        import fcntl
    except ImportError:
        raise OSError("no locks") from None
    try:
        # Of this process alone: a lock by flock would be shared with forked children.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:
        # What some systems say for a lock that is taken.
        raise BlockingIOError from error


def _myself() -> Record:
    return {"process": os.getpid(), "host": platform.node()}


def _holder(path: Path) -> Record:
    """Reads who holds the lock; {} where that is not known."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _in_use(run_dir: Path, holder: Record) -> InputError:
    return InputError(
        f"run_dir {run_dir} is in use by process {holder.get('process', 'unknown')} on host {holder.get('host', 'unknown')}: "
        "wait until it has ended, or name another directory"
    )


def _beat(run_dir: Path, path: Path, stack: contextlib.ExitStack) -> None:
    """Stands for a lock: signs the file again and again, from a thread, until the stack is closed."""
    holder = _holder(path)
    if time.time() - holder.get("time", 0.0) < 3 * HEARTBEAT_SECONDS:
        raise _in_use(run_dir, holder)
    print(
        f"warning: the file system of {run_dir} has no locks; another run is noticed by {LOCK} alone, "
        f"for {3 * HEARTBEAT_SECONDS:g} s after its last sign",
        file=sys.stderr,
    )
    ended = threading.Event()

    def sign() -> None:
        aside = path.with_name(f"{LOCK}.{os.getpid()}")
        aside.write_text(json.dumps(_myself() | {"time": time.time()}))
        os.replace(aside, path)

    def go_on() -> None:
        while not ended.wait(HEARTBEAT_SECONDS):
            sign()

    sign()
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    # In reverse: the thread has ended before the file goes, and cannot write it again.
    stack.callback(path.unlink, missing_ok=True)
    stack.callback(thread.join)
    stack.callback(ended.set)
