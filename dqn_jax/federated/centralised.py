"""The opposite of a federation, to compare with: one agent that learns from all clients' experience, pooled.

It acts in every client's environments and averages its gradient over batches drawn evenly from every client's replay: the
data-parallel agent, its shards being clients on one device. Not here: anything that stays with a client.

Shapes: D devices, L repetitions on a device, S in all, N clients.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from dqn_jax.agent import AgentState, example_of, make_agent, repeat
from dqn_jax.config import AgentConfig, InputError
from dqn_jax.envs import Environment, EnvParams
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.mapping import lane_axes, names_of, over, place, stream_key
from dqn_jax.networks import Network
from dqn_jax.replay import bytes_per_transition
from dqn_jax.types import Driver, Info, Params

AXIS = "clients"
"""Name of the axis that gradients are averaged over."""
_KEPT = ("loss", "epsilon", "episodes", "return_sum")


def pooled(agent_config: AgentConfig, num_clients: int, batch_size: int) -> AgentConfig:
    """One client's config as that of an agent with all clients' environments and replay, its schedules in their frames."""
    sizes = ("num_envs", "replay_capacity", "learning_starts", "epsilon_decay_frames", "importance_anneal_frames")
    given = {name: getattr(agent_config, name) for name in sizes}
    larger = {name: num_clients * size for name, size in given.items() if size is not None}
    return dataclasses.replace(agent_config, batch_size=batch_size, **larger)


def make_centralised(
    env: Environment,
    network: Network,
    agent_config: AgentConfig,
    config: FederatedConfig,
    *,
    env_params: EnvParams,
    seeds: Sequence[int],
    devices: Sequence[jax.Device],
    rounds_per_step: int,
    batch_size: int,
) -> Driver:
    """Builds the driver; a round is as many agent steps as a client of the federation takes in one.

    Args:
      env: the environment.
      network: the Q-network.
      agent_config: the agent that every client would be.
      config: the federation it stands beside.
      env_params: parameters of the clients' environments, leaves [S, N, ...].
      seeds: S, one for each repetition.
      devices: D devices, each with repetitions of its own.
      rounds_per_step: rounds in one call of the driver's `step`.
      batch_size: transitions of an update, from all clients together.

    Returns:
      The driver; its state is an AgentState with leaves [D, L, N, ...], clocks [D].

    Raises:
      InputError: where repetitions do not divide over the devices, or the batch over the clients.
    """
    clients, num_devices = config.num_clients, len(devices)
    if batch_size % clients:
        raise InputError(
            f"batch_size is {batch_size}, which does not divide over {clients} clients: make it a multiple of them"
        )
    if len(seeds) % num_devices:
        raise InputError(f"num_seeds is {len(seeds)}, which does not divide over {num_devices} devices: make it a multiple")
    whole = pooled(agent_config, clients, batch_size)
    agent = make_agent(env, network, whole, axis_name=AXIS, num_shards=clients)
    steps = rounds_per_step * config.local_steps

    def start(seed: jax.Array, env_params: EnvParams, shard: jax.Array) -> AgentState:
        return agent.warm_up(agent.init(stream_key(seed), env_params, shard=shard))

    def start_lanes(seeds: jax.Array, env_params: EnvParams) -> AgentState:
        first = jax.tree.map(lambda x: x[0, 0], env_params)
        axes = lane_axes(jax.eval_shape(start, seeds[0], first, np.int32(0)))
        one = over(start, AXIS, in_axes=(None, 0, 0), out_axes=axes)
        return over(one, in_axes=(0, 0, None), out_axes=axes)(seeds, env_params, np.arange(clients))

    def step_once(state: AgentState) -> tuple[AgentState, Info]:
        state, info = agent.step(state)
        return state, {name: info[name] for name in _KEPT}

    def chunk_lanes(state: AgentState) -> tuple[AgentState, Info]:
        axes = lane_axes(state)
        one = over(repeat(step_once, steps), AXIS, in_axes=(axes,), out_axes=(axes, 0))
        return over(one, in_axes=(axes,), out_axes=(axes, 0))(state)

    parallel_start = over(start_lanes, devices=devices)
    parallel_chunk = over(chunk_lanes, devices=devices, donate=True)

    def init() -> AgentState:
        params = jax.tree.map(lambda x: np.reshape(x, (num_devices, -1, *x.shape[1:])), env_params)
        return parallel_start(*place((np.reshape(seeds, (num_devices, -1)).astype(np.uint32), params), devices))

    # A pooled replay means that every transition travels once; those of the warm-up have, before the first round.
    transition_bytes = bytes_per_transition(example_of(env))

    def step(state: AgentState) -> tuple[AgentState, Info]:
        state, info = parallel_chunk(state)
        finite = [np.isfinite(leaf).reshape(len(seeds), -1).all(axis=1) for leaf in jax.tree.leaves(params(state))]
        lanes = {name: np.asarray(values).reshape(len(seeds), clients) for name, values in info.items()}
        frames = steps * whole.frames_per_step
        return state, {
            "episodes": lanes["episodes"].sum(axis=1),
            "return_sum": lanes["return_sum"].sum(axis=1),
            "loss": lanes["loss"].mean(axis=1),
            "epsilon": lanes["epsilon"].mean(axis=1),
            "finite": np.isfinite(lanes["loss"]).all(axis=1) & np.all(finite, axis=0),
            "frames": np.full(len(seeds), frames),
            "updates": np.full(len(seeds), steps * whole.updates_per_step),
            "bytes": np.full(len(seeds), frames * transition_bytes),
        }

    def params(state: AgentState) -> dict[str, Params]:
        one_of_each = jax.tree.map(lambda x: np.asarray(x)[:, :, 0].reshape(len(seeds), *x.shape[3:]), state.learner.params)
        return {"global": one_of_each}

    def complaint(info: Info) -> str | None:
        if info["finite"].all():
            return None
        broken = np.asarray(seeds)[~info["finite"]].tolist()
        return f"seed(s) {broken}: a loss or parameter is not finite: lower agent.learning_rate"

    return Driver(
        init=init,
        step=step,
        params=params,
        check=lambda state: None,
        complaint=complaint,
        unit="rounds",
        initial=0,
        per_step=rounds_per_step,
        initial_frames=whole.warm_up_frames,
        devices=names_of(devices),
    )
