"""Communication between the processes of one run: gathered values and shared errors, each wait with a time limit.

A single process gets its own values back, at no cost. All processes call these functions at the same points, one of them right
before each chunk, so a late process is awaited here and not inside a collective, which has no time limit of its own. A process
that dies in a chunk breaks the connection or misses its heartbeats (hosts), and `chunk_limit` ends the others.

Not here: arrays on devices (mapping), how processes are connected (hosts).
"""

import atexit
import contextlib
import hashlib
import itertools
import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import chex
import jax
import numpy as np

from dqn_jax.config import InputError, Record, TrainingError
from dqn_jax.runner.hosts import end_now, time_limit

Result = TypeVar("Result")

WAIT_SECONDS = 600
"""How long a process waits for all the others to come to the same point."""
CHUNK_SECONDS = 3600
"""How long a chunk of several processes may take, compilation included."""
_TOKEN = ".shared"
_numbers = itertools.count()
"""Numbers of the calls of `gather`, the same in all processes."""


class PeerLost(TrainingError):
    """Another process is gone or stuck. The message says what to do."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"process {jax.process_index()} lost another process ({what}): end those that are left and start all of them again "
            "with --resume"
        )


def is_first() -> bool:
    """Tells whether this process is the first, which writes the shared files."""
    return jax.process_index() == 0


def gather(value: Any, what: str) -> list[Any]:
    """Gathers a JSON value of each process, in the order of the processes.

    Args:
      value: this process's.
      what: what is being done, for the message.

    Raises:
      PeerLost: if a process does not come within the time limit.
    """
    if jax.process_count() == 1:
        return [value]
    # As orbax does: jax has no public wait on the host with a time limit.
    from jax._src.distributed import global_state

    client: Any = global_state.client
    number = next(_numbers)
    client.key_value_set(f"dqn_jax/{number}/{jax.process_index():06d}", json.dumps(value))
    try:
        client.wait_at_barrier(f"dqn_jax/{number}", WAIT_SECONDS * 1000)
    except jax.errors.JaxRuntimeError as error:
        late = "DEADLINE_EXCEEDED" in str(error)
        raise PeerLost(f"{what}: waited {WAIT_SECONDS} s" if late else f"{what}: it is gone") from error
    said = [json.loads(text) for _, text in sorted(client.key_value_dir_get(f"dqn_jax/{number}/"))]
    if is_first() and number:
        # All processes reached this call, so all have read the values of the one before.
        client.key_value_delete(f"dqn_jax/{number - 1}/")
    return said


def wait(what: str) -> None:
    """Waits until all processes have come to this point; errors as for `gather`."""
    gather(None, what)


def agreed(attempt: Callable[[], Result], what: str) -> Result:
    """Calls `attempt`; where it raises InputError or TrainingError in any process, all raise the first of them."""
    result, error = None, None
    try:
        result = attempt()
    except (InputError, TrainingError) as raised:
        error = raised
    for said in gather(error and [isinstance(error, InputError), str(error)], what):
        if said is not None:
            raise (InputError if said[0] else TrainingError)(said[1]) from error
    return result  # type: ignore[return-value]


def check_same(config: Record) -> None:
    """Raises InputError unless all processes were started with the same config, apart from the path of the run directory."""
    first, *others = gather(config, "config")
    for process, theirs in enumerate(others, start=1):
        names = [name for name in first if theirs.get(name) != first[name] and name != "run_dir"]
        if names:
            raise InputError(f"process {process} has another {', '.join(names)} than process 0: start all with the same flags")


def check_equal(read: Callable[[], chex.ArrayTree], what: str) -> None:
    """Raises TrainingError unless the arrays that `read` returns are the same to the last bit in all processes."""
    if jax.process_count() == 1:
        return
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(read())]
    digests = gather(hashlib.sha256(b"".join(leaves)).hexdigest(), what)
    unequal = [process for process, digest in enumerate(digests) if digest != digests[0]]
    if unequal:
        raise TrainingError(f"{what} of process(es) {unequal} are not bitwise those of process 0: an update was not averaged")


def check_shared(run_dir: Path) -> None:
    """Raises InputError unless every process sees in `run_dir` what process 0 writes there."""
    if jax.process_count() == 1:
        return
    path = run_dir / _TOKEN
    token = secrets.token_hex()
    if is_first():
        path.write_text(token)
    token = gather(token, "run directory")[0]
    sees = gather(path.exists() and path.read_text() == token, "run directory")
    if is_first():
        path.unlink()
    blind = [process for process, seen in enumerate(sees) if not seen]
    if blind:
        raise InputError(
            f"run_dir {run_dir} is not shared, process(es) {blind} do not see what process 0 writes there: name a directory "
            "of a file system that all processes have"
        )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raises PeerLost in place of jax's error where a collective in the body has lost another process."""
    try:
        yield
    except (PeerLost, jax.errors.JaxRuntimeError) as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        atexit.register(end_now)
        if isinstance(error, PeerLost):
            raise
        raise PeerLost(str(error).partition("\n")[0]) from error


def chunk_limit() -> contextlib.AbstractContextManager[None]:
    """Ends the process with a message if the body, one chunk, takes too long."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    return time_limit(
        CHUNK_SECONDS,
        f"process {jax.process_index()} has been in one chunk for {CHUNK_SECONDS} s, waiting for a process that is stuck or "
        "because runner.log_every is too long: end all processes and start all of them again with --resume",
    )
