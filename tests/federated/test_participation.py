"""Plans hold exactly who they should, at random as often as they should, and buffered rounds obey the laws of a queue."""

import functools
import heapq
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import jit_in_a_hurry

from dqn_jax.federated import participation
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.participation import make_participation

PLANS = 2000
STEPS = 8
KEYS = jax.random.split(jax.random.key(0), PLANS)


def config(**settings):
    return FederatedConfig(**{"num_clients": 10, "local_steps": STEPS, "service_time": "constant"} | settings)


def planner(part):
    """[n] keys -> n plans that know nothing of each other, leaves [n, ...], on the host."""
    mapped = jit_in_a_hurry(jax.vmap(lambda key: part.plan(key, part.init(key))[1]))
    return lambda keys: jax.device_get(mapped(keys))


@functools.cache
def planner_of(**settings):
    return planner(make_participation(config(**settings)))


@functools.cache
def plans(**settings):
    return planner_of(**settings)(KEYS)


def assert_share(hits, share, deviations=5):
    """Independent trials of this probability came out true about that often."""
    hits = np.asarray(hits)
    error = np.sqrt(share * (1 - share) / hits.size)
    assert abs(hits.mean() - share) < deviations * error, (hits.mean(), share, error)


def test_all_take_part():
    everybody = plans()
    assert everybody.starts.all()
    assert everybody.delivers.all()
    assert (everybody.steps == STEPS).all()
    assert not everybody.staleness.any()
    # The slowest of clients that all take 1.
    assert (everybody.duration == 1).all()
    assert make_participation(config()).most == 10


def test_fixed_takes_exactly_that_many_of_all_alike():
    fixed = plans(participation="fixed", num_clients_per_round=4)
    assert (fixed.starts.sum(1) == 4).all()
    np.testing.assert_array_equal(fixed.starts, fixed.delivers)
    for client in range(10):
        assert_share(fixed.starts[:, client], 0.4)
    # Together they are there as often as chance has it: 4/10 * 3/9.
    assert_share(fixed.starts[:, 0] & fixed.starts[:, 9], 0.4 * 3 / 9)
    # All ways to choose 4 of 10 occur: each of the 210 is expected 9.5 times.
    assert len(np.unique(fixed.starts, axis=0)) == math.comb(10, 4)
    assert make_participation(config(participation="fixed", num_clients_per_round=4)).most == 4


def test_poisson_is_a_coin_for_each():
    poisson = plans(participation="poisson", num_clients_per_round=3)
    for client in range(10):
        assert_share(poisson.starts[:, client], 0.3)
    counts = poisson.starts.sum(1)
    # A binomial number: variance 10 * 0.3 * 0.7, and the variance of 2000 is off by about that times sqrt(2 / 2000).
    assert abs(counts.mean() - 3) < 5 * np.sqrt(2.1 / PLANS)
    assert abs(counts.var() - 2.1) < 5 * 2.1 * np.sqrt(2 / PLANS)
    assert_share(counts == 0, 0.7**10)


def test_poisson_leaves_out_clients_beyond_the_planned_number(monkeypatch):
    free = plans(participation="poisson", num_clients_per_round=3).starts
    monkeypatch.setattr(participation, "_poisson_bound", lambda mean, clients: 4)
    part = make_participation(config(participation="poisson", num_clients_per_round=3))
    assert part.most == 4
    starts = planner(part)(KEYS).starts
    np.testing.assert_array_equal(starts.sum(1), np.minimum(free.sum(1), 4))
    assert not (starts & ~free).any()
    # Negative control: without the bound, some were more.
    assert free.sum(1).max() > 4


@pytest.mark.parametrize(
    ("mean", "clients"), [(1, 2), (1, 50), (1, 1000), (2, 100), (8, 100), (30, 1000), (50, 100), (99, 100)]
)
def test_the_poisson_bound_is_hardly_ever_reached(mean, clients):
    """The exact tail of the binomial beyond `most` is less than one in a hundred million."""
    most = make_participation(config(num_clients=clients, participation="poisson", num_clients_per_round=mean)).most
    assert mean <= most <= clients
    p = mean / clients
    tail = sum(math.comb(clients, k) * p**k * (1 - p) ** (clients - k) for k in range(most + 1, clients + 1))
    assert tail < 1e-8


UNRELIABLE = {"participation": "fixed", "num_clients_per_round": 4, "drop_out": 0.3, "stragglers": 0.5}


def test_drop_out_and_stragglers():
    unreliable = plans(**UNRELIABLE)
    # Nobody knows of it before the broadcast.
    np.testing.assert_array_equal(unreliable.starts, plans(participation="fixed", num_clients_per_round=4).starts)
    assert not (unreliable.delivers & ~unreliable.starts).any()
    assert_share(unreliable.delivers[unreliable.starts], 0.7)
    # Each by a coin of its own: all four of a round are there with probability 0.7^4.
    assert_share(unreliable.delivers.sum(1) == 4, 0.7**4)
    steps = unreliable.steps[unreliable.delivers]
    assert (steps.min(), steps.max()) == (1, STEPS)
    # Half of them draw one of 1 to 8, and so an eighth of that half all 8.
    for number in range(1, STEPS):
        assert_share(steps == number, 0.5 / STEPS)
    assert_share(steps == STEPS, 0.5 + 0.5 / STEPS)
    # A round lasts as long as the longest of those who deliver, stragglers or not, and no time if nobody does.
    np.testing.assert_array_equal(unreliable.duration, unreliable.delivers.any(1).astype(np.float32))
    assert (unreliable.duration == 0).any()


def test_plans_depend_on_their_key_alone():
    first = plans(**UNRELIABLE)
    # In another order, each key still makes the plan it made.
    order = np.random.default_rng(0).permutation(PLANS)
    for one, other in zip(planner_of(**UNRELIABLE)(KEYS[order]), first, strict=True):
        np.testing.assert_array_equal(one, other[order])
    for values in (first.starts, first.delivers, first.steps):
        assert len(np.unique(values[:50], axis=0)) > 40


@pytest.mark.parametrize(
    ("name", "low", "high", "variance"),
    # The lognormal's variance is e - 1, too heavy-tailed to be estimated from so few: its logarithm is below.
    [("constant", 1, 1, 0), ("uniform", 0.5, 1.5, 1 / 12), ("exponential", 0, np.inf, 1), ("lognormal", 0, np.inf, None)],
)
def test_service_times_have_mean_one(name, low, high, variance):
    # The round of a single client lasts its service time.
    times = plans(num_clients=1, service_time=name).duration.astype(np.float64)
    assert low <= times.min() <= times.max() <= high
    assert abs(times.mean() - 1) <= 5 * np.sqrt((math.e - 1 if variance is None else variance) / PLANS)
    if variance is None:
        assert abs(np.log(times).mean() + 0.5) < 5 / np.sqrt(PLANS)
        assert abs(np.log(times).std() - 1) < 5 / np.sqrt(2 * PLANS)
    else:
        # The estimate is off by about variance * sqrt((kurtosis - 1) / n), with kurtosis 9 for the exponential.
        assert abs(times.var() - variance) <= 5 * variance * np.sqrt(8 / PLANS)


ROUNDS = 300
CLIENTS, FLYING, BUFFER = 12, 6, 4
BUFFERED = {"participation": "buffered", "num_clients": CLIENTS, "num_clients_per_round": BUFFER, "concurrency": FLYING}


@functools.cache
def player(service_time, stragglers=0.0):
    part = make_participation(config(**BUFFERED, service_time=service_time, stragglers=stragglers))

    def play(key):
        start = part.init(jax.random.fold_in(key, ROUNDS))

        def one(state, t):
            state, plan = part.plan(jax.random.fold_in(key, t), state)
            return state, (state, plan)

        return start, *jax.lax.scan(one, start, jnp.arange(ROUNDS))[1]

    return jit_in_a_hurry(play)


@functools.cache
def flights(service_time, stragglers=0.0, seed=1):
    """State before the first round, states after each of 300, and their plans, on the host."""
    return jax.device_get(player(service_time, stragglers)(jax.random.key(seed)))


@jit_in_a_hurry
def random_numbers(key):
    """What the plans of `flights` draw: who comes next [rounds, M, N], and how long an exponential flight takes [rounds, M]."""

    def arrival(key):
        choose, time = jax.random.split(key)
        return jax.random.uniform(choose, (CLIENTS,)), jax.random.exponential(time, ())

    def one(t):
        return jax.vmap(arrival)(jax.random.split(jax.random.split(jax.random.fold_in(key, t), 3)[0], BUFFER))

    return jax.vmap(one)(jnp.arange(ROUNDS))


@pytest.mark.parametrize("service_time", ["exponential", "constant"])
def test_buffered_is_a_queue_of_events(service_time):
    """A plain event loop with the same random numbers has the same arrivals, starts, staleness and virtual times.

    Of clients that arrive at the same time, which constant times make of most, the first by number is first.
    """
    start, _, plan = flights(service_time)
    lots, times = (np.asarray(x) for x in random_numbers(jax.random.key(1)))
    if service_time == "constant":
        times = np.ones_like(times)
    clock, last_merge = 0.0, 0.0
    events = [(float(start.remaining[i]), int(i)) for i in np.flatnonzero(start.flying)]
    heapq.heapify(events)
    sent_off = {client: 0 for _, client in events}
    for t in range(ROUNDS):
        buffer, starts, staleness = [], set(), {}
        for m in range(BUFFER):
            clock, client = heapq.heappop(events)
            buffer.append(client)
            staleness[client] = t - sent_off.pop(client)
            resting = [i for i in range(CLIENTS) if i not in sent_off and i not in buffer]
            following = max(resting, key=lambda i: lots[t, m, i])
            starts.add(following)
            sent_off[following] = t
            heapq.heappush(events, (clock + float(times[t, m]), following))
        assert set(np.flatnonzero(plan.delivers[t])) == set(buffer)
        assert set(np.flatnonzero(plan.starts[t])) == starts
        assert {i: int(plan.staleness[t, i]) for i in buffer} == staleness
        np.testing.assert_allclose(plan.duration[t], clock - last_merge, atol=1e-4)
        last_merge = clock


@pytest.mark.parametrize("service_time", ["exponential", "constant"])
def test_buffered_invariants(service_time):
    start, states, plan = flights(service_time)
    assert start.flying.sum() == FLYING
    assert (states.flying.sum(1) == FLYING).all()
    assert (plan.delivers.sum(1) == BUFFER).all()
    assert (plan.steps == STEPS).all()
    assert not (states.flying & plan.delivers).any()
    assert (plan.duration >= 0).all()
    # A record of our own: the last broadcast to each client, the first to those at work from the start.
    sent_off = np.where(start.flying, 0, -1)
    at_work = start.flying
    for t in range(ROUNDS):
        # Whoever starts was at rest, and whoever delivers was at work or started in this round.
        assert not (plan.starts[t] & at_work).any()
        sent_off = np.where(plan.starts[t], t, sent_off)
        assert not (plan.delivers[t] & ~(at_work | plan.starts[t])).any()
        np.testing.assert_array_equal(plan.staleness[t][plan.delivers[t]], (t - sent_off)[plan.delivers[t]])
        at_work = (at_work | plan.starts[t]) & ~plan.delivers[t]
        np.testing.assert_array_equal(at_work, states.flying[t])


@pytest.mark.parametrize("service_time", ["exponential", "constant"])
def test_buffered_staleness_is_conserved(service_time):
    """Each merge makes each client at work one older, so ages delivered and ages held add up; on average they are F / M."""
    _, states, plan = flights(service_time)
    delivered = plan.staleness[plan.delivers].sum()
    held = states.age[-1][states.flying[-1]].sum()
    assert delivered + held == FLYING * ROUNDS
    assert abs(delivered / (BUFFER * ROUNDS) - FLYING / BUFFER) < 0.05


def test_buffered_virtual_time():
    """F clients that take 1 on average deliver F updates in a unit of time."""
    *_, plan = flights("exponential")
    time = plan.duration.astype(np.float64).sum()
    expected = BUFFER * ROUNDS / FLYING
    # A Poisson process of arrivals: the time of n of them is off by a relative 1 / sqrt(n).
    assert abs(time / expected - 1) < 4 / np.sqrt(BUFFER * ROUNDS)
    # Independent of the past: the variance of a round's time is that of M exponential gaps with mean 1 / F.
    assert abs(plan.duration.var() / (BUFFER / FLYING**2) - 1) < 0.5


def test_constant_times_are_first_come_first_served():
    """A flight takes exactly 1, so nobody is overtaken: checked by the times of the merges before and after each start."""
    start, states, plan = flights("constant")
    ends = np.cumsum(plan.duration.astype(np.float64))
    begins = ends - plan.duration
    # Earliest and latest virtual time at which each client can have been sent off.
    early, late = np.zeros(CLIENTS), np.where(start.flying, 0, np.nan)
    for t in range(ROUNDS):
        early, late = np.where(plan.starts[t], begins[t], early), np.where(plan.starts[t], ends[t], late)
        arrived, flying = plan.delivers[t], states.flying[t]
        assert (early[arrived] + 1 <= ends[t]).all()
        assert (late[arrived] + 1 >= begins[t]).all()
        assert (late[flying] + 1 >= ends[t]).all()
    # Six in a unit of time, four to a merge.
    assert ends[-1] == BUFFER * ROUNDS / FLYING


def test_buffered_chooses_all_alike():
    *_, plan = flights("exponential")
    shares = plan.delivers.mean(0)
    # Rounds are not independent, so the bound is wide; a third is the share of all.
    assert np.abs(shares - BUFFER / CLIENTS).max() < 5 * np.sqrt(2 / 9 / ROUNDS)


def test_buffered_stragglers_leave_the_queue_as_it_is():
    _, states, plan = flights("exponential")
    _, slower_states, slower = flights("exponential", stragglers=0.3)
    for name in ("flying", "remaining", "age"):
        np.testing.assert_array_equal(getattr(slower_states, name), getattr(states, name))
    np.testing.assert_array_equal(slower.starts, plan.starts)
    np.testing.assert_array_equal(slower.delivers, plan.delivers)
    assert_share(slower.steps[slower.delivers] < STEPS, 0.3 * (STEPS - 1) / STEPS)


def test_buffered_is_deterministic_given_the_key():
    first = flights("exponential")
    again = jax.device_get(player("exponential")(jax.random.key(1)))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    *_, other = flights("exponential", seed=2)
    assert (other.delivers != first[2].delivers).any(1).mean() > 0.5
