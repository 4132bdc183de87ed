"""Data-parallel DQN: one agent's environments, replay and batch divided over devices, its gradients averaged by `lax.pmean`.

Parameters are replicated; each device acts in its own environments and learns from its own replay. Many seeds are mapped
inside each device. With `seeds_over_devices` each device trains its own seeds and nothing is averaged; or an agent's shards are
lanes on one device. The devices may be those of several processes: device d's part is that of shard d wherever it is.

Not here: the agent, which does not change; loops over chunks, files, signals (the runner).

Shapes: D devices, L seeds on a device, S seeds in all, N shards in lanes.
"""

from collections.abc import Sequence

import jax
import numpy as np

from dqn_jax.agent import AgentState, make_agent, make_chunk, not_finite, reduce_info, replay_bytes
from dqn_jax.build import build
from dqn_jax.config import AgentConfig, DataParallelExperiment, check_divides
from dqn_jax.envs import Environment, EnvParams
from dqn_jax.evaluation import Evaluator, evaluator_of
from dqn_jax.mapping import (
    check_replicas,
    devices_of_all,
    from_devices,
    lane_axes,
    make_gather,
    names_of,
    over,
    own_rows,
    place,
    row,
    stream_key,
    to_devices,
)
from dqn_jax.networks import Network
from dqn_jax.types import Driver, Info, Params

AXIS = "devices"
"""Name of the axis that gradients are averaged over."""


def make_data_parallel(
    env: Environment,
    network: Network,
    config: AgentConfig,
    *,
    seeds: Sequence[int],
    devices: Sequence[jax.Device],
    steps_per_chunk: int,
    seeds_over_devices: bool = False,
    env_params: EnvParams = None,
) -> Driver:
    """Builds the driver.

    Args:
      env: the environment.
      network: the Q-network.
      config: one whole agent; its sizes are divided by its shards, D or N.
      seeds: one independent run each.
      devices: D devices, those of all processes in the same order in each.
      steps_per_chunk: agent steps in one call of the driver's `step`.
      seeds_over_devices: divide the seeds over the devices instead of the agent.
      env_params: parameters of the environments of N shards, leaves [S, N, ...]; the agent is then divided over N lanes of a
        `vmap`, and the seeds over the devices. None: the environment's own, the same for all.

    Returns:
      The driver; its state is an AgentState with leaves [D, L, ...], or [D, L, N, ...], clocks [D]; in each of several
      processes, the rows of its own devices. What `step` and `params` return is the same in all.

    Raises:
      InputError: where sizes or seeds do not divide over the devices.
    """
    num_devices, in_lanes = len(devices), env_params is not None
    apart, every_seed = seeds_over_devices or in_lanes, np.array(seeds, np.uint32)
    own_params: tuple = ()
    if apart:
        check_divides("num_seeds", len(seeds), num_devices)
    seed_rows = to_devices(every_seed, num_devices) if apart else np.tile(every_seed, (num_devices, 1))
    if in_lanes:
        num_shards = jax.tree.leaves(env_params)[0].shape[1]
        shards, own_params = np.tile(np.arange(num_shards), (num_devices, 1)), (to_devices(env_params, num_devices),)
    elif apart:
        num_shards, shards = 1, np.zeros(num_devices)
    else:
        num_shards, shards = num_devices, np.arange(num_devices)
    agent = make_agent(env, network, config, AXIS if in_lanes or not apart else None, num_shards)
    start_args = (seed_rows, shards.astype(np.int32), *own_params)

    def start(seed: jax.Array, shard: jax.Array, env_params: EnvParams = env.params) -> AgentState:
        return agent.warm_up(agent.init(stream_key(seed), env_params, shard=shard))

    def start_lanes(seeds: jax.Array, shard: jax.Array, *own: EnvParams) -> AgentState:
        first = (shard[0], *jax.tree.map(lambda x: x[0, 0], own)) if in_lanes else (shard,)
        axes = lane_axes(jax.eval_shape(start, seeds[0], *first))
        one = over(start, AXIS, in_axes=(None, 0, 0), out_axes=axes) if in_lanes else start
        return over(one, in_axes=(0, None, *[0] * len(own)), out_axes=axes)(seeds, shard, *own)

    def chunk_lanes(state: AgentState) -> tuple[AgentState, Info]:
        axes, one = lane_axes(state), make_chunk(agent, steps_per_chunk)
        if in_lanes:
            one = over(one, AXIS, in_axes=(axes,), out_axes=(axes, 0))
        return over(one, in_axes=(axes,), out_axes=(axes, 0))(state)

    def refill_lanes(state: AgentState) -> AgentState:
        axes, one = lane_axes(state), agent.refill
        if in_lanes:
            one = over(one, AXIS, in_axes=(axes,), out_axes=axes)
        return over(one, in_axes=(axes,), out_axes=axes)(state)

    # Lanes have an axis of that name of their own.
    name = None if in_lanes else AXIS
    parallel_start = over(start_lanes, name, devices)
    parallel_chunk = over(chunk_lanes, name, devices, donate=True)
    parallel_refill = over(refill_lanes, name, devices, donate=True)
    every_row = make_gather(devices)

    def init() -> AgentState:
        return parallel_start(*place(start_args, devices))

    def step(state: AgentState) -> tuple[AgentState, Info]:
        state, info = parallel_chunk(state)
        # [shards, S], or [S] of agents that are whole.
        rows = every_row(info)
        rows = {name: np.moveaxis(np.concatenate(values), -1, 0) for name, values in rows.items()} if apart else rows
        counts = {"frames": config.frames_per_step, "updates": config.updates_per_step}
        info = reduce_info(rows) if in_lanes or not apart else rows
        return state, info | {name: np.full(len(seeds), steps_per_chunk * count) for name, count in counts.items()}

    def params(state: AgentState) -> Params:
        if not apart:
            return row(state.learner.params, 0)
        first, of_each = devices[own_rows(devices)[0]], from_devices(every_row(state.learner.params))
        return jax.device_put(jax.tree.map(lambda x: x[:, 0] if in_lanes else x, of_each), first)

    def check(state: AgentState) -> None:
        if not apart:
            check_replicas((state.learner.params, state.learner.target_params, state.learner.opt_state))

    return Driver(
        init=init,
        step=step,
        params=params,
        check=check,
        problem=lambda info: not_finite(info, seeds),
        unit="frames",
        initial=config.warm_up_frames,
        per_step=steps_per_chunk * config.frames_per_step,
        initial_frames=config.warm_up_frames,
        devices=names_of(devices),
        replay_bytes=len(seeds) * replay_bytes(env, config),
        refill=parallel_refill,
    )


def from_config(config: DataParallelExperiment) -> tuple[Driver, Evaluator]:
    """The driver of a whole experiment and its greedy evaluation: what `runner.run` takes.

    Raises:
      InputError: for an environment, a number of devices or sizes that cannot be used.
    """
    env, network = build(config)
    driver = make_data_parallel(
        env,
        network,
        config.agent,
        seeds=config.seeds,
        devices=devices_of_all(config.num_devices),
        steps_per_chunk=config.steps_per_chunk,
        seeds_over_devices=config.seeds_over_devices,
    )
    return driver, evaluator_of(config, env, network)
