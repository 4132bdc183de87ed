"""A worker and a server as pure functions: what every parameter server is made of, on one device or between processes.

A worker acts, computes a push with its copy of the parameters, and may pull new ones. The server takes a push as a gradient.
Not here: who pushes when (`parameter_server`, `server_on_workers`).

Shapes: W workers.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dqn_jax.agent import AgentState, diagnose, every_step, hyperparams_of, keys_of, make_agent, repeat
from dqn_jax.config import MAX_COUNT, AgentConfig
from dqn_jax.distributed.config import ServerConfig
from dqn_jax.envs import Environment
from dqn_jax.frame_ring import SharedBy
from dqn_jax.learner import LearnerState, make_learner
from dqn_jax.mapping import stream_key
from dqn_jax.networks import Network
from dqn_jax.replay import ReplayState
from dqn_jax.types import Info, Params, Tree


class Copy(NamedTuple):
    """What a worker pulls of the server's state; the state itself will do too."""

    params: Params
    target_params: Params
    loss_hyperparams: dict[str, jax.Array]


class Worker(NamedTuple):
    """One worker; its state is an AgentState whose learner is its copy of the server's."""

    init: Callable[..., AgentState]
    """(seed, number, server state, replay=an empty one, frames=0) -> state after the warm-up, for the random streams of that
    number, epsilon going on as after `frames` frames."""
    work: Callable[[AgentState], tuple[AgentState, Params, Info]]
    """state -> (state, push, info): the agent steps between two pushes."""
    fresh: Callable[..., AgentState]
    """As `init`, before the warm-up: for who acts elsewhere, and stores what comes of it with `store`."""
    store: Callable[[AgentState, Tree, jax.Array], AgentState]
    """(state, what its memory takes [T, E, ...], valid [T]) -> state."""
    learn: Callable[[AgentState], tuple[AgentState, Params, Info]]
    """state -> (state, push, info): what one agent step does after its acts."""
    pull: Callable[..., AgentState]
    """(state, server state, due=True) -> state with the server's parameters and target where `due` ([] or [W] bool)."""
    empty: Callable[[], ReplayState]
    """() -> a replay into which nobody has stored anything."""
    diagnose: Callable[[AgentState, LearnerState], Info]
    """(state, server state) -> `agent.diagnose` of the server's parameters on this worker's experience."""


class ServerApply(Protocol):
    """`Server.apply`."""

    def __call__(self, state: LearnerState, push: Params, lag: jax.Array | int = 0) -> tuple[LearnerState, jax.Array]:
        """Returns the state, and whether the push was applied [] bool; lag [] int32 counts the updates that overtook it."""


class Server(NamedTuple):
    """The server; its state is a LearnerState, whose updates are also the version of its parameters."""

    init: Callable[[Tree], LearnerState]
    """seed -> state."""
    apply: ServerApply
    apply_mean: Callable[[LearnerState, Params], LearnerState]
    """(state, pushes [W, ...]) -> state: behind a barrier, one update by the mean of all."""


def make_worker(env: Environment, network: Network, config: AgentConfig, server: ServerConfig) -> Worker:
    """Builds a worker from the one agent.

    Args:
      env: the environment.
      network: the Q-network.
      config: sizes and choices of one worker, whose own frames its epsilon counts.
      server: what is pushed, and after how many steps.

    Returns:
      The worker. A gradient is taken after `acts_per_step` acts, as the agent takes it; a delta is the descent of
      `local_steps` agent steps, so that the server descends by it.
    """
    # The server owns the target: a worker's copy changes by pulling alone.
    config = dataclasses.replace(config, target_period=MAX_COUNT)
    shared_by = None
    if server.replay == "shared":
        shared_by = SharedBy(server.num_workers * config.num_envs, server.local_steps * config.acts_per_step)
        frames = config.importance_anneal_frames
        config = dataclasses.replace(
            config,
            replay_capacity=server.num_workers * config.replay_capacity,
            importance_anneal_frames=None if frames is None else server.num_workers * frames,
        )
    agent = make_agent(env, network, config, shared_by=shared_by)
    defaults = hyperparams_of(config)

    def fresh(
        seed: Tree, number: Tree, state: LearnerState | Copy, replay: ReplayState | None = None, frames: jax.Array | int = 0
    ) -> AgentState:
        actor_hyperparams = defaults.actor._replace(epsilon_first_frame=-jnp.asarray(frames, jnp.int32))
        worker = agent.init(stream_key(seed), hyperparams=defaults._replace(actor=actor_hyperparams), shard=number)
        if server.push == "gradient":
            worker = worker.replace(learner=worker.learner.replace(opt_state=()))
        return pull(worker if replay is None else worker.replace(replay=replay), state)

    def init(*args: Tree, **options: Tree) -> AgentState:
        return agent.warm_up(fresh(*args, **options))

    def pull(worker: AgentState, state: LearnerState | Copy, due: jax.Array | bool = True) -> AgentState:
        due = jnp.asarray(due)

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(due.reshape(due.shape + (1,) * new.ndim), new, old)

        pulled, own = ({name: getattr(learner, name) for name in Copy._fields} for learner in (state, worker.learner))
        return worker.replace(learner=worker.learner.replace(**jax.tree.map(choose, pulled, own)))

    def store(worker: AgentState, transitions: Tree, valid: jax.Array) -> AgentState:
        return jax.lax.scan(lambda worker, moment: (agent.add(worker, *moment), None), worker, (transitions, valid))[0]

    def learn(worker: AgentState) -> tuple[AgentState, Params, Info]:
        worker = agent.prepare(worker)
        if server.push == "gradient":
            return agent.grad(worker)
        return descent(repeat(agent.learn, config.updates_per_step), worker)

    def gradient(worker: AgentState) -> tuple[AgentState, Params, Info]:
        worker, act_info = agent.gather(worker)
        worker, grads, grad_info = agent.grad(worker)
        return worker, grads, act_info | grad_info

    def delta(worker: AgentState) -> tuple[AgentState, Params, Info]:
        return descent(repeat(agent.step, server.local_steps), worker)

    def descent(train: Callable[[AgentState], tuple[AgentState, Info]], worker: AgentState) -> tuple[AgentState, Params, Info]:
        """How far training moves a worker's parameters: what is left when the new ones are taken away from the old."""
        after, info = train(worker)
        return after, jax.tree.map(jnp.subtract, worker.learner.params, after.learner.params), info

    def work(worker: AgentState) -> tuple[AgentState, Params, Info]:
        worker, push, info = (gradient if server.push == "gradient" else delta)(worker)
        return worker, push, every_step(info)

    def look(worker: AgentState, state: LearnerState) -> Info:
        learner = state if server.push == "gradient" else pull(worker, state).learner
        return diagnose(agent, worker.replace(learner=learner))

    return Worker(init, work, fresh, store, learn, pull, lambda: agent.memory.init(defaults.replay), look)


def make_server(network: Network, config: AgentConfig, server: ServerConfig) -> Server:
    """Builds the server: the agent's learner for gradients; for deltas, plain descent by all of them.

    Args:
      network: the Q-network.
      config: the agent of a worker; its optimizer and clipping are the server's where gradients are pushed.
      server: what is pushed and what becomes of late pushes.

    Returns:
      The server. The target is updated every `target_period` of its updates.
    """
    if server.push == "delta":
        config = dataclasses.replace(
            config, optimizer="sgd", learning_rate=1.0, learning_rate_decay_updates=None, max_grad_norm=None
        )
    learner = make_learner(network, config)

    def init(seed: Tree) -> LearnerState:
        # Where the agent takes its network from, so that a server without delay is the plain agent.
        network_key, _, _ = keys_of(stream_key(seed))
        return learner.init(network_key, hyperparams_of(config).learner)

    def apply(state: LearnerState, push: Params, lag: jax.Array | int = 0) -> tuple[LearnerState, jax.Array]:
        numbers = state.hyperparams
        rate = numbers.learning_rate / (1.0 + lag) if server.lag_scaling else numbers.learning_rate
        after, _ = learner.apply(state.replace(hyperparams=numbers._replace(learning_rate=rate)), push)
        after = after.replace(hyperparams=numbers)
        if server.lag_limit is None:
            return after, jnp.bool_(True)
        accepted = jnp.asarray(lag <= server.lag_limit)
        return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), after, state), accepted

    def apply_mean(state: LearnerState, pushes: Params) -> LearnerState:
        return apply(state, jax.tree.map(lambda x: jnp.mean(x, axis=0), pushes))[0]

    return Server(init, apply, apply_mean)


def may_start(config: ServerConfig, pushes: Tree, waiting: Tree) -> Tree:
    """Which of the waiting workers may go on: [W] bool, from pushes [W] and waiting [W], numpy's or jax's.

    Source: the stale-synchronous rule of Ho et al. (2013): nobody is more than the bound ahead of the slowest.
    """
    if config.mode == "asynchronous":
        return waiting
    bound = 0 if config.mode == "barrier" else config.staleness_bound
    return waiting & (pushes - pushes.min() <= bound)


def pulls(config: ServerConfig, pushes: Tree) -> Tree:
    """Whether a worker that has pushed this often pulls before it goes on."""
    return pushes % config.pull_period == 0


def lag_bin(typical: int) -> int:
    """Versions in a bin of the histogram of lags: in its 32 bins, the last one open, four times the typical lag fits."""
    return max(1, typical // 8)


def lag_info(lags: Tree, typical: int) -> Info:
    """What is logged of the lags [T] of T pushes: mean, largest, and how many there were of each (`lag_bin`)."""
    lags = jnp.asarray(lags)
    bins = jnp.minimum(lags // lag_bin(typical), 31)
    return {"lag": jnp.mean(lags.astype(jnp.float32)), "lag_max": jnp.max(lags), "lag_histogram": jnp.bincount(bins, length=32)}
