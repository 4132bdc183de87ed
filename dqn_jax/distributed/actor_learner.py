"""Actors that explore and a learner that trains on their transitions (Horgan et al. 2018): two halves of one agent.

An asynchronous actor sends blocks of transitions and goes on at once with the newest parameters; the learner makes as many
updates for each block as the agent makes for its frames, so the ratio of samples to inserts is the agent's. In synchronous mode
actors and learner wait for each other after each agent step, which is the same as the plain agent.

Not here: what actors do (`actors`), and where (`engines`).

Shapes: N actors, E environments in a block, T environment steps in a block, D devices of the learner.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.agent import AgentState, diagnose, make_agent, not_finite, reduce_info, reduce_infos, repeat, replay_bytes
from dqn_jax.build import build
from dqn_jax.distributed.actors import Block, Policy, side_by_side, with_every_frame
from dqn_jax.distributed.config import ActorLearnerExperiment
from dqn_jax.distributed.engines.pool import WorkerPool
from dqn_jax.distributed.engines.tasks import Engine, Result, WorkerLost
from dqn_jax.distributed.roles import lag_info
from dqn_jax.envs import Environment
from dqn_jax.evaluation import Evaluator, evaluator_of
from dqn_jax.frame_ring import SharedBy
from dqn_jax.mapping import check_replicas, local_devices, names_of, over, place, row, stream_key
from dqn_jax.networks import Network
from dqn_jax.types import Driver, Info, Tree

AXIS = "devices"
"""Name of the axis that gradients are averaged over."""


class LearnerRunState(flax.struct.PyTreeNode):
    """What is saved of a run. Actors are not: after a restart of the run they start afresh."""

    agent: AgentState
    """The learner and its replay, leaves [D, ...]; it has no actor."""
    starts: jax.Array
    """[N] int32 times that each actor has started."""
    frames: jax.Array
    """[N] int32 frames that each actor has taken."""


class LearnerSide(NamedTuple):
    """The learner and its replay over D devices, as functions of an AgentState without an actor, leaves [D, ...]."""

    init: Callable[[], AgentState]
    """() -> state."""
    absorb: Callable[[AgentState, Block, bool], AgentState]
    """(state, block, learn) -> state: stores a block, its environments divided over the devices; learns if `learn`."""
    diagnose: Callable[[AgentState], Info]
    """`agent.diagnose`, means over the devices."""


def make_learner_side(
    config: ActorLearnerExperiment, env: Environment, network: Network, devices: list[jax.Device]
) -> LearnerSide:
    """Builds the learner's side: the same code as data-parallel training, fed by blocks.

    Raises:
      InputError: where sizes do not divide over the devices.
    """
    num_devices = len(devices)
    shared_by = SharedBy(config.agent.num_envs, config.acts_per_block)
    agent = make_agent(env, network, config.learners_agent, axis_name=AXIS, num_shards=num_devices, shared_by=shared_by)
    config.check_blocks(num_devices)

    def start(shard: jax.Array) -> AgentState:
        return agent.init(stream_key(config.seed), shard=shard).replace(actor=())

    def store(state: AgentState, block: Block) -> AgentState:
        def add(state: AgentState, moment: Block) -> tuple[AgentState, None]:
            return agent.add(state, *moment), None

        return jax.lax.scan(add, state, block)[0]

    def store_and_learn(state: AgentState, block: Block) -> AgentState:
        return repeat(agent.learn, config.updates_per_block)(agent.prepare(store(state, block)))[0]

    starts = over(start, AXIS, devices)
    storing = over(store, AXIS, devices, donate=True)
    learning = over(store_and_learn, AXIS, devices, donate=True)
    diagnosing = over(lambda state: diagnose(agent, state), AXIS, devices)

    def absorb(state: AgentState, block: Block, learn: bool) -> AgentState:
        def split(x: Tree) -> np.ndarray:
            """Reshapes [T, E, ...] to [D, T, E / D, ...]."""
            x = np.asarray(x)
            return np.moveaxis(x.reshape(len(x), num_devices, -1, *x.shape[2:]), 1, 0)

        rows = Block(
            transitions=jax.tree.map(split, block.transitions),
            valid=np.tile(np.asarray(block.valid), (num_devices, 1)),
            priorities=None if block.priorities is None else split(block.priorities),
        )
        return jax.block_until_ready((learning if learn else storing)(state, place(rows, devices)))

    def look(state: AgentState) -> Info:
        return reduce_info({name: np.asarray(values) for name, values in diagnosing(state).items()})

    return LearnerSide(lambda: starts(place(np.arange(num_devices, dtype=np.int32), devices)), absorb, look)


def from_config(config: ActorLearnerExperiment, engine: Engine) -> tuple[Driver, Evaluator]:
    """Builds the driver of an experiment, and its evaluator, for `runner.run`.

    Args:
      config: the experiment; its budget counts the frames of all actors.
      engine: the actors, with `make_job(config)` as their job.

    Raises:
      InputError: for an environment, a number of devices or sizes that cannot be used.
    """
    env, network = build(config, on_host=True)
    devices = local_devices(config.num_devices)
    hub = _LearnerRun(config, engine, make_learner_side(config, env, network, devices))
    driver = Driver(
        init=hub.init,
        step=hub.step,
        params=lambda state: jax.tree.map(lambda x: x[None], row(state.agent.learner.params, 0)),
        check=lambda state: check_replicas(state.agent.learner),
        problem=lambda info: not_finite(info, config.seeds),
        unit="frames",
        initial=config.initial_frames,
        per_step=config.frames_per_chunk,
        initial_frames=config.initial_frames,
        devices=names_of(devices),
        replay_bytes=replay_bytes(env, config.agent),
        # Whose replay is empty, as that of a new run is, begins by filling it.
        refill=lambda state: state,
        lockstep=False,
        close=engine.close,
    )
    return driver, evaluator_of(config, env, network)


class _LearnerRun:
    """The learner's side of a run in this process. Between chunks asynchronous actors go on acting."""

    def __init__(self, config: ActorLearnerExperiment, engine: Engine, side: LearnerSide) -> None:
        self.config, self.engine, self.side = config, engine, side
        self.pool: WorkerPool | None = None

    def init(self) -> LearnerRunState:
        nothing = jnp.zeros(self.config.actors.num_actors, jnp.int32)
        return LearnerRunState(agent=self.side.init(), starts=nothing, frames=nothing)

    def step(self, state: LearnerRunState) -> tuple[LearnerRunState, Info]:
        """Learns from a chunk's blocks."""
        config = self.config
        agent = state.agent if self.pool else self._begin(state)
        assert self.pool is not None
        pool, before = self.pool, self.version
        infos: list[Info] = []
        lags: list[int] = []
        late = 0
        for _ in range(config.blocks_per_chunk):
            block, lag, info = self._next_block()
            lags.append(lag)
            infos.append(info)
            if config.actors.lag_limit is not None and lag > config.actors.lag_limit:
                late += 1
                continue
            agent = self._learn(agent, block)
        updates = self.version - before
        diagnosis = self.side.diagnose(agent)
        stored = (config.blocks_per_chunk - late) * config.frames_per_block
        info = {
            **diagnosis,
            **reduce_infos(infos),
            **lag_info(np.array(lags), pool.size * config.updates_per_block),
            **pool.counts(),
            # The mean over all actors.
            "epsilon": np.nanmean(self.epsilons),
            "dropped": late,
            "samples_per_insert": updates * config.agent.batch_size / stored if stored else 0.0,
            "frames": config.frames_per_chunk,
            "updates": updates,
        }
        state = LearnerRunState(agent, *(jnp.array(x, jnp.int32) for x in (pool.starts, pool.frames)))
        return state, {name: np.asarray(value)[None] for name, value in info.items()}

    def _begin(self, state: LearnerRunState) -> AgentState:
        """Starts the actors, and fills an empty replay with its first transitions."""
        agent = state.agent
        self.pool = WorkerPool(self.engine, np.array(state.starts), np.array(state.frames), self.config.patience)
        self.version = int(row(agent.learner.updates.count, 0))
        # The version that each actor has.
        self.has = np.full(self.pool.size, -1)
        self.epsilons = np.full(self.pool.size, np.nan)
        self._publish(agent)
        if not np.asarray(agent.replay.added.count).any():
            for _ in range(self.config.warm_up_blocks):
                block, _, _ = self._next_block()
                agent = self.side.absorb(agent, block, False)
        return agent

    def _learn(self, agent: AgentState, block: Block) -> AgentState:
        agent = self.side.absorb(agent, block, True)
        self.version += self.config.updates_per_block
        if self.version - self.published >= self.config.actors.publish_period:
            self._publish(agent)
        return agent

    def _publish(self, agent: AgentState) -> None:
        self.published = self.version
        self.policy = Policy(*row((agent.learner.params, agent.learner.loss_hyperparams), 0))

    def _next_block(self) -> tuple[Block, int, Info]:
        """Receives (block, its lag in versions, info): the next one, or in synchronous mode all actors' as one."""
        assert self.pool is not None
        synchronous = self.config.actors.mode == "synchronous"
        for actor in np.flatnonzero(~self.pool.at_work).tolist():
            self._send(actor)
        results: dict[int, Result] = {}
        while len(results) < (self.pool.size if synchronous else 1):
            news = self.pool.receive()
            if isinstance(news, WorkerLost):
                self.has[news.worker] = -1
                self._send(news.worker)
                continue
            results[news.worker] = news
            self.epsilons[news.worker] = news.info["epsilon"]
            self.pool.frames[news.worker] += self.config.frames_per_block // len(self.has if synchronous else results)
            if not synchronous:
                # Before the learner's updates, so that the actor need not wait for them.
                self._send(news.worker)
        ordered = [results[actor] for actor in sorted(results)]
        infos = reduce_infos([result.info for result in ordered])
        block = side_by_side([with_every_frame(result.payload) for result in ordered])
        return block, self.version - ordered[0].version, infos

    def _send(self, actor: int) -> None:
        assert self.pool is not None
        news = self.policy if self.has[actor] < self.published else None
        self.has[actor] = self.published
        self.pool.send(actor, self.published, news)
