"""A parameter server with real workers, in real time: the same roles as in the model on device.

Not here: where workers run (`engines`), what they do (`workers`), what is done with a push (`roles`).

Shapes: W workers.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.agent import not_finite, reduce_infos, replay_bytes
from dqn_jax.build import build
from dqn_jax.distributed.config import ServerExperiment
from dqn_jax.distributed.engines.pool import WorkerPool
from dqn_jax.distributed.engines.tasks import Engine, Result, WorkerLost
from dqn_jax.distributed.roles import Copy, lag_info, make_server, may_start, pulls
from dqn_jax.evaluation import Evaluator, evaluator_of
from dqn_jax.learner import LearnerState
from dqn_jax.mapping import local_devices, names_of
from dqn_jax.types import Driver, Info, Tree


class ServerRunState(flax.struct.PyTreeNode):
    """What is saved of a run. Workers and their replays are not: after a restart of the run they start afresh."""

    server: LearnerState
    starts: jax.Array
    """[W] int32 times that each worker has started."""
    frames: jax.Array
    """[W] int32 frames that each worker has taken, without its warm-ups."""
    pushes: jax.Array
    """[W] int32 pushes of each worker."""


def from_config(config: ServerExperiment, engine: Engine) -> tuple[Driver, Evaluator]:
    """Builds the driver of an experiment on real workers, and its evaluator, for `runner.run`.

    Args:
      config: the experiment; its budget counts the frames of all workers.
      engine: its workers, with `workers.make_job(config)` as their job.

    Raises:
      InputError: for an environment or sizes that cannot be used.
    """
    env, network = build(config, on_host=True)
    # Ray's workers may be on other machines.
    workers_here = 0 if config.backend == "ray" else config.server.num_workers
    hub = _ServerRun(config, engine, network)
    warm_up = config.warm_up_frames
    driver = Driver(
        init=hub.init,
        step=hub.step,
        params=lambda state: jax.tree.map(lambda x: x[None], state.server.params),
        check=lambda state: None,
        problem=lambda info: not_finite(info, config.seeds),
        unit="frames",
        initial=warm_up,
        per_step=config.pushes_per_chunk * config.frames_per_push,
        initial_frames=warm_up,
        devices=names_of(local_devices(1)),
        replay_bytes=workers_here * replay_bytes(env, config.agent),
        lockstep=False,
        close=engine.close,
    )
    return driver, evaluator_of(config, env, network)


class _ServerRun:
    """The server's side of a run in this process. Between chunks workers go on working."""

    def __init__(self, config: ServerExperiment, engine: Engine, network: Tree) -> None:
        self.config, self.engine = config, engine
        server = make_server(network, config.agent, config.server)
        self.start = jax.jit(lambda: server.init(config.seed))
        self.apply = jax.jit(server.apply)
        self.apply_mean = jax.jit(server.apply_mean)
        self.pool: WorkerPool | None = None

    def init(self) -> ServerRunState:
        nothing = jnp.zeros(self.config.server.num_workers, jnp.int32)
        return ServerRunState(server=self.start(), starts=nothing, frames=nothing, pushes=nothing)

    def step(self, state: ServerRunState) -> tuple[ServerRunState, Info]:
        """Receives and applies a chunk's pushes."""
        config, server, before = self.config, state.server, int(state.server.updates.count)
        pushes, again = np.array(state.pushes), 0
        if self.pool is None:
            again = self._begin(state)
        assert self.pool is not None
        pool = self.pool
        infos: list[Info] = []
        lags: list[int] = []
        refused = 0
        while len(infos) < config.pushes_per_chunk:
            news = pool.receive()
            if isinstance(news, WorkerLost):
                self._send(server, news.worker, due=True)
                continue
            lags.append(int(server.updates.count) - news.version)
            infos.append(news.info)
            pushes[news.worker] += 1
            pool.frames[news.worker] += config.frames_per_push
            self.waiting[news.worker] = True
            server, applied = self._take(server, news, lags[-1])
            refused += not applied
            self._go_on(server, pushes)
        counts = pool.counts()
        again += int(counts["workers_lost"]) * config.agent.warm_up_frames
        info = {
            **reduce_infos(infos),
            **lag_info(np.array(lags), pool.size),
            "dropped": refused,
            **counts,
            "frames": config.pushes_per_chunk * config.frames_per_push + again,
            "updates": int(server.updates.count) - before,
            "finite": all(np.isfinite(x).all() for x in (*jax.tree.leaves(server.params), *(info["loss"] for info in infos))),
        }
        state = ServerRunState(server, *(jnp.array(x, jnp.int32) for x in (pool.starts, pool.frames, pushes)))
        return state, {name: np.asarray(value)[None] for name, value in info.items()}

    def _begin(self, state: ServerRunState) -> int:
        """Starts the workers, and returns the frames of the warm-ups that they repeat after a restart."""
        pool = self.pool = WorkerPool(self.engine, np.array(state.starts), np.array(state.frames), self.config.patience)
        self.waiting = np.ones(pool.size, bool)
        # Behind a barrier: pushes since the last update, by worker.
        self.pending: dict[int, Tree] = {}
        self._go_on(state.server, np.array(state.pushes))
        return pool.size * self.config.agent.warm_up_frames if pool.starts.max() > 1 else 0

    def _go_on(self, server: LearnerState, pushes: np.ndarray) -> None:
        """Sends tasks to the workers that waited and may go on; the first after a start is a pull."""
        assert self.pool is not None
        for worker in np.flatnonzero(may_start(self.config.server, pushes, self.waiting)).tolist():
            self.waiting[worker] = False
            self._send(server, worker, due=self.pool.results[worker] == 0 or pulls(self.config.server, pushes[worker]))

    def _send(self, server: LearnerState, worker: int, due: bool) -> None:
        assert self.pool is not None
        copy = Copy(server.params, server.target_params, server.loss_hyperparams) if due else None
        self.pool.send(worker, int(server.updates.count), copy)

    def _take(self, server: LearnerState, result: Result, lag: int) -> tuple[LearnerState, bool]:
        """Applies a push: (server, whether it was applied). Behind a barrier, pushes are averaged once all have arrived."""
        if self.config.server.mode != "barrier":
            server, applied = self.apply(server, result.payload, lag)
            return server, bool(applied)
        assert self.pool is not None
        self.pending[result.worker] = result.payload
        if len(self.pending) == self.pool.size:
            pushes = [self.pending[worker] for worker in range(self.pool.size)]
            server = self.apply_mean(server, jax.tree.map(lambda *rows: np.stack(rows), *pushes))
            self.pending = {}
        return server, True
