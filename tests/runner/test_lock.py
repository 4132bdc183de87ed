"""One run at a time has a run directory: a second is refused with the process and host of the first, unless that has ended."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
import time

import pytest
from federated.helpers import refusal

from dqn_jax.runner import lock
from dqn_jax.runner.lock import LOCK, locked

HOLD = """
import os, sys
from pathlib import Path
from dqn_jax.runner.lock import locked
with locked(Path(sys.argv[1])):
    print(os.getpid(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert int(process.stdout.readline()) == process.pid
        yield process
        process.kill()


def take(run_dir):
    with locked(run_dir):
        pass


def words(run_dir, process, host):
    return (
        f"run_dir {run_dir} is in use by process {process} on host {host}: wait until it has ended, or name another directory"
    )


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path, holder):
    assert refusal(lambda: take(tmp_path)) == words(tmp_path, holder.pid, platform.node())
    # Neither is the first one's name lost by asking.
    assert json.loads((tmp_path / LOCK).read_text())["process"] == holder.pid
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text()) == {"process": os.getpid(), "host": platform.node()}


def test_it_is_free_after_the_body_however_that_ends(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    ask = [sys.executable, "-c", HOLD, str(tmp_path)]
    done = subprocess.run(ask, input="", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_child_does_not_inherit_it(tmp_path):
    with locked(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        ask = [sys.executable, "-c", HOLD, str(tmp_path)]
        assert subprocess.run(ask, input="", capture_output=True, text=True, check=False).returncode == 0
    finally:
        child.communicate()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    assert refusal(lambda: take(tmp_path / "file" / "run")).endswith("(Not a directory): name another directory")


@pytest.fixture
def lockless(monkeypatch):
    """A file system without locks."""

    def none(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", none)


def test_without_locks_a_heartbeat_stands_for_one(tmp_path, lockless, capsys):
    with locked(tmp_path):
        warning = capsys.readouterr().err
        assert warning.startswith(f"warning: the file system of {tmp_path} has no locks")
        assert warning.count("\n") == 1
        assert refusal(lambda: take(tmp_path)) == words(tmp_path, os.getpid(), platform.node())
    # An end that is seen frees it at once; one that is not, after a while.
    take(tmp_path)
    for age, free in ((3 * lock.HEARTBEAT_SECONDS + 1, True), (lock.HEARTBEAT_SECONDS, False)):
        (tmp_path / LOCK).write_text(json.dumps({"process": 7, "host": "elsewhere", "time": time.time() - age}))
        if free:
            take(tmp_path)
        else:
            assert refusal(lambda: take(tmp_path)) == words(tmp_path, 7, "elsewhere")


def test_a_heartbeat_goes_on(tmp_path, lockless, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.01)
    with locked(tmp_path):
        first = json.loads((tmp_path / LOCK).read_text())["time"]
        deadline = time.monotonic() + 30
        while json.loads((tmp_path / LOCK).read_text())["time"] == first:
            assert time.monotonic() < deadline
    assert not (tmp_path / LOCK).exists()
