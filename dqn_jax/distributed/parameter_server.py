"""A parameter server and its workers as one deterministic program: lag is not set, it emerges in virtual time.

Each worker takes a random time for what it does between two pushes. An event of the scan is the next arrival: the worker's
push, taken with parameters as old as its last pull, is applied by the server. Behind a barrier a round is one event, and
workers are lanes of a `vmap`. Repetitions run one after the other on a device, so that an event indexes one worker and
writes one worker back: mapped, every write would be a scatter.

Not here: what a worker does, and what becomes of a push (`roles`); workers that are real (`server_on_workers`).

Shapes: W workers, N replay capacity of each, D devices, L repetitions on a device, S in all.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.agent import AgentState, not_finite, reduce_info, replay_bytes
from dqn_jax.build import build
from dqn_jax.config import AgentConfig, check_divides
from dqn_jax.distributed.config import ServerConfig, ServerExperiment
from dqn_jax.distributed.roles import Server, Worker, lag_info, make_server, make_worker, may_start, pulls
from dqn_jax.envs import Environment
from dqn_jax.evaluation import Evaluator, evaluator_of
from dqn_jax.learner import LearnerState
from dqn_jax.mapping import (
    PLANS,
    devices_for,
    from_devices,
    lane,
    lane_axes,
    names_of,
    over,
    place,
    stream_key,
    to_devices,
)
from dqn_jax.networks import Network
from dqn_jax.replay import ReplayState, put_ring, ring_of, side_by_side
from dqn_jax.types import Driver, Info, Params
from dqn_jax.virtual_time import SERVICE_TIMES


class ModelState(flax.struct.PyTreeNode):
    """A server, its workers, and when they will be done."""

    server: LearnerState
    workers: AgentState
    """Leaves [W, ...]. A shared replay is one; of local ones, the storage of workers that arrive one by one is [W N, ...]."""
    pulled: jax.Array
    """[W] int32 version of each worker's parameters."""
    pushes: jax.Array
    """[W] int32 pushes of each worker so far."""
    waiting: jax.Array
    """[W] bool, whether a worker has pushed and may not go on yet."""
    remaining: jax.Array
    """[W] float32 virtual time from now until each worker's next push."""
    plans: jax.Array
    """[] key that service times are drawn from."""


class Model(NamedTuple):
    """The server and its workers as pure functions."""

    init: Callable[[jax.Array], ModelState]
    """seed -> state."""
    event: Callable[[ModelState], tuple[ModelState, Info]]
    """state -> (state, info): the arrival of one push, or behind a barrier of all.

    The info has leaves [], but `lags` and whether pushes were `applied` as [1], or [W]."""
    first_worker: Callable[[ModelState], AgentState]
    """state -> worker number 0."""


def make_model(worker: Worker, server: Server, config: ServerConfig) -> Model:
    """Builds the model.

    Args:
      worker: what a worker does.
      server: what becomes of a push.
      config: how many workers, and who waits for whom.

    Returns:
      The model.
    """
    num_workers, everybody = config.num_workers, jnp.arange(config.num_workers)
    local, barrier = config.replay == "local", config.mode == "barrier"
    in_lanes = barrier and local
    take, put = functools.partial(_take, local), functools.partial(_put, local)

    def service_times(plans: jax.Array, pushes: jax.Array) -> jax.Array:
        """[W] time that each worker takes for its next push; a push's does not depend on what others do."""
        draw = SERVICE_TIMES[config.service_time]
        return jax.vmap(lambda w, push: draw(jax.random.fold_in(jax.random.fold_in(plans, w), push), ()))(everybody, pushes)

    def init(seed: jax.Array) -> ModelState:
        state, plans, nothing = server.init(seed), stream_key(seed, PLANS), jnp.zeros(num_workers, jnp.int32)
        return ModelState(
            server=state,
            workers=_start_workers(worker, config, seed, state),
            pulled=nothing,
            pushes=nothing,
            waiting=nothing > 0,
            remaining=service_times(plans, nothing),
            plans=plans,
        )

    def arrival(state: ModelState) -> tuple[ModelState, Info]:
        w = jnp.argmin(jnp.where(state.waiting, jnp.inf, state.remaining))
        one, push, info = worker.work(take(state.workers, w))
        lag = state.server.updates.count - state.pulled[w]
        after, applied = server.apply(state.server, push, lag)
        pushes = state.pushes.at[w].add(1)
        waiting = state.waiting.at[w].set(True)
        starts = may_start(config, pushes, waiting)
        due = starts & pulls(config, pushes)
        if config.mode == "asynchronous":
            workers = put(state.workers, w, worker.pull(one, after, due[w]))
        else:
            workers = worker.pull(put(state.workers, w, one), after, due)
        duration = state.remaining[w]
        times = service_times(state.plans, pushes)
        state = state.replace(
            server=after,
            workers=workers,
            pulled=jnp.where(due, after.updates.count, state.pulled),
            pushes=pushes,
            waiting=waiting & ~starts,
            remaining=jnp.where(starts, times, state.remaining - duration),
        )
        return state, info | {"lags": lag[None], "applied": applied[None], "duration": duration}

    def all_at_once(state: ModelState) -> tuple[ModelState, Info]:
        if in_lanes:
            axes = lane_axes(state.workers)
            workers, stacked, infos = jax.vmap(worker.work, in_axes=(axes,), out_axes=(axes, 0, 0))(state.workers)
        else:

            def next_one(workers: AgentState, w: jax.Array) -> tuple[AgentState, tuple[Params, Info]]:
                one, push, info = worker.work(take(workers, w))
                return put(workers, w, one), (push, info)

            workers, (stacked, infos) = jax.lax.scan(next_one, state.workers, everybody)
        lags = state.server.updates.count - state.pulled
        after = server.apply_mean(state.server, stacked)
        pushes = state.pushes + 1
        due = pulls(config, pushes)
        state = state.replace(
            server=after,
            workers=worker.pull(workers, after, due),
            pulled=jnp.where(due, after.updates.count, state.pulled),
            pushes=pushes,
            remaining=service_times(state.plans, pushes),
        )
        together = reduce_info(infos) | {"lags": lags, "applied": jnp.ones(num_workers, bool)}
        return state, together | {"duration": jnp.max(service_times(state.plans, pushes - 1))}

    def first_worker(state: ModelState) -> AgentState:
        return lane(state.workers, 0) if in_lanes else take(state.workers, jnp.int32(0))

    return Model(init, all_at_once if barrier else arrival, first_worker)


def _start_workers(worker: Worker, config: ServerConfig, seed: jax.Array, state: LearnerState) -> AgentState:
    """All workers after their warm-up, leaves [W, ...], their replays as `ModelState.workers` says."""
    everybody, barrier = jnp.arange(config.num_workers), config.mode == "barrier"

    def start(number: jax.Array) -> AgentState:
        return worker.init(seed, number, state)

    def start_next(replay: ReplayState, number: jax.Array) -> tuple[ReplayState, AgentState]:
        one = worker.init(seed, number, state, replay)
        return one.replay, one.replace(replay=())

    if config.replay == "shared":
        replay, workers = jax.lax.scan(start_next, worker.empty(), everybody)
        return workers.replace(replay=replay)
    axes = lane_axes(jax.eval_shape(start, 0), share_clocks=barrier)
    workers = jax.vmap(start, out_axes=axes)(everybody)
    return workers if barrier else workers.replace(replay=side_by_side(workers.replay))


def _take(local: bool, workers: AgentState, w: jax.Array) -> AgentState:
    """Worker w alone. A local replay is not copied, but seen through."""
    one = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, w, keepdims=False), workers.replace(replay=()))
    return one.replace(replay=ring_of(workers.replay, w) if local else workers.replay)


def _put(local: bool, workers: AgentState, w: jax.Array, one: AgentState) -> AgentState:
    """The workers, number w being `one`."""
    pairs = (workers.replace(replay=()), one.replace(replay=()))
    rest = jax.tree.map(lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, w, 0), *pairs)
    return rest.replace(replay=put_ring(workers.replay, w, one.replay) if local else one.replay)


def make_parameter_server(
    env: Environment,
    network: Network,
    agent_config: AgentConfig,
    config: ServerConfig,
    *,
    seeds: Sequence[int],
    devices: Sequence[jax.Device],
    pushes_per_chunk: int,
) -> Driver:
    """Builds the driver.

    Args:
      env: the environment.
      network: the Q-network.
      agent_config: the agent of each worker.
      config: the server and its workers.
      seeds: S, one for each repetition.
      devices: D devices, which divide the repetitions.
      pushes_per_chunk: pushes of all workers in one call of the driver's `step`; behind a barrier a multiple of W.

    Returns:
      The driver; its state is a ModelState with leaves [D, L, ...].

    Raises:
      InputError: where repetitions do not divide over the devices.
    """
    num_devices, num_workers = len(devices), config.num_workers
    check_divides("num_seeds", len(seeds), num_devices)
    worker = make_worker(env, network, agent_config, config)
    server = make_server(network, agent_config, config)
    model = make_model(worker, server, config)
    num_events = pushes_per_chunk // num_workers if config.mode == "barrier" else pushes_per_chunk

    def chunk(state: ModelState) -> tuple[ModelState, Info]:
        before = state.server.updates.count
        state, infos = jax.lax.scan(lambda state, _: model.event(state), state, length=num_events)
        lags, applied, durations = (infos.pop(name) for name in ("lags", "applied", "duration"))
        diagnosis = worker.diagnose(model.first_worker(state), state.server)
        return state, {
            **diagnosis,
            **reduce_info(infos),
            **lag_info(lags.reshape(-1), num_workers),
            "dropped": jnp.sum(~applied),
            "virtual_time": jnp.sum(durations),
            "updates": state.server.updates.count - before,
            "finite": diagnosis["finite"] & jnp.all(jnp.isfinite(infos["loss"])),
        }

    starts = over(lambda seeds: jax.lax.map(model.init, seeds), devices=devices)
    chunks = over(lambda states: jax.lax.map(chunk, states), devices=devices, donate=True)

    def init() -> ModelState:
        return starts(place(to_devices(np.array(seeds, np.uint32), num_devices), devices))

    frames = config.local_steps * agent_config.frames_per_step * pushes_per_chunk
    warm_up = num_workers * agent_config.warm_up_frames

    def step(state: ModelState) -> tuple[ModelState, Info]:
        state, info = chunks(state)
        return state, from_devices(info) | {"frames": np.full(len(seeds), frames)}

    return Driver(
        init=init,
        step=step,
        params=lambda state: from_devices(state.server.params),
        check=lambda state: None,
        problem=lambda info: not_finite(info, seeds),
        unit="frames",
        initial=warm_up,
        per_step=frames,
        initial_frames=warm_up,
        devices=names_of(devices),
        replay_bytes=len(seeds) * num_workers * replay_bytes(env, agent_config),
        lockstep=False,
    )


def from_config(config: ServerExperiment) -> tuple[Driver, Evaluator]:
    """The driver of a whole experiment on backend "device", and its greedy evaluation: what `runner.run` takes.

    Raises:
      InputError: for an environment, a number of devices or sizes that cannot be used.
    """
    env, network = build(config)
    driver = make_parameter_server(
        env,
        network,
        config.agent,
        config.server,
        seeds=config.seeds,
        devices=devices_for(config.num_devices, config.num_seeds),
        pushes_per_chunk=config.pushes_per_chunk,
    )
    return driver, evaluator_of(config, env, network)
