"""A parameter server with real workers: the roles of the model on device, time being what passes.

Not here: where workers run (`engines`), what they do (`workers`), what becomes of a push (`roles`).

Shapes: W workers.
"""

import flax
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.agent import not_finite, reduce_info
from dqn_jax.build import build
from dqn_jax.distributed.config import ServerExperiment
from dqn_jax.distributed.engines.crew import Crew
from dqn_jax.distributed.engines.post import Engine, Lost, Report
from dqn_jax.distributed.roles import Copy, lag_info, make_server, may_start, pulls
from dqn_jax.evaluation import Evaluator, evaluator_of
from dqn_jax.learner import LearnerState
from dqn_jax.mapping import local_devices, names_of
from dqn_jax.types import Driver, Info, Tree


class HubState(flax.struct.PyTreeNode):
    """What is saved of a run. Workers and their replays are not: after a restart they begin new lives."""

    server: LearnerState
    lives: jax.Array
    """[W] int32 lives that each worker has had."""
    frames: jax.Array
    """[W] int32 frames that each worker has taken, its warm-ups apart."""
    pushes: jax.Array
    """[W] int32 pushes of each worker."""


def from_config(config: ServerExperiment, engine: Engine) -> tuple[Driver, Evaluator]:
    """The driver of a whole experiment on real workers, and its greedy evaluation: what `runner.run` takes.

    Args:
      config: the experiment; its budget counts the frames of all workers.
      engine: its workers, with `workers.make_job(config)` as their job.

    Raises:
      InputError: for an environment or sizes that cannot be used.
    """
    env, network = build(config, on_host=True)
    hub = _Hub(config, engine, network)
    warm_up = config.warm_up_frames
    driver = Driver(
        init=hub.init,
        step=hub.step,
        params=lambda state: jax.tree.map(lambda x: x[None], state.server.params),
        check=lambda state: None,
        complaint=lambda info: not_finite(info, config.seeds),
        unit="frames",
        initial=warm_up,
        per_step=config.pushes_per_chunk * config.frames_per_push,
        initial_frames=warm_up,
        devices=names_of(local_devices(1)),
        lockstep=False,
        close=engine.close,
    )
    return driver, evaluator_of(config, env, network)


class _Hub:
    """The server's side of a run in this process. Between chunks workers go on working."""

    def __init__(self, config: ServerExperiment, engine: Engine, network: Tree) -> None:
        self.config, self.engine = config, engine
        server = make_server(network, config.agent, config.server)
        self.start = jax.jit(lambda: server.init(config.seed))
        self.apply = jax.jit(server.apply)
        self.apply_mean = jax.jit(server.apply_mean)
        self.crew: Crew | None = None

    def init(self) -> HubState:
        nothing = jnp.zeros(self.config.server.num_workers, jnp.int32)
        return HubState(server=self.start(), lives=nothing, frames=nothing, pushes=nothing)

    def step(self, state: HubState) -> tuple[HubState, Info]:
        """Receives a chunk's pushes."""
        config, server, before = self.config, state.server, int(state.server.updates.count)
        pushes, again = np.array(state.pushes), 0
        counts = self.crew.counts() if self.crew else {}
        if self.crew is None:
            again = self._begin(state)
        assert self.crew is not None
        crew = self.crew
        infos: list[Info] = []
        lags: list[int] = []
        refused = 0
        while len(infos) < config.pushes_per_chunk:
            news = crew.receive()
            if isinstance(news, Lost):
                self._send(server, news.worker, due=True)
                continue
            lags.append(int(server.updates.count) - news.version)
            infos.append(news.info)
            pushes[news.worker] += 1
            crew.frames[news.worker] += config.frames_per_push
            self.waiting[news.worker] = True
            server, applied = self._take(server, news, lags[-1])
            refused += not applied
            self._go_on(server, pushes)
        news_of_crew = {name: count - counts.get(name, 0) for name, count in crew.counts().items()}
        again += int(news_of_crew["workers_lost"]) * config.agent.warm_up_frames
        info = {
            **reduce_info({name: np.stack([info[name] for info in infos]) for name in infos[0]}),
            **lag_info(np.array(lags), crew.size),
            "dropped": refused,
            **news_of_crew,
            "frames": config.pushes_per_chunk * config.frames_per_push + again,
            "updates": int(server.updates.count) - before,
            "finite": all(np.isfinite(x).all() for x in (*jax.tree.leaves(server.params), *(info["loss"] for info in infos))),
        }
        state = HubState(server, *(jnp.array(x, jnp.int32) for x in (crew.lives, crew.frames, pushes)))
        return state, {name: np.asarray(value)[None] for name, value in info.items()}

    def _begin(self, state: HubState) -> int:
        """Gives workers new lives, and returns the frames that they take to gather experience again: after a restart."""
        crew = self.crew = Crew(self.engine, np.array(state.lives), np.array(state.frames), self.config.patience)
        self.waiting = np.ones(crew.size, bool)
        # Behind a barrier: what has been pushed since the last update.
        self.heap: dict[int, Tree] = {}
        self._go_on(state.server, np.array(state.pushes))
        return crew.size * self.config.agent.warm_up_frames if crew.lives.max() > 1 else 0

    def _go_on(self, server: LearnerState, pushes: np.ndarray) -> None:
        """Sends orders to the workers that waited and may start; a new life begins with a pull."""
        assert self.crew is not None
        for worker in np.flatnonzero(may_start(self.config.server, pushes, self.waiting)).tolist():
            self.waiting[worker] = False
            self._send(server, worker, due=self.crew.reports[worker] == 0 or pulls(self.config.server, pushes[worker]))

    def _send(self, server: LearnerState, worker: int, due: bool) -> None:
        assert self.crew is not None
        copy = Copy(server.params, server.target_params, server.loss_hyperparams) if due else None
        self.crew.send(worker, int(server.updates.count), copy)

    def _take(self, server: LearnerState, report: Report, lag: int) -> tuple[LearnerState, bool]:
        """The server after a push, and whether it counted. Behind a barrier it waits for the others, in the workers' order."""
        if self.config.server.mode != "barrier":
            server, applied = self.apply(server, report.payload, lag)
            return server, bool(applied)
        assert self.crew is not None
        self.heap[report.worker] = report.payload
        if len(self.heap) == self.crew.size:
            pushes = [self.heap[worker] for worker in range(self.crew.size)]
            server = self.apply_mean(server, jax.tree.map(lambda *rows: np.stack(rows), *pushes))
            self.heap = {}
        return server, True
