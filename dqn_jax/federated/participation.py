"""Which clients take part in a round, for how many steps, and when: in virtual time, drawn from the run's own random stream.

A plan is made from random numbers alone, before any client trains. Not here: what clients do.

Shapes: N clients.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dqn_jax.federated.config import FederatedConfig
from dqn_jax.types import Tree
from dqn_jax.virtual_time import SERVICE_TIMES


class Plan(NamedTuple):
    """The plan of a round."""

    starts: jax.Array
    """[N] bool clients that the server's parameters are broadcast to."""
    delivers: jax.Array
    """[N] bool clients that train and send an update."""
    steps: jax.Array
    """[N] int32 local steps of each."""
    staleness: jax.Array
    """[N] int32 merges since a client was sent its parameters."""
    duration: jax.Array
    """[] float32 virtual time of the round; a client takes 1 on average."""


class Participation(NamedTuple):
    """A way to plan rounds, as pure functions."""

    init: Callable[[jax.Array], Tree]
    """key -> state."""
    plan: Callable[[jax.Array, Tree], tuple[Tree, Plan]]
    """(key, state) -> (state, plan); the key is the round's own."""
    most: int
    """Clients that deliver in a round, at most."""


class _Flights(NamedTuple):
    """Buffered participation: the clients at work."""

    flying: jax.Array
    """[N] bool, clients at work."""
    started: jax.Array
    """[N] bool, started since the last merge, with the parameters of that merge."""
    remaining: jax.Array
    """[N] float32 virtual time from now until a client at work is done."""
    age: jax.Array
    """[N] int32 merges since a client at work started."""


def make_participation(config: FederatedConfig) -> Participation:
    """Builds the participation that a config names."""
    if config.participation == "buffered":
        return _buffered(config)
    clients = config.num_clients
    each = config.num_clients_per_round or clients

    def choose(key: jax.Array) -> jax.Array:
        if config.participation == "all":
            return jnp.ones(clients, bool)
        if config.participation == "fixed":
            return jax.random.permutation(key, clients) < each
        return jax.random.uniform(key, (clients,)) < each / clients

    def plan(key: jax.Array, state: tuple) -> tuple[tuple, Plan]:
        choose_key, time_key, *keys = jax.random.split(key, 4)
        chosen = choose(choose_key)
        if most < clients:
            # Only a Poisson draw can be larger than planned for: clients beyond that are left out.
            chosen &= jnp.cumsum(chosen) <= most
        delivers, steps = _failures(config, keys, chosen)
        times = SERVICE_TIMES[config.service_time](time_key, (clients,))
        # A straggler makes fewer steps in the same time; it does not finish earlier.
        duration = jnp.max(jnp.where(delivers, times, 0.0))
        return state, Plan(chosen, delivers, steps, jnp.zeros(clients, jnp.int32), duration)

    most = {"all": clients, "fixed": each, "poisson": _poisson_bound(each, clients)}[config.participation]
    return Participation(init=lambda key: (), plan=plan, most=most)


def _poisson_bound(mean: int, clients: int) -> int:
    """Bounds the participants of a binomial draw: exceeded less than once in a hundred million rounds."""
    variance = mean * (1 - mean / clients)
    return min(clients, int(mean + 6 * variance**0.5) + 6)


def _failures(config: FederatedConfig, keys: list[jax.Array], chosen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws (chosen clients that do not drop out [N], local steps [N])."""
    drop_key, straggle_key = keys
    shape = (config.num_clients,)
    stays = jax.random.uniform(drop_key, shape) >= config.drop_out
    late_key, steps_key = jax.random.split(straggle_key)
    late = jax.random.uniform(late_key, shape) < config.stragglers
    some = jax.random.randint(steps_key, shape, 1, config.local_steps + 1)
    return chosen & stays, jnp.where(late, some, config.local_steps)


def _buffered(config: FederatedConfig) -> Participation:
    """Builds FedBuff (Nguyen et al. 2022): a merge whenever enough updates have arrived, others still at work.

    A client that delivers is replaced at once by another, drawn from those neither at work nor with an update in the buffer. It
    starts with the parameters of the last merge, which stay current until the next.
    """
    clients, buffer = config.num_clients, config.num_clients_per_round
    assert buffer is not None
    service_time = SERVICE_TIMES[config.service_time]

    def init(key: jax.Array) -> _Flights:
        choose_key, time_key = jax.random.split(key)
        flying = jax.random.permutation(choose_key, clients) < config.in_flight
        # Those at work from the start have their parameters already.
        nobody = jnp.zeros(clients, bool)
        return _Flights(flying, nobody, service_time(time_key, (clients,)), jnp.zeros(clients, jnp.int32))

    def plan(key: jax.Array, state: _Flights) -> tuple[_Flights, Plan]:
        arrivals_key, *keys = jax.random.split(key, 3)

        def arrive(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            flights, arrived, staleness, duration = carry
            first = jnp.argmin(jnp.where(flights.flying, flights.remaining, jnp.inf))
            wait = flights.remaining[first]
            arrived = arrived.at[first].set(True)
            choose_key, time_key = jax.random.split(key)
            idle = ~flights.flying & ~arrived
            next_one = jnp.argmax(jnp.where(idle, jax.random.uniform(choose_key, (clients,)), -1.0))
            flights = _Flights(
                flying=flights.flying.at[first].set(False).at[next_one].set(True),
                started=flights.started.at[next_one].set(True),
                remaining=(flights.remaining - wait).at[next_one].set(service_time(time_key, ())),
                age=flights.age.at[next_one].set(0),
            )
            return (flights, arrived, staleness.at[first].set(carry[0].age[first]), duration + wait), None

        start = (state, jnp.zeros(clients, bool), jnp.zeros(clients, jnp.int32), jnp.float32(0))
        (flights, arrived, staleness, duration), _ = jax.lax.scan(arrive, start, jax.random.split(arrivals_key, buffer))
        delivers, steps = _failures(config, keys, arrived)
        # In the next round, those still at work have missed one merge more.
        after = flights._replace(started=jnp.zeros(clients, bool), age=flights.age + 1)
        return after, Plan(flights.started, delivers, steps, staleness, duration)

    return Participation(init, plan, most=buffer)
