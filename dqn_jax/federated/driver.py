"""Federated DQN as a driver: rounds of many clients, of many repetitions, on one device or several.

Repetitions are mapped inside a device. Either each device has repetitions of its own, or each has its share of the clients of
all of them. Not here: rounds, files.

Shapes: D devices, L repetitions on a device, S in all, N clients.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.agent import make_agent, replay_bytes
from dqn_jax.build import build
from dqn_jax.config import AgentConfig
from dqn_jax.envs import Environment, EnvParams, eval_env_of
from dqn_jax.evaluation import Evaluator
from dqn_jax.federated.aggregation import make_aggregator, make_weighting
from dqn_jax.federated.client import make_client
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment
from dqn_jax.federated.evaluation import make_evaluator
from dqn_jax.federated.heterogeneity import draw_all
from dqn_jax.federated.layout import make_layout
from dqn_jax.federated.participation import make_participation
from dqn_jax.federated.rounds import FederatedState, Federation, Parts, make_federation
from dqn_jax.federated.server import make_server_rule
from dqn_jax.federated.sharing import make_sharing
from dqn_jax.federated.transforms import make_transforms
from dqn_jax.mapping import (
    check_replicas,
    devices_for,
    lane_axes,
    local_devices,
    names_of,
    over,
    place,
)
from dqn_jax.networks import Network
from dqn_jax.types import Driver, Info, Params

AXIS = "devices"
"""Name of the axis that clients are divided over."""

_SUMS = ("frames", "updates", "episodes", "return_sum", "participants", "downloads", "left_out", "virtual_time")
_FLAGS = ("finite", "broken", "weightless", "uncounted")


def from_config(config: FederatedExperiment, make: Callable[..., Driver] | None = None) -> tuple[Driver, Evaluator]:
    """Builds the driver of a whole experiment and its evaluation: what `runner.run` takes.

    Args:
      config: the experiment.
      make: builds the driver, with the arguments of `make_federated`; None takes that.

    Raises:
      InputError: for an environment, distribution, named part, number of devices or sizes that cannot be used.
    """
    env, network = build(config)
    count = config.num_devices
    devices = devices_for(count, config.num_seeds) if config.seeds_over_devices else local_devices(count)
    envs = draw_all(env, config.federated, config.num_seeds)
    driver = (make or functools.partial(make_federated, seeds_over_devices=config.seeds_over_devices))(
        env,
        network,
        config.agent,
        config.federated,
        env_params=envs.seen,
        seeds=config.seeds,
        devices=devices,
        rounds_per_step=config.runner.log_every,
    )
    players = devices if config.seeds_over_devices else devices[:1]
    played = eval_env_of(config, env)
    return driver, make_evaluator(
        played, network, config.federated, envs, config.runner.eval_episodes, players, config.runner.eval_epsilon
    )


def named_parts(env: Environment, network: Network, agent_config: AgentConfig, config: FederatedConfig) -> Parts:
    """The parts of a round that a config names. Replace any of them with your own: `parts._replace(aggregator=...)`."""
    agent = make_agent(env, network, agent_config)
    sharing = make_sharing(network, agent_config, config)
    return Parts(
        client=make_client(agent, agent_config, config, make_transforms(config.transforms), sharing),
        participation=make_participation(config),
        aggregator=make_aggregator(config.aggregator),
        weigh=make_weighting(config.weighting),
        server_rule=make_server_rule(config.server_optimizer),
        sharing=sharing,
    )


def make_federated(
    env: Environment,
    network: Network,
    agent_config: AgentConfig,
    config: FederatedConfig,
    *,
    env_params: EnvParams,
    seeds: Sequence[int],
    devices: Sequence[jax.Device],
    rounds_per_step: int,
    parts: Parts | None = None,
    seeds_over_devices: bool = True,
) -> Driver:
    """Builds the driver.

    Args:
      env: the environment.
      network: the Q-network.
      agent_config: the agent that every client is.
      config: clients, rounds, merging.
      env_params: parameters of the clients' environments, leaves [S, N, ...].
      seeds: S, one for each repetition.
      devices: D devices.
      rounds_per_step: rounds in one call of the driver's `step`.
      parts: what a round is made of; None takes what the config names.
      seeds_over_devices: divide the repetitions over the devices instead of the clients.

    Returns:
      The driver; its state is a FederatedState with leaves [D, L, ...], clocks [D] (but of clients that can differ, [D, L, n]).

    Raises:
      InputError: where repetitions or clients do not divide over the devices.
    """
    layout = make_layout(len(seeds), config.num_clients, len(devices), seeds_over_devices)
    parts = named_parts(env, network, agent_config, config) if parts is None else parts
    federation = make_federation(network, parts, config, AXIS if layout.shared else None)

    def axes_of(state: FederatedState) -> FederatedState:
        """Repetitions share the round, and clients' clocks if those cannot differ."""
        return lane_axes(state).replace(clients=lane_axes(state.clients, not config.varies))

    def start_lanes(seeds: jax.Array, env_params: EnvParams, client_ids: jax.Array) -> FederatedState:
        shapes = jax.eval_shape(federation.init, seeds[0], jax.tree.map(lambda x: x[0], env_params), client_ids)
        return over(federation.init, in_axes=(0, 0, None), out_axes=axes_of(shapes))(seeds, env_params, client_ids)

    def round_lanes(state: FederatedState) -> tuple[FederatedState, Info]:
        axes = axes_of(state)
        return over(_repeated(federation, rounds_per_step), in_axes=(axes,), out_axes=(axes, 0))(state)

    parallel_start = over(start_lanes, AXIS, devices)
    parallel_rounds = over(round_lanes, AXIS, devices, donate=True)
    one_env = jax.tree.map(lambda x: x[0, 0], env_params)
    num_bytes = parts.client.num_bytes(jax.eval_shape(parts.client.init, jax.random.key(0), one_env, None))

    def step(state: FederatedState) -> tuple[FederatedState, Info]:
        state, info = parallel_rounds(state)
        return state, _per_seed(layout.of_server(info), rounds_per_step, *num_bytes)

    def params(state: FederatedState) -> dict[str, Params]:
        server, clients = layout.of_server(state.server.params), layout.of_clients(state.clients.agent.learner.params)
        asked = {"clients": clients} if config.eval_clients else {}
        if config.personal == "none":
            return {"global": server} | asked
        shape = (len(seeds), config.num_clients)
        everywhere = jax.tree.map(lambda x: np.broadcast_to(x[:, None], (*shape, *x.shape[1:])), server)
        return {"personal": parts.sharing.merged(clients, everywhere)} | asked

    def check(state: FederatedState) -> None:
        if layout.shared:
            check_replicas(state.server)

    warm_up = 0 if config.merge.replay == "clear" and config.participation != "buffered" else agent_config.warm_up_frames
    return Driver(
        init=lambda: parallel_start(*place(layout.rows(seeds, env_params), devices)),
        step=step,
        params=params,
        check=check,
        problem=lambda info: _problem(info, np.asarray(seeds), config.weighting, parts.aggregator.leaves_out_non_finite),
        unit="rounds",
        initial=0,
        per_step=rounds_per_step,
        initial_frames=config.num_clients * warm_up,
        devices=names_of(devices),
        replay_bytes=len(seeds) * config.num_clients * replay_bytes(env, agent_config),
    )


def _repeated(federation: Federation, times: int) -> Callable[[FederatedState], tuple[FederatedState, Info]]:
    """Rounds in one loop; their infos are added, flags apart."""

    def rounds(state: FederatedState) -> tuple[FederatedState, Info]:
        state, infos = jax.lax.scan(lambda state, _: federation.round(state), state, length=times)
        # Who broke first: from then on the server would pass it on to everybody.
        first = jnp.argmin(infos["finite"])
        flags = {"finite": infos["finite"].all(0), "broken": infos["broken"][first]}
        flags |= {name: infos[name].any(0) for name in ("weightless", "uncounted")}
        return state, {name: values.sum(0) for name, values in infos.items() if name not in _FLAGS} | flags

    return rounds


def _per_seed(sums: dict[str, np.ndarray], rounds: int, bytes_down: int, bytes_up: int) -> Info:
    """A chunk's info from its sums [S]: means over the participants, NaN where there were none, and bytes."""
    people = sums["participants"]
    means = {}
    for name in (name.removesuffix("_sum") for name in sums if name.endswith("_sum") and name not in _SUMS):
        # Who was left out adds nothing to the loss, its own numbers and the drift.
        over = people if name in ("epsilon", "staleness") else people - sums["left_out"]
        means[name] = np.where(over > 0, sums[f"{name}_sum"] / np.maximum(over, 1), np.nan)
    # Python integers: a long run sends more bytes than 32 bits can count.
    counts = zip(sums["downloads"].tolist(), people.tolist(), strict=True)
    return {
        **{name: sums[name] for name in (*_SUMS, *_FLAGS)},
        **means,
        "delta_norm": sums["delta_norm"] / rounds,
        "bytes": np.array([down * bytes_down + up * bytes_up for down, up in counts], object),
    }


def _problem(info: Info, seeds: np.ndarray, weighting: str, tolerant: bool) -> str | None:
    """What is wrong with a chunk: clients that an intolerant aggregator let through, the server's parameters, or weights."""
    remedy = "lower agent.learning_rate or set agent.max_grad_norm"
    bad = ~info["finite"]
    named = [(seed, np.flatnonzero(clients).tolist()) for seed, clients in zip(seeds[bad], info["broken"][bad], strict=True)]
    who = ", ".join(f"client(s) {clients} of seed {seed}" for seed, clients in named if clients)
    if not tolerant and who:
        return f"{who}: an update is not finite, and this aggregator does not leave it out: {remedy}"
    if info["uncounted"].any():
        return f"{who}: no update of a round is finite, and the server has nothing to merge: {remedy}"
    if bad.any():
        who = f"seed(s) {seeds[bad].tolist()}: the server's parameters are not finite"
        return f"{who}: lower federated.server_learning_rate, or {remedy}"
    if info["weightless"].any():
        return (
            f"seed(s) {seeds[info['weightless']].tolist()}: the weights of a round's participants sum to zero under "
            f"federated.weighting {weighting!r}: raise federated.local_steps, or weigh by 'uniform'"
        )
    return None
