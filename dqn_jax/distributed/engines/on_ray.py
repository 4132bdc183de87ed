"""Workers as Ray actors: processes of this machine, or of a cluster. The only module that needs Ray (extra "ray").

An actor that dies or freezes is replaced by a new one here, not by Ray, which would repeat the call without reporting the loss.
"""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dqn_jax.config import InputError, TrainingError, not_installed
from dqn_jax.distributed.engines.raylet import GONE, Raylet
from dqn_jax.distributed.engines.silence import Activity, frozen, not_answered, overdue, seconds_left
from dqn_jax.distributed.engines.tasks import Engine, Job, Result, Task, WorkerLoop, WorkerLost, nobody_answers

_SECONDS_TO_CONNECT = 10.0
_SECONDS_BETWEEN_LOOKS = 1.0
"""Time between two looks for the raylet while nobody answers."""
_TOKEN = Path(".ray") / "auth_token"
"""Where Ray looks for a user's token, below their home."""
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

    def greet(self) -> None:
        """Answers once the process has started: until then it waits for a CPU of the cluster."""


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
    if address is None:
        # Ray's own variable, for machines that are no cluster: all its processes then listen on 127.0.0.1 alone.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if not _has_token() and os.environ.get("RAY_AUTH_MODE", "token") == "token":
            _make_token()
    else:
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
    actors = _Actors(connect(address, num_workers), make_job, num_workers)

    def close() -> None:
        actors.close(shutdown=address is None)

    return Engine(actors.send, actors.receive, close)


class _RayActor(Activity):
    """One actor, and its calls: `greeting` is None once it has greeted, `task` while it has none."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor, self.greeting, self.task = actor, actor.greet.remote(), None


class _Actors:
    """The actors of this process, those that are there now."""

    def __init__(self, ray: Any, make_job: Callable[[], Job], num_workers: int) -> None:
        self.ray, self.make_job = ray, make_job
        node_id = ray.get_runtime_context().get_node_id()
        self.raylet = Raylet(next(node["RayletSocketName"] for node in ray.nodes() if node["NodeID"] == node_id))
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "runtime_env": {"env_vars": _environment()}}
        self.actor_class = ray.remote(**options)(RayPost)
        self.lives = [self._begin(worker) for worker in range(num_workers)]
        # The newest parameters, put once for all workers.
        self.stored: dict[int, Any] = {}

    def send(self, worker: int, task: Task) -> None:
        if task.params is not None and task.version not in self.stored:
            import jax

            self.stored.clear()
            self.stored[task.version] = self.ray.put(jax.device_get(task.params))
        params = None if task.params is None else self.stored[task.version]
        life = self.lives[worker]
        life.send()
        life.task = life.actor.run.remote(task._replace(params=None), params)
        if life.greeting is None:
            life.begin()

    def receive(self, patience: float) -> Result | WorkerLost:
        end = time.monotonic() + patience
        while True:
            over = time.monotonic() >= end
            if overdue(self.lives, patience):
                # Its answer, or that of another, may have come while nobody looked.
                for worker, call in self._ready(2 * len(self.lives), 0.0):
                    if call == self.lives[worker].task:
                        self.lives[worker].answer()
                silent = frozen(self.lives, patience)
                if silent is not None:
                    return self._replace(silent, not_answered(patience))
            ready = self._ready(1, min(_SECONDS_BETWEEN_LOOKS, seconds_left(self.lives, patience, end)))
            for worker, call in ready:
                life = self.lives[worker]
                if call == life.task:
                    return self._take(worker)
                life.greeting = None
                if life.task is not None:
                    life.begin()
                end = time.monotonic() + patience
            if not ready and not self.raylet.is_there():
                raise TrainingError(GONE)
            if not ready and over:
                raise TrainingError(nobody_answers(patience))

    def close(self, shutdown: bool) -> None:
        for life in self.lives:
            self.ray.kill(life.actor)
        if shutdown:
            self.ray.shutdown()
        self.raylet.leave()

    def _begin(self, worker: int) -> _RayActor:
        return _RayActor(self.actor_class.remote(worker, self.make_job))

    def _replace(self, worker: int, reason: str) -> WorkerLost:
        self.ray.kill(self.lives[worker].actor)
        self.lives[worker] = self._begin(worker)
        return WorkerLost(worker, reason)

    def _ready(self, most: int, seconds: float) -> list[tuple[int, Any]]:
        """Waits for the first of all calls; returns (worker, call) of those that are done, greetings first."""
        calls = {
            call: worker for worker, life in enumerate(self.lives) for call in (life.greeting, life.task) if call is not None
        }
        ready, _ = self.ray.wait(list(calls), num_returns=min(most, len(calls)), timeout=seconds)
        return [(calls[call], call) for call in ready]

    def _take(self, worker: int) -> Result | WorkerLost:
        """Takes the outcome of a worker's task."""
        life, ray = self.lives[worker], self.ray
        task, life.task = life.task, None
        life.answer()
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise TrainingError(f"worker {worker} failed with {error.cause!r}") from error
        except ray.exceptions.RayError as error:
            lines = str(error).splitlines()
            if not self.raylet.is_there():
                raise TrainingError(GONE) from error
            if getattr(error, "actor_init_failed", False):
                # Another process would fail in the same way. The last line is the error's own.
                raise TrainingError(f"worker {worker} could not start: {lines[-1]}") from error
            return self._replace(worker, lines[0])


def _knock(address: str) -> None:
    """Raises OSError within seconds where nothing listens at an address with a port; Ray itself would take minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()


def _has_token() -> bool:
    """Tells whether this user has a token for Ray clusters, where Ray looks for it."""
    given = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or (Path.home() / _TOKEN).exists()


def _make_token() -> None:
    """Makes a token that this user alone can read: one that Ray makes can be read by all."""
    path = Path.home() / _TOKEN
    path.parent.mkdir(exist_ok=True)
    # Another run of this user may be faster.
    with contextlib.suppress(FileExistsError), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))


def _environment() -> dict[str, str]:
    """Returns a worker's environment variables: our settings, this process's XLA flags and its compilation cache."""
    cache = {name: value for name, value in os.environ.items() if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT"))}
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_WORKER_XLA_FLAG}".strip()
    return cache | _WORKER_ENVIRONMENT | {"XLA_FLAGS": flags}
