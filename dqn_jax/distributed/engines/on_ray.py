"""Workers as Ray actors: processes of this machine, or of a cluster. The only module that needs Ray (extra "ray").

An actor that dies is replaced by a new one here, not by Ray, which would repeat the call without reporting the loss.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dqn_jax.config import InputError, TrainingError, not_installed
from dqn_jax.distributed.engines.tasks import Engine, Job, Result, Task, WorkerLoop, WorkerLost, nobody_answers

_SECONDS_TO_CONNECT = 10.0
# One core for each worker: thread pools would compete for it.
_WORKER_ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
_WORKER_XLA_FLAG = "--xla_cpu_multi_thread_eigen=false"


class RayPost:
    """A worker in a process of its own."""

    def __init__(self, worker: int, make_job: Callable[[], Job]) -> None:
        self.loop = WorkerLoop(worker, make_job())

    def run(self, task: Task, params: Any) -> Result:
        """Runs a task, with arrays on the host; Ray sends each version of `params` once, separately."""
        import jax

        return jax.device_get(self.loop.run(task._replace(params=params)))


def connect(address: str | None, num_workers: int) -> Any:
    """Joins a running cluster, or starts Ray on this machine. Call it before jax starts: Ray forks.

    Args:
      address: of the cluster; None starts one here, with room for the workers.
      num_workers: workers wanted.

    Returns:
      The module ray.

    Raises:
      InputError: where Ray is not installed, or nothing answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Actors are CPU processes: Ray need not hide accelerators from a process that asks for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # By default workers run at the lowest priority, and starve beside a busy learner.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address is not None:
        # Read when Ray is imported; by default it retries for a quarter of an hour.
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
        if _has_token():
            # By default Ray uses the token only with a cluster that it discovers itself.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError:
        raise not_installed("backend is 'ray'", "Ray", "ray") from None
    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            # Room for every worker, however few cores they share.
            ray.init("local", num_cpus=max(num_workers, os.cpu_count() or 1), include_dashboard=False, **quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        if address is None:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"ray_address is {address!r}, and no Ray cluster answers there: {reason}") from None
    return ray


def start(make_job: Callable[[], Job], num_workers: int, address: str | None = None) -> Engine:
    """Starts the engine.

    Args:
      make_job: makes the job in the worker's process; must be picklable.
      num_workers: actors, each on a CPU of its own.
      address: of a running cluster; None starts Ray on this machine.
    """
    ray = connect(address, num_workers)
    actor_class = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, runtime_env={"env_vars": _environment()})(RayPost)
    actors = [actor_class.remote(worker, make_job) for worker in range(num_workers)]
    at_work: dict[Any, int] = {}
    # The newest parameters, put once for all workers.
    stored: dict[int, Any] = {}

    def send(worker: int, task: Task) -> None:
        if task.params is not None and task.version not in stored:
            import jax

            stored.clear()
            stored[task.version] = ray.put(jax.device_get(task.params))
        params = None if task.params is None else stored[task.version]
        at_work[actors[worker].run.remote(task._replace(params=None), params)] = worker

    def receive(patience: float) -> Result | WorkerLost:
        done, _ = ray.wait(list(at_work), num_returns=1, timeout=patience)
        if not done:
            raise TrainingError(nobody_answers(patience))
        worker = at_work.pop(done[0])
        try:
            return ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise TrainingError(f"worker {worker} failed with {error.cause!r}") from error
        except ray.exceptions.RayError as error:
            lines = str(error).splitlines()
            if getattr(error, "actor_init_failed", False):
                # Another process would fail in the same way. The last line is the error's own.
                raise TrainingError(f"worker {worker} could not start: {lines[-1]}") from error
            ray.kill(actors[worker])
            actors[worker] = actor_class.remote(worker, make_job)
            return WorkerLost(worker, lines[0])

    def close() -> None:
        for actor in actors:
            ray.kill(actor)
        if address is None:
            ray.shutdown()

    return Engine(send, receive, close)


def _knock(address: str) -> None:
    """Raises OSError within seconds where nothing listens at an address with a port; Ray itself would take minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()


def _has_token() -> bool:
    """Tells whether this user has a token for Ray clusters, where Ray looks for it."""
    given = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or (Path.home() / ".ray" / "auth_token").exists()


def _environment() -> dict[str, str]:
    """Returns a worker's environment variables: our settings, this process's XLA flags and its compilation cache."""
    cache = {name: value for name, value in os.environ.items() if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT"))}
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_WORKER_XLA_FLAG}".strip()
    return cache | _WORKER_ENVIRONMENT | {"XLA_FLAGS": flags}
