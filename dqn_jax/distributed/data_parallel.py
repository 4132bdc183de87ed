"""Data-parallel DQN: one agent's environments, replay and batch divided over devices, its gradients averaged by `lax.pmean`.

Parameters are replicated; each device acts in its own environments and learns from its own replay. Many seeds are mapped
inside each device. With `seeds_over_devices` each device trains its own seeds and nothing is averaged. The devices may be those
of several processes: device d's part is that of shard d wherever it is.

Not here: the agent, which does not change; loops over chunks, files, signals (the runner).

Shapes: D devices, L seeds on a device, S seeds in all.
"""

from collections.abc import Sequence

import jax
import numpy as np

from dqn_jax.agent import AgentState, make_agent, make_chunk, not_finite, reduce_info
from dqn_jax.build import build
from dqn_jax.config import AgentConfig, DataParallelExperiment, InputError
from dqn_jax.envs import Environment
from dqn_jax.evaluation import Evaluator, evaluator_of
from dqn_jax.mapping import (
    check_replicas,
    devices_of_all,
    lane_axes,
    make_gather,
    names_of,
    over,
    own_rows,
    place,
    row,
    stream_key,
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
) -> Driver:
    """Builds the driver.

    Args:
      env: the environment.
      network: the Q-network.
      config: one whole agent; its sizes are divided by D.
      seeds: one independent run each.
      devices: D devices, those of all processes in the same order in each.
      steps_per_chunk: agent steps in one call of the driver's `step`.
      seeds_over_devices: divide the seeds over the devices instead of the agent.

    Returns:
      The driver; its state is an AgentState with leaves [D, L, ...], clocks [D]; in each of several processes, the rows of
      its own devices. What `step` and `params` return is the same in all.

    Raises:
      InputError: where sizes or seeds do not divide over the devices.
    """
    num_devices = len(devices)
    if seeds_over_devices:
        if len(seeds) % num_devices:
            raise InputError(
                f"num_seeds is {len(seeds)}, which does not divide over {num_devices} devices: make it a multiple of them"
            )
        agent = make_agent(env, network, config)
        seed_rows, shards = np.reshape(seeds, (num_devices, -1)), np.zeros(num_devices, np.int32)
    else:
        agent = make_agent(env, network, config, axis_name=AXIS, num_shards=num_devices)
        seed_rows, shards = np.tile(seeds, (num_devices, 1)), np.arange(num_devices, dtype=np.int32)

    def start(seed: jax.Array, shard: jax.Array) -> AgentState:
        return agent.warm_up(agent.init(stream_key(seed), shard=shard))

    def start_lanes(seeds: jax.Array, shard: jax.Array) -> AgentState:
        axes = lane_axes(jax.eval_shape(start, seeds[0], shard))
        return over(start, in_axes=(0, None), out_axes=axes)(seeds, shard)

    def chunk_lanes(state: AgentState) -> tuple[AgentState, Info]:
        axes = lane_axes(state)
        return over(make_chunk(agent, steps_per_chunk), in_axes=(axes,), out_axes=(axes, 0))(state)

    parallel_start = over(start_lanes, AXIS, devices)
    parallel_chunk = over(chunk_lanes, AXIS, devices, donate=True)
    every_row = make_gather(devices)

    def init() -> AgentState:
        return parallel_start(*place((seed_rows.astype(np.uint32), shards), devices))

    def step(state: AgentState) -> tuple[AgentState, Info]:
        state, info = parallel_chunk(state)
        rows = every_row(info)
        info = {name: values.reshape(-1) for name, values in rows.items()} if seeds_over_devices else reduce_info(rows)
        counts = {"frames": config.frames_per_step, "updates": config.updates_per_step}
        return state, info | {name: np.full(len(seeds), steps_per_chunk * count) for name, count in counts.items()}

    def params(state: AgentState) -> Params:
        if not seeds_over_devices:
            return row(state.learner.params, 0)
        first = devices[own_rows(devices)[0]]
        return jax.tree.map(lambda x: jax.device_put(np.concatenate(x), first), every_row(state.learner.params))

    def check(state: AgentState) -> None:
        if not seeds_over_devices:
            check_replicas((state.learner.params, state.learner.target_params, state.learner.opt_state))

    return Driver(
        init=init,
        step=step,
        params=params,
        check=check,
        complaint=lambda info: not_finite(info, seeds),
        unit="frames",
        initial=config.warm_up_frames,
        per_step=steps_per_chunk * config.frames_per_step,
        initial_frames=config.warm_up_frames,
        devices=names_of(devices),
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
