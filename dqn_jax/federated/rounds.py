"""A round: choose participants, broadcast, train locally, aggregate, and let the server step. Whole rounds are one program.

Clients are rows of one state. Those that take part are trained in blocks, each a `vmap`, one block after the other, so that a
thousand need no more cache than a few. With `axis_name` every device holds its share of the clients, and sums cross it.

Not here: what a client or the server does, seeds, files.

Shapes: N clients in all, n on this device, C of them in a cohort.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dqn_jax.envs import EnvParams
from dqn_jax.federated.aggregation import Aggregator, Report, gather, mean_of
from dqn_jax.federated.blocks import in_blocks, rows_where
from dqn_jax.federated.client import Client, ClientState, ClientUpdate
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.participation import Participation, Plan
from dqn_jax.federated.server import ServerRule, ServerState, apply_delta, init_server
from dqn_jax.federated.sharing import Sharing
from dqn_jax.mapping import PLANS, lane_axes, stream_key
from dqn_jax.networks import Network
from dqn_jax.types import Clock, Info, Params, Tree


class FederatedState(flax.struct.PyTreeNode):
    """The whole federation."""

    server: ServerState
    clients: ClientState
    """Leaves [n, ...]."""
    participation: Tree
    stream: jax.Array
    """[] key that plans are drawn from."""
    round: Clock


class Parts(NamedTuple):
    """What a round is made of."""

    client: Client
    participation: Participation
    aggregator: Aggregator
    weigh: Callable[[Report], jax.Array]
    server_rule: ServerRule
    sharing: Sharing


class Federation(NamedTuple):
    """Clients and a server as pure functions."""

    init: Callable[[jax.Array, EnvParams, jax.Array], FederatedState]
    """(seed [], environment parameters leaves [n, ...], numbers of the clients [n]) -> state."""
    round: Callable[[FederatedState], tuple[FederatedState, Info]]
    """state -> (state, info): sums over the participants, and flags."""


class _Cohort(NamedTuple):
    """What came back from the clients of a round, C rows."""

    updates: ClientUpdate
    present: jax.Array
    """[C] bool, false in rows that only fill up a block."""
    finite: jax.Array
    """[C] bool."""
    staleness: jax.Array
    """[C] int32."""
    ids: jax.Array
    """[C] int32 row of the client, n where there is none."""
    epsilon: jax.Array
    """[C] float32."""
    own: Info
    """Means of the loss's own numbers over each client's updates, by name, [C] float32."""


def make_federation(network: Network, parts: Parts, config: FederatedConfig, axis_name: str | None = None) -> Federation:
    """Builds McMahan et al. (2017), algorithm 1, with each part a choice.

    Args:
      network: the Q-network.
      parts: what a round is made of.
      config: clients, and what they keep.
      axis_name: mapped axis that clients are divided over; None where all are here.

    Returns:
      The federation.
    """

    def init(seed: jax.Array, env_params: EnvParams, numbers: jax.Array) -> FederatedState:
        return _first_state(network, parts, config, axis_name, seed, env_params, numbers)

    def run_round(state: FederatedState) -> tuple[FederatedState, Info]:
        now, size = state.round.count, len(state.clients.stream)
        plan_state, plan = parts.participation.plan(jax.random.fold_in(state.stream, now), state.participation)
        clients, cohort = _train_cohort(parts, config, state.clients, state.server, now, _own_rows(plan, size, axis_name))
        server, merge_info = _merge(parts, config, state.server, cohort, axis_name)
        if config.merge.parameters == "keep":
            shared = parts.sharing.shared(clients.agent.learner.params)
            server = server.replace(params=mean_of(shared, jnp.ones(size), axis_name))
        state = state.replace(server=server, clients=clients, participation=plan_state, round=Clock(now + 1))
        info = merge_info | _round_info(parts, config, server, cohort, plan, now, size, axis_name)
        return state, info | {"finite": info["finite"] & ~info["uncounted"]}

    return Federation(init, run_round)


def _first_state(
    network: Network,
    parts: Parts,
    config: FederatedConfig,
    axis_name: str | None,
    seed: jax.Array,
    env_params: EnvParams,
    numbers: jax.Array,
) -> FederatedState:
    """Makes the clients with these numbers [n], warmed up, and the server."""
    # Client i of a federation is learner i of the run, whatever else is configured.
    keys = jax.vmap(stream_key, in_axes=(None, 0))(seed, numbers)
    params = network.init(jax.random.fold_in(stream_key(seed, 0), 0)) if config.merge.initial == "common" else None
    begin = lambda key, env_params: parts.client.init(key, env_params, params)  # noqa: E731
    shapes = jax.eval_shape(begin, keys[0], jax.tree.map(lambda x: x[0], env_params))
    clients = jax.vmap(begin, out_axes=lane_axes(shapes, not config.varies))(keys, env_params)
    learner = clients.agent.learner
    if params is None:
        # Clients that begin apart, begin around their mean.
        params = mean_of(learner.params, jnp.ones(len(keys)), axis_name)
    plans = stream_key(seed, PLANS)
    # No optimizer has taken a step, so any client's state will do.
    shared = parts.sharing.shared(params)
    moments = parts.sharing.shared_moments(jax.tree.map(lambda x: x[0], learner.opt_state))
    return FederatedState(
        server=init_server(config, parts.server_rule, shared, moments, parts.aggregator.init(shared)),
        clients=clients,
        participation=parts.participation.init(jax.random.fold_in(plans, np.uint32(2**32 - 1))),
        stream=plans,
        round=Clock(jnp.int32(0)),
    )


def _train_cohort(
    parts: Parts, config: FederatedConfig, clients: ClientState, server: ServerState, now: jax.Array, plan: Plan
) -> tuple[ClientState, _Cohort]:
    """Broadcasts to the clients that take part, and trains them in blocks."""
    size, client, buffered = len(plan.steps), parts.client, config.participation == "buffered"
    most = min(size, parts.participation.most)

    def take_part(state: ClientState, row: jax.Array) -> tuple[ClientState, tuple]:
        if not buffered:
            state = client.begin(state, server, now)
        state, update, finite, info = client.train(state, server, now, plan.steps[row])
        return state, (update, finite, info["epsilon"], info["own"])

    if buffered:
        begin = lambda state, row: (client.begin(state, server, now), ())  # noqa: E731
        clients, _, _ = in_blocks(begin, clients, rows_where(plan.starts, most), config)
    # Who drops out after the broadcast has done nothing, so the broadcast to it is not played either.
    ids = jnp.arange(size) if not config.varies else rows_where(plan.delivers, most)
    clients, ids, (updates, finite, epsilon, own) = in_blocks(take_part, clients, ids, config)
    staleness = plan.staleness[jnp.minimum(ids, size - 1)]
    return clients, _Cohort(updates, ids < size, finite, staleness, ids, epsilon, own)


def _merge(
    parts: Parts, config: FederatedConfig, server: ServerState, cohort: _Cohort, axis_name: str | None
) -> tuple[ServerState, Info]:
    """Weighs and combines the updates, and lets the server step; where nobody counts, it stands still."""
    updates = cohort.updates
    counts = cohort.present & cohort.finite if parts.aggregator.leaves_out_non_finite else cohort.present
    weights = jnp.where(counts, jax.vmap(parts.weigh)(updates.report), 0.0)
    chex.assert_equal_shape([weights, counts])
    scaled = _scaled(updates, cohort.staleness, config)
    delta, aggregator = parts.aggregator.combine(server.aggregator, scaled, weights, axis_name)
    if config.algorithm == "fednova":
        # Wang et al. (2020), equation 6: the mean number of updates times the mean step per update.
        length = mean_of(updates.report.updates.astype(jnp.float32), weights, axis_name)
        delta = jax.tree.map(lambda x: length * x, delta)
    stepped = apply_delta(parts.server_rule, server, delta)
    stepped = stepped.replace(
        control=_next_control(server.control, updates.control, counts, config.num_clients, axis_name),
        moments=_average(updates.moments, weights, axis_name),
        target_params=_average(updates.target_params, weights, axis_name),
        aggregator=aggregator,
    )
    someone = _total(jnp.sum(weights), axis_name) > 0
    server = jax.tree.map(lambda new, old: jnp.where(someone, new, old), stepped, server)
    drift = jax.vmap(lambda own: optax.tree.norm(jax.tree.map(jnp.subtract, own, delta)))(updates.delta)
    return server, {
        "drift_sum": _total(jnp.sum(jnp.where(counts, drift, 0.0)), axis_name),
        "delta_norm": jnp.where(someone, optax.tree.norm(delta), 0.0),
        "left_out": _total(jnp.sum(cohort.present & ~counts), axis_name),
        "weightless": (_total(jnp.sum(counts), axis_name) > 0) & ~someone,
        "uncounted": (_total(jnp.sum(cohort.present), axis_name) > 0) & (_total(jnp.sum(counts), axis_name) == 0),
    }


def _round_info(
    parts: Parts,
    config: FederatedConfig,
    server: ServerState,
    cohort: _Cohort,
    plan: Plan,
    now: jax.Array,
    size: int,
    axis_name: str | None,
) -> Info:
    """Sums over the participants, and flags."""
    report, here = cohort.updates.report, cohort.present

    def add(x: jax.Array) -> jax.Array:
        return _total(jnp.sum(jnp.where(here, x, 0)), axis_name)

    def add_finite(x: jax.Array) -> jax.Array:
        return _total(jnp.sum(jnp.where(here & cohort.finite, x, 0.0)), axis_name)

    broken = gather(jnp.zeros(size, bool).at[cohort.ids].set(here & ~cohort.finite, mode="drop"), axis_name)
    tolerated = jnp.array(parts.aggregator.leaves_out_non_finite)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(server.params)]))
    already = jnp.where(now == 0, config.in_flight, 0) if config.participation == "buffered" else 0
    return {
        **{name: add(getattr(report, name)) for name in ("frames", "updates", "episodes", "return_sum")},
        **{f"{name}_sum": add_finite(x) for name, x in (cohort.own | {"loss": report.loss}).items()},
        "epsilon_sum": add(cohort.epsilon),
        "staleness_sum": add(cohort.staleness),
        "participants": add(jnp.ones_like(cohort.ids)),
        "downloads": jnp.sum(plan.starts) + already,
        "virtual_time": plan.duration,
        "broken": broken,
        "finite": finite & (tolerated | ~jnp.any(broken)),
    }


def _own_rows(plan: Plan, size: int, axis_name: str | None) -> Plan:
    """The rows of a plan that belong to this device's clients."""
    if axis_name is None:
        return plan
    first = jax.lax.axis_index(axis_name) * size
    return jax.tree.map(lambda x: x if x.ndim == 0 else jax.lax.dynamic_slice_in_dim(x, first, size), plan)


def _total(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over the devices."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _scaled(updates: ClientUpdate, staleness: jax.Array, config: FederatedConfig) -> Params:
    """Deltas [C, ...] as the aggregator takes them: per update for FedNova, smaller when stale."""
    factor = jnp.ones(len(staleness))
    if config.algorithm == "fednova":
        factor = 1.0 / jnp.maximum(updates.report.updates, 1)
    if config.participation == "buffered":
        # Nguyen et al. (2022), section 5: it shrinks the update itself, not only its share of the mean.
        factor = factor * jax.lax.rsqrt(1.0 + staleness)
    return jax.tree.map(lambda x: factor.reshape(-1, *[1] * (x.ndim - 1)) * x, updates.delta)


def _next_control(control: Params, changes: Params, counts: jax.Array, num_clients: int, axis_name: str | None) -> Params:
    """SCAFFOLD's c plus the participants' changes over all N (Karimireddy et al. 2020, algorithm 1, line 17)."""
    mean = mean_of(changes, counts.astype(jnp.float32), axis_name)
    number = jnp.sum(counts)
    share = _total(number, axis_name) / num_clients
    return jax.tree.map(lambda c, change: c + share * change, control, mean)


def _average(values: Tree, weights: jax.Array, axis_name: str | None) -> Tree:
    """Weighted mean of floats; of counters, which a bias correction reads, the largest."""

    def one(x: jax.Array) -> jax.Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return mean_of(x, weights, axis_name)
        largest = jnp.max(jnp.where(weights.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, 0), axis=0)
        return largest if axis_name is None else jax.lax.pmax(largest, axis_name)

    return jax.tree.map(one, values)
