"""Flags that give this process's place among several, and the start of jax in all of them.

Never part of a config, which is the same for all of them. Imports no jax at the top.
Not here: communication between the processes after that (peers).
"""

import argparse
import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NoReturn

from dqn_jax.config import InputError, require

START_SECONDS = 300
"""How long a process waits for all the others to start."""
HEARTBEAT_SECONDS = 30
"""Seconds without a heartbeat after which a process is lost: jax then ends the others."""
SHUTDOWN_SECONDS = 30
"""How long a process that ends waits for all the others to end."""
LAUNCHER = "DQN_JAX_LAUNCHER"
"""Environment variable with the process id of the launcher that started this process."""
FLAGS = "On several hosts, in each of their processes: --coordinator HOST:PORT --num-processes N --process-id I"
"""For `--help`."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process's place among several."""

    coordinator: str
    """HOST:PORT: where process 0 is, and a free port there."""
    num_processes: int
    process_id: int
    """0 to num_processes - 1."""

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(":")
        require(
            host != "" and port.isdecimal() and 0 < int(port) < 2**16,
            f"--coordinator is {self.coordinator!r}: give HOST:PORT, where process 0 is and a free port there",
        )
        require(self.num_processes > 0, f"--num-processes is {self.num_processes}: give a whole number from 1")
        require(
            0 <= self.process_id < self.num_processes,
            f"--process-id is {self.process_id}: give each process its own number from 0 to {self.num_processes - 1}",
        )


def parse_hosts(args: Sequence[str] | None = None) -> tuple[Hosts | None, list[str]]:
    """Parses this process's place out of a command line.

    Args:
      args: arguments; None takes those of the process.

    Returns:
      The place, None where no flag gives one, and the arguments that are left.

    Raises:
      InputError: for some of the flags without the others, or a value that cannot be used.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = [field.name for field in dataclasses.fields(Hosts)]
    for name in names:
        parser.add_argument(_flag(name))
    given, rest = parser.parse_known_args(list(sys.argv[1:] if args is None else args))
    missing = [name for name in names if getattr(given, name) is None]
    if len(missing) == len(names):
        return None, rest
    absent = ", ".join(map(_flag, missing))
    require(not missing, f"{absent} not given: --coordinator, --num-processes and --process-id go together")
    numbers = {name: getattr(given, name) for name in names[1:]}
    for name, text in numbers.items():
        require(text.isdecimal(), f"{_flag(name)} is {text!r}: give a whole number")
    return Hosts(given.coordinator, **{name: int(text) for name, text in numbers.items()}), rest


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def join(hosts: Hosts | None) -> None:
    """Starts jax together with the other processes; does nothing for None. To be called right after `runtime.setup`.

    If the others do not start in time, the process ends with status 1 and a message.

    Raises:
      InputError: in process 0, if it cannot listen at the coordinator's address.
    """
    if hosts is None:
        return
    end_with_launcher()
    import jax

    if hosts.process_id == 0:
        _check_port(hosts)
    # jax's own service would take SIGTERM, which the runner answers by saving.
    jax.config.update("jax_enable_preemption_service", False)
    sentence = (
        f"process {hosts.process_id} of {hosts.num_processes} has waited {START_SECONDS} s for the others at "
        f"{hosts.coordinator}: start all of them, each with its own --process-id, and check that they can reach that address"
    )
    with time_limit(START_SECONDS, sentence):
        jax.distributed.initialize(
            hosts.coordinator,
            hosts.num_processes,
            hosts.process_id,
            cluster_detection_method="deactivate",
            # By default process 0 listens on all interfaces.
            coordinator_bind_address=hosts.coordinator,
            # Longer than ours: at the end of jax's own limit it aborts with a stack trace.
            initialization_timeout=2 * START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
        # Starts jax's backend, for which all processes tell each other their devices.
        jax.local_devices()
    sys.excepthook = _end_at_once


def end_with_launcher() -> None:
    """Stops this process, as SIGTERM does, once the launcher that started it is gone; does nothing without one.

    A launcher that is killed cannot pass that on, and its processes would train on, unseen.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def end_now(status: int = 1) -> NoReturn:
    """Ends the process. At an ordinary end jax waits for the other processes, which may wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _end_at_once(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> NoReturn:
    sys.__excepthook__(kind, error, trace)
    end_now()


def _check_port(hosts: Hosts) -> None:
    """Raises InputError unless this process can listen at the coordinator's address: jax would crash."""
    host, _, port = hosts.coordinator.rpartition(":")
    try:
        family, *_, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        raise InputError(
            f"--coordinator is {hosts.coordinator}, and process 0 cannot listen there ({error.strerror}): give an address of "
            "its host, and a free port"
        ) from None


@contextlib.contextmanager
def time_limit(seconds: float, sentence: str) -> Iterator[None]:
    """Ends the process with a message unless the body is done in time; an exception could not interrupt a wait in jax."""

    def end() -> None:
        print(sentence, file=sys.stderr)
        end_now()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
