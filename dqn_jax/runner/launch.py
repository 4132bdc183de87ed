"""Starts a script as several processes of this machine that train together, and ends them all once one has failed.

python -m dqn_jax.runner.launch --num-processes 2 experiments/data_parallel.py --num-devices 2 --run-dir runs/hosts

Not here: other machines (docs/cluster.md), communication between the processes (peers).
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from types import FrameType

from dqn_jax.config import require
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.hosts import LAUNCHER
from dqn_jax.runner.signals import stop_signals

GRACE_SECONDS = 5
"""Seconds that the others get to report errors once one has failed."""
_HOST = "127.0.0.1"
_STOPPED = tuple(128 + signum for signum in stop_signals())
"""Exit statuses of processes that were asked to stop, and saved."""


class Processes:
    """The processes of one job on this machine."""

    def __init__(self) -> None:
        self._processes: dict[int, tuple[int, subprocess.Popen]] = {}

    def start(self, num_processes: int, command: Sequence[str]) -> None:
        """Starts `command`, a script and its flags, in `num_processes` processes."""
        coordinator, environment = f"{_HOST}:{_free_port()}", os.environ | {LAUNCHER: str(os.getpid())}
        for process in range(num_processes):
            place = ["--coordinator", coordinator, "--num-processes", str(num_processes), "--process-id", str(process)]
            # Each in a session of its own: it would get a terminal's Ctrl-C twice, and the second one stops without saving.
            child = subprocess.Popen([sys.executable, *command, *place], env=environment, start_new_session=True)
            self._processes[child.pid] = process, child

    def pass_on(self, signum: int, frame: FrameType | None = None) -> None:
        """Sends a signal to all processes that run. Can be set as a handler."""
        for _, child in list(self._processes.values()):
            child.send_signal(signum)

    def wait(self) -> int:
        """Waits for all processes, GRACE_SECONDS once one has failed; returns the first exit status that is not 0, else 0."""
        first_bad = 0
        end_rest = threading.Timer(GRACE_SECONDS, self.pass_on, [signal.SIGKILL])
        end_rest.daemon = True
        for process, code in self._ends():
            if code and not first_bad:
                first_bad = code if code > 0 else 128 - code
                end_rest.start()
                if first_bad not in _STOPPED:
                    print(_how_it_ended(process, code), file=sys.stderr, flush=True)
        end_rest.cancel()
        return first_bad

    def _ends(self) -> Iterator[tuple[int, int]]:
        """Yields (process, exit status) as they end; of several at once first those ended by a signal, which others notice."""
        while self._processes:
            ended, options = [], 0
            while self._processes and (found := os.waitpid(-1, options))[0]:
                process, child = self._processes.pop(found[0])
                child.returncode = os.waitstatus_to_exitcode(found[1])
                ended.append((process, child.returncode))
                options = os.WNOHANG
            yield from sorted(ended, key=lambda end: end[1] >= 0)


def _how_it_ended(process: int, code: int) -> str:
    if code == 2:
        return f"process {process} could not start (status 2): the others are ended"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"failed with status {code}"
    return f"process {process} {how}: the others are ended; the same command with --resume goes on from the last checkpoint"


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as server:
        return server.getsockname()[1]


def main() -> None:
    """Starts processes, passes signals that ask to stop on, and waits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--num-processes", type=int, required=True, help="how many")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a script that takes --coordinator, and its flags")
    given = parser.parse_args()
    require(given.num_processes > 0, f"--num-processes is {given.num_processes}: give a whole number from 1")
    require(bool(given.command), "no script is given: name one, and its flags, after --num-processes N")
    processes = Processes()
    for signum in stop_signals():
        signal.signal(signum, processes.pass_on)
    processes.start(given.num_processes, given.command)
    status = processes.wait()
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
