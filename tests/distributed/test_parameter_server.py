"""The parameter server modelled on device: who arrives when, who waits for whom, and what becomes of a push.

Timing is proved with workers that do nothing but push a number, what they learn with the agent.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import ENV, STEADY, arrays, assert_bitwise, assert_close, assert_differs, server_model
from laws.federation import small

from dqn_jax.agent import AgentState, make_agent, repeat
from dqn_jax.config import InputError, NetworkConfig
from dqn_jax.distributed.config import ServerConfig
from dqn_jax.distributed.parameter_server import make_model, make_parameter_server
from dqn_jax.distributed.roles import lag_info, make_server, make_worker
from dqn_jax.learner import make_learner
from dqn_jax.mapping import PLANS, stream_key
from dqn_jax.networks import Network, make_network
from dqn_jax.replay import ReplayState, make_prioritised_replay
from dqn_jax.types import Clock
from dqn_jax.virtual_time import SERVICE_TIMES

pytestmark = pytest.mark.long

SEED = 3
SMALL = small(STEADY)
NETWORK = make_network(NetworkConfig(hidden_sizes=(16,)), ENV.spec)
ONE_NUMBER = Network(init=lambda key: {"trunk": {}, "head": jnp.zeros(())}, apply=None)


class Trace(NamedTuple):
    """What happened, push by push; what is of workers or the server has a row more, for before the first."""

    pushes: np.ndarray
    """[T + 1, W]."""
    pulled: np.ndarray
    """[T + 1, W]."""
    waiting: np.ndarray
    """[T + 1, W]."""
    updates: np.ndarray
    """[T + 1]."""
    server: dict
    """Leaves [T + 1, ...] by name."""
    copies: np.ndarray
    """[T + 1, W] the parameter that each worker has."""
    lags: np.ndarray
    """[T], or [T, W] behind a barrier."""
    applied: np.ndarray
    """As lags."""
    times: np.ndarray
    """[T] virtual time of each arrival."""

    def arrivals(self):
        """[T] who pushed."""
        moved = np.diff(self.pushes, axis=0)
        assert (moved.sum(axis=1) == 1).all()
        return moved.argmax(axis=1)

    def times_of(self, worker):
        return self.times[self.arrivals() == worker]


def look(state):
    copies = state.workers.learner.params["head"]
    return (state.pushes, state.pulled, state.waiting, state.server.updates.count, state.server, copies)


@functools.cache
def trace(events, optimizer="sgd", target_period=5, **options):
    """Workers that take their time and push: worker w the number 2^w, with the rate 1."""
    config = ServerConfig(**{"service_time": "constant", **options})
    agent_config = dataclasses.replace(STEADY, optimizer=optimizer, learning_rate=1.0, target_period=target_period)
    server = make_server(ONE_NUMBER, agent_config, config)

    def init(seed, number, state):
        replay = ReplayState(jnp.zeros(1), Clock(jnp.int32(0)))
        return AgentState(actor=jnp.int32(number), learner=state, replay=replay, stream=jnp.int32(0), clock=Clock(jnp.int32(0)))

    def work(worker):
        nothing = {"loss": jnp.int32(0), "episodes": jnp.int32(0)}
        return worker, {"trunk": {}, "head": 2.0**worker.actor}, nothing

    worker = make_worker(ENV, NETWORK, agent_config, config)._replace(init=init, work=work)
    model = make_model(worker, server, config)

    def event(state, _):
        after, info = model.event(state)
        return after, (look(after), info["lags"], info["applied"], info["duration"])

    @jax.jit
    def run():
        state = model.init(jnp.uint32(SEED))
        return look(state), jax.lax.scan(event, state, length=events)[1]

    first, (rows, lags, applied, durations) = run()
    rows = jax.tree.map(lambda x, more: np.concatenate([np.asarray(x)[None], more]), first, rows)
    if config.mode != "barrier":
        lags, applied = lags[:, 0], applied[:, 0]
    pushes, pulled, waiting, updates, states, copies = rows
    times = np.cumsum(np.asarray(durations, np.float64))
    return Trace(pushes, pulled, waiting, updates, arrays(states), copies, np.asarray(lags), np.asarray(applied), times)


@pytest.mark.parametrize("num_workers", [1, 4, 16])
def test_equal_workers_lag_by_all_the_others(num_workers):
    """Nobody has pulled before the first pushes arrive; from then on, all the others arrive between two pushes."""
    run = trace(60, num_workers=num_workers)
    first = range(num_workers)
    assert run.lags.tolist() == [*first, *[num_workers - 1] * (60 - num_workers)]
    assert run.arrivals().tolist() == [push % num_workers for push in range(60)]
    assert run.times.tolist() == [push // num_workers + 1 for push in range(60)]
    assert run.updates.tolist() == list(range(61))
    assert not run.waiting.any()


@pytest.mark.parametrize("service_time", ["exponential", "lognormal"])
def test_unequal_workers_lag_by_as_much_on_average(service_time):
    run = trace(2000, num_workers=4, service_time=service_time)
    assert np.mean(run.lags) == pytest.approx(3, rel=0.01)
    assert np.std(run.lags) > 1
    # Four workers with mean time 1.
    assert run.times[-1] == pytest.approx(500, rel=0.1)


def test_a_lag_counts_the_updates_since_the_pull():
    run = trace(60, num_workers=4, service_time="exponential", pull_period=2)
    who = run.arrivals()
    assert run.lags.tolist() == [int(run.updates[i] - run.pulled[i, w]) for i, w in enumerate(who)]
    for i, w in enumerate(who):
        pulls = run.pushes[i + 1, w] % 2 == 0
        assert run.pulled[i + 1, w] == (run.updates[i + 1] if pulls else run.pulled[i, w])
        others = np.arange(4) != w
        np.testing.assert_array_equal(run.pulled[i + 1, others], run.pulled[i, others])
    # The parameter is the server's at the pulled version, and with this rate no two versions have the same.
    np.testing.assert_array_equal(run.copies, run.server[".params['head']"][run.pulled])
    assert len(set(run.server[".params['head']"].tolist())) == 61


def test_pulls_by_hand():
    """Workers 0 and 1 in turns: each pulls after its second and fourth push, and so lags by up to three."""
    run = trace(8, num_workers=2, pull_period=2)
    assert run.lags.tolist() == [0, 1, 2, 3, 1, 1, 3, 3]
    assert run.pulled.T.tolist() == [[0, 0, 0, 3, 3, 3, 3, 7, 7], [0, 0, 0, 0, 4, 4, 4, 4, 8]]


def test_a_service_time_is_the_workers_own():
    """Those of worker 1 are the same draws alone, among three, and where it has to wait."""
    few, many = (trace(90, num_workers=count, service_time="exponential") for count in (2, 3))
    for worker in range(2):
        a, b = few.times_of(worker), many.times_of(worker)
        shared = min(len(a), len(b))
        assert shared > 10
        np.testing.assert_allclose(a[:shared], b[:shared], rtol=1e-4)
        key = jax.random.fold_in(stream_key(SEED, PLANS), worker)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(shared))
        drawn = np.asarray(jax.vmap(lambda key: SERVICE_TIMES["exponential"](key, ()))(keys), np.float64)
        np.testing.assert_allclose(np.cumsum(drawn), b[:shared], rtol=1e-4)
    assert not np.allclose(many.times_of(0)[:5], many.times_of(1)[:5])


def ahead(run):
    """How far the one furthest ahead ever was."""
    return (run.pushes.max(axis=1) - run.pushes.min(axis=1)).max()


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_a_bound_stops_who_is_ahead(bound):
    """A worker works only when at most `bound` pushes ahead, so it is at most one more ahead, and waits then."""
    run = trace(200, num_workers=4, service_time="exponential", mode="bounded", staleness_bound=bound)
    behind = run.pushes - run.pushes.min(axis=1, keepdims=True)
    assert ahead(run) == bound + 1
    np.testing.assert_array_equal(run.waiting, behind > bound)
    assert run.waiting.any()
    # Who waits does not arrive.
    assert not run.waiting[np.arange(200), run.arrivals()].any()
    # Who stops waiting pulls what is there by then.
    started = run.waiting[:-1] & ~run.waiting[1:]
    np.testing.assert_array_equal(run.pulled[1:][started], np.broadcast_to(run.updates[1:, None], (200, 4))[started])
    np.testing.assert_array_equal(run.copies, run.server[".params['head']"][run.pulled])


def test_without_a_bound_somebody_gets_further_ahead():
    run = trace(200, num_workers=4, service_time="exponential")
    assert ahead(run) > 4
    assert not run.waiting.any()


def test_bound_zero_is_a_round_of_each():
    """All pull what the last push of the round before left: so the lags of a round are 0, 1, 2, 3 in order of arrival."""
    run = trace(200, num_workers=4, service_time="exponential", mode="bounded", staleness_bound=0)
    assert run.lags.tolist() == [0, 1, 2, 3] * 50
    assert all(sorted(who) == [0, 1, 2, 3] for who in run.arrivals().reshape(50, 4).tolist())


def test_waiting_takes_time():
    """For the same service times: behind a barrier a round takes as long as its slowest, as it does with bound 0."""
    options = {"num_workers": 4, "service_time": "exponential"}
    barrier = trace(50, mode="barrier", **options).times[-1]
    bounds = [trace(200, mode="bounded", staleness_bound=bound, **options).times[-1] for bound in (0, 1, 3)]
    asynchronous = trace(200, **options).times[-1]
    assert bounds[0] == pytest.approx(barrier, rel=1e-4)
    assert barrier > 1.2 * asynchronous
    assert bounds[0] > bounds[1] > bounds[2] > asynchronous


def test_a_barrier_takes_the_mean_of_all():
    """Of 1, 2, 4 and 8: 3.75. A pull every second round means lags of 0 and 1."""
    run = trace(6, num_workers=4, mode="barrier", pull_period=2)
    assert run.server[".params['head']"].tolist() == [-3.75 * update for update in range(7)]
    assert run.lags.tolist() == [[0] * 4, [1] * 4] * 3
    assert run.copies[:, 0].tolist() == [0, 0, -7.5, -7.5, -15, -15, -22.5]
    assert (run.copies == run.copies[:, :1]).all()
    assert run.applied.all()
    assert run.updates.tolist() == list(range(7))
    assert run.times.tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_push_that_is_too_late_changes_no_bit(optimizer):
    run = trace(200, optimizer, target_period=1, num_workers=4, service_time="exponential", lag_limit=3)
    np.testing.assert_array_equal(run.applied, run.lags <= 3)
    dropped = int((~run.applied).sum())
    assert 10 < dropped < 100
    assert run.updates[-1] + dropped == run.pushes[-1].sum() == 200
    for name, values in run.server.items():
        changed = [values[i].tobytes() != values[i + 1].tobytes() for i in range(200)]
        assert not any(changed[i] for i in range(200) if not run.applied[i]), name
        # All but the numbers of the config move with the others.
        constant = "hyperparams" in name
        assert all(changed[i] != constant for i in range(200) if run.applied[i]), name
    # Who was too late starts anew with the others.
    for i, w in enumerate(run.arrivals()):
        assert run.pulled[i + 1, w] == run.updates[i + 1]


def test_without_a_limit_nothing_is_dropped():
    run = trace(60, num_workers=4, service_time="exponential", pull_period=2)
    assert run.applied.all()
    assert run.lags.max() > 3


def test_limit_zero_keeps_what_nothing_overtook():
    """Of three in turns, the first is applied; the next two worked with version 0, and begin anew with version 1."""
    run = trace(9, num_workers=3, lag_limit=0)
    assert run.lags.tolist() == [0, 1, 1] * 3
    assert run.applied.tolist() == [True, False, False] * 3
    assert run.server[".params['head']"][-1] == -3.0


def test_a_lag_divides_the_step():
    """Worker w pushes 2^w with rate 1: in turns, lags of 0, 1, 2 at first and of 2 from then on."""
    run = trace(6, num_workers=3, lag_scaling=True)
    steps = [1 / 1, 2 / 2, 4 / 3, 1 / 3, 2 / 3, 4 / 3]
    np.testing.assert_allclose(run.server[".params['head']"], -np.cumsum([0, *steps]), rtol=1e-6)
    # For this push alone.
    assert set(run.server[".hyperparams.learning_rate"].tolist()) == {1.0}


def test_the_target_follows_the_servers_updates():
    """Every fifth applied push copies, whoever made it; dropped ones do not count."""
    run = trace(200, num_workers=4, service_time="exponential", lag_limit=3)
    versions = np.concatenate([[0], np.flatnonzero(run.applied) + 1])
    params, target = (run.server[f".{name}['head']"] for name in ("params", "target_params"))
    np.testing.assert_array_equal(target, params[versions[run.updates // 5 * 5]])
    assert len(set(target.tolist())) == run.updates[-1] // 5 + 1 > 20


def test_lags_are_counted_by_size():
    info = lag_info(np.array([0, 0, 1, 5, 31, 32, 900]), 4)
    histogram = np.zeros(32, int)
    histogram[[0, 1, 5, 31]] = 2, 1, 1, 3
    assert info["lag_histogram"].tolist() == histogram.tolist()
    assert info["lag_max"] == 900
    assert info["lag"] == pytest.approx(969 / 7)
    # 40 workers: bins of five versions, for four times the typical lag.
    wide = lag_info(np.array([0, 4, 5, 39, 154, 155, 400]), 40)["lag_histogram"]
    assert {bin: int(count) for bin, count in enumerate(wide) if count} == {0: 2, 1: 1, 7: 1, 30: 1, 31: 2}


@functools.cache
def program(agent_config, config):
    """(init, event, some events: (state, number) -> state) of the model of agents, compiled."""
    model, run = server_model(NETWORK, agent_config, config)
    if config.replay == "shared" and config.mode != "asynchronous":
        # They begin alike.
        return program(agent_config, dataclasses.replace(config, mode="asynchronous"))[0], run
    return jax.jit(model.init), run


def train(events, agent_config=SMALL, **options):
    config = ServerConfig(**{"service_time": "constant", **options})
    init, run = program(agent_config, config)
    return run(init(jnp.uint32(SEED)), events)


@functools.cache
def plain(agent_config):
    """(agent, its start by number, its server) that nobody has adapted to a parameter server."""
    agent = make_agent(ENV, NETWORK, agent_config)
    start = jax.jit(lambda number: agent.init(stream_key(SEED), shard=number))
    return agent, start, start(0).learner


@functools.cache
def by_hand(num_workers, pushes_each, shared=False, barrier=False, fresh=False):
    """(server, replays) of equal workers in turns: act, then a gradient at what the worker pulled after its last push.

    With `fresh`, it pulls before it works instead.
    """
    capacity = SMALL.replay_capacity * (num_workers if shared else 1)
    agent, start, server = plain(dataclasses.replace(SMALL, replay_capacity=capacity))
    learner = make_learner(NETWORK, SMALL)
    warm_up = jax.jit(agent.warm_up)

    @jax.jit
    def work(worker, pulled):
        worker, grads, _ = agent.grad(agent.act(worker.replace(learner=pulled))[0])
        return worker, grads

    push = jax.jit(lambda server, grads: learner.apply(server, grads)[0])
    workers, ring = [], start(0).replay
    for number in range(num_workers):
        worker = start(number)
        workers.append(warm_up(worker.replace(replay=ring) if shared else worker))
        ring = workers[-1].replay
    pulled = [server] * num_workers
    for _ in range(pushes_each):
        sent = []
        for number in range(num_workers):
            worker = workers[number].replace(replay=ring) if shared else workers[number]
            workers[number], grads = work(worker, server if fresh else pulled[number])
            ring = workers[number].replay
            sent.append(grads)
            if not barrier:
                server = pulled[number] = push(server, grads)
        if barrier:
            server = push(server, jax.tree.map(lambda *rows: sum(rows) / num_workers, *sent))
            pulled = [server] * num_workers
    return server, ring if shared else [worker.replay for worker in workers]


def test_one_worker_is_the_plain_agent():
    agent, start, _ = plain(SMALL)
    state = jax.jit(lambda state: repeat(agent.step, 60)(agent.warm_up(state))[0])(start(0))
    served = train(60, num_workers=1)
    assert_close(served.server, state.learner)
    worker = jax.tree.map(lambda x: x[0], served.workers.replace(replay=(), learner=()))
    assert_close(worker, state.replace(replay=(), learner=()))
    assert_close(served.workers.replay.storage, state.replay.storage)


def test_workers_in_turns_are_gradients_at_stale_parameters():
    state = train(60, num_workers=3)
    server, replays = by_hand(3, 20)
    assert int(state.server.updates.count) == 60
    assert_close(state.server, server)
    assert_differs(state.server.params, by_hand(3, 20, fresh=True)[0].params)
    # Each has its own part of the ring.
    for number, replay in enumerate(replays):
        part = slice(number * SMALL.replay_capacity, (number + 1) * SMALL.replay_capacity)
        assert_close(jax.tree.map(lambda x, part=part: x[part], state.workers.replay.storage), replay.storage)


@pytest.mark.parametrize("mode", ["asynchronous", "barrier"])
def test_a_shared_replay_is_handed_on(mode):
    barrier = mode == "barrier"
    state = train(20 if barrier else 60, num_workers=3, mode=mode, replay="shared")
    server, ring = by_hand(3, 20, shared=True, barrier=barrier)
    assert int(state.server.updates.count) == (20 if barrier else 60)
    assert_close(state.server, server)
    assert_close(state.workers.replay, ring)
    assert_differs(state.server.params, by_hand(3, 20)[0].params)


@functools.cache
def experience(number, acts):
    """All that a worker of this number stores, in order: rows of leaves by name."""
    agent, start, _ = plain(dataclasses.replace(SMALL, replay_capacity=3 * 128))
    state = jax.jit(lambda state, acts: jax.lax.fori_loop(0, acts, lambda _, state: agent.act(state)[0], state))(
        start(number), acts
    )
    return {name: values[: int(state.replay.added.count)] for name, values in arrays(state.replay.storage).items()}


WARM_UP = SMALL.warm_up_acts


def test_a_shared_replay_is_in_order_of_arrival():
    """First what each gathered, one worker after the other; then the transitions of each push."""
    rows = SMALL.num_envs
    state = train(60, num_workers=3, replay="shared")
    warm = (WARM_UP - 1) * rows
    mine = [experience(number, WARM_UP + 20) for number in range(3)]
    for name, stored in arrays(state.workers.replay.storage).items():
        order = [one[name][:warm] for one in mine]
        order += [mine[push % 3][name][warm + push // 3 * rows :][:rows] for push in range(60)]
        expected = np.concatenate(order)
        assert int(state.workers.replay.added.count) == len(expected) < len(stored)
        np.testing.assert_allclose(stored[: len(expected)], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_worker_stores_in_its_own_part_round_and_round():
    """Three workers with 128 slots each, that store 8 + 100 times 2 transitions: the rings have gone round."""
    state = train(300, num_workers=3)
    stored = arrays(state.workers.replay.storage)
    assert state.workers.replay.added.count.tolist() == [(WARM_UP - 1 + 100) * 2] * 3
    for number in range(3):
        for name, all_of_it in experience(number, WARM_UP + 100).items():
            ring = np.zeros_like(stored[name][:128])
            for position, row in enumerate(all_of_it):
                ring[position % 128] = row
            np.testing.assert_allclose(stored[name][number * 128 :][:128], ring, rtol=1e-5, atol=1e-6, err_msg=name)
    assert not np.array_equal(stored[".s_tm1"][:128], stored[".s_tm1"][128:])


@pytest.mark.parametrize("replay", ["shared", "local"])
def test_what_others_stored_is_learned_from_if_shared(replay):
    """Worker 0's rewards are made infinite: the gradient of worker 1, which arrives next, shows whether it draws them."""
    state = train(1, num_workers=3, replay=replay)
    warm = (WARM_UP - 1) * SMALL.num_envs
    infinite = state.workers.replay.storage.r_t.at[:warm].set(jnp.inf)
    storage = state.workers.replay.storage._replace(r_t=infinite)
    state = state.replace(workers=state.workers.replace(replay=state.workers.replay.replace(storage=storage)))
    _, run = program(SMALL, ServerConfig(num_workers=3, replay=replay, service_time="constant"))
    after = run(state, 1)
    assert after.pushes.tolist() == [1, 1, 0]
    assert np.isfinite(np.asarray(after.server.params["head"]["kernel"])).all() == (replay == "local")


def test_a_delta_is_applied_whole():
    """Clipping, the optimizer and its rate are those of the workers' own descent, and not once more the server's."""
    config = dataclasses.replace(STEADY, optimizer="adam", learning_rate=0.1, max_grad_norm=1.0)
    server = make_server(ONE_NUMBER, config, ServerConfig(push="delta"))
    state, applied = server.apply(server.init(SEED), {"trunk": {}, "head": jnp.float32(5.0)})
    assert float(state.params["head"]) == -5.0
    assert applied


def test_a_delta_is_how_far_a_worker_descended():
    """Adam, three steps of its own from the server's parameters; the second worker began where the first did."""
    config = dataclasses.replace(SMALL, optimizer="adam", learning_rate=1e-3, target_period=3)
    agent, start, server = plain(dataclasses.replace(config, target_period=1000))
    descend = jax.jit(lambda state: repeat(agent.step, 3)(agent.warm_up(state))[0])
    own = [descend(start(number)).learner for number in range(2)]
    options = {"agent_config": config, "num_workers": 2, "push": "delta", "local_steps": 3}
    before, one, two, three = (train(events, **options) for events in range(4))
    assert_close(one.server.params, own[0].params)
    assert_close(before.server.params, server.params)
    both = jax.tree.map(lambda a, b, start: a + b - start, own[0].params, own[1].params, server.params)
    assert_close(two.server.params, both)
    # A worker keeps its optimizer and pulls the rest; the server counts pushes, and copies its target after the third.
    assert_close(jax.tree.map(lambda x: x[0], one.workers.learner.opt_state), own[0].opt_state)
    for number, pulled in enumerate((one, two)):
        for name in ("params", "target_params"):
            mine = jax.tree.map(lambda x, number=number: x[number], getattr(two.workers.learner, name))
            assert_bitwise(mine, getattr(pulled.server, name))
    assert_bitwise(two.server.target_params, before.server.params)
    assert_bitwise(three.server.target_params, three.server.params)
    assert_differs(three.server.params, two.server.params)


def test_epsilon_counts_a_workers_own_frames():
    config = dataclasses.replace(SMALL, epsilon_end=0.0, epsilon_decay_frames=100)
    options = ServerConfig(num_workers=3, service_time="constant")
    worker = make_worker(ENV, NETWORK, config, options)
    learner = make_server(NETWORK, config, options).init(SEED)

    @jax.jit
    def run(frames):
        def push(state, _):
            state, _, info = worker.work(state)
            return state, info["epsilon"]

        return jax.lax.scan(push, worker.init(SEED, 1, learner, frames=frames), length=3)[1]

    warm = WARM_UP * SMALL.num_envs
    np.testing.assert_allclose(run(0), [1 - (warm + 2 * push) / 100 for push in range(3)], rtol=1e-5)
    # A second life goes on from the frames of the first.
    np.testing.assert_allclose(run(50), [1 - (50 + warm + 2 * push) / 100 for push in range(3)], rtol=1e-5)


PLAIN = dataclasses.replace(SMALL, n_step=1)
OPTIONS = {"num_workers": 3, "service_time": "exponential", "lag_limit": 2}
SEEDS = (3, 7)


@functools.cache
def driver(num_devices):
    """(driver, list that grows with every trace of the environment)."""
    traces = []

    def step(*args):
        traces.append(1)
        return ENV.step(*args)

    devices = jax.local_devices()[:num_devices]
    env = ENV._replace(step=step)
    options = ServerConfig(**OPTIONS)
    made = make_parameter_server(env, NETWORK, PLAIN, options, seeds=SEEDS, devices=devices, pushes_per_chunk=25)
    return made, traces


@functools.cache
def two_chunks(num_devices):
    """(state with leaves [S, ...], infos)."""
    made, _ = driver(num_devices)
    state, first = made.step(made.init())
    state, second = made.step(state)
    here = jax.local_devices()[0]
    return jax.tree.map(lambda x: jax.device_put(x, here).reshape(len(SEEDS), *x.shape[2:]), state), (first, second)


def test_a_chunk_counts_what_happened():
    made, _ = driver(1)
    state, infos = two_chunks(1)
    assert made.initial == made.initial_frames == 3 * 8 * 2
    assert made.per_step == 25 * 2
    assert not made.lockstep
    for info in infos:
        assert info["frames"].tolist() == [50, 50]
        np.testing.assert_array_equal(info["updates"] + info["dropped"], 25)
        assert info["lag_histogram"].shape == (2, 32)
        np.testing.assert_array_equal(info["lag_histogram"].sum(axis=1), 25)
        np.testing.assert_array_equal(info["lag_histogram"][:, 3:].sum(axis=1), info["dropped"])
        np.testing.assert_allclose(info["lag_histogram"] @ np.arange(32) / 25, info["lag"], rtol=1e-6)
        np.testing.assert_array_equal(info["episodes"], info["terminated"] + info["truncated"])
        assert info["finite"].all()
        assert (info["virtual_time"] > 0).all()
    first, second = infos
    np.testing.assert_array_equal(state.server.updates.count, first["updates"] + second["updates"])
    assert len(set(state.server.updates.count.tolist())) == 2
    assert state.pushes.sum(axis=1).tolist() == [50, 50]


def test_the_chunk_is_traced_once():
    two_chunks(1)
    made, traces = driver(1)
    before = len(traces)
    state, _ = made.step(made.init())
    made.step(state)
    assert len(traces) == before > 0


def test_running_again_changes_no_bit():
    made, _ = driver(1)
    state, _ = made.step(made.init())
    state, _ = made.step(state)
    assert_bitwise(jax.tree.map(lambda x: x[0], state), two_chunks(1)[0])


def test_a_repetition_is_the_run_of_its_seed():
    """Two on a device are the runs of either seed, each alone on a device."""
    (many, infos), (alone, infos_alone) = two_chunks(1), two_chunks(2)
    assert_close(many, alone)
    for info, info_alone in zip(infos, infos_alone, strict=True):
        assert_close(info, info_alone, rtol=1e-4)
    assert_differs(jax.tree.map(lambda x: x[::-1], many.server.params), alone.server.params)
    # In the order of the seeds.
    made, _ = driver(2)
    params = made.params(made.init())
    for row, seed in enumerate(SEEDS):
        server = make_server(NETWORK, SMALL, ServerConfig()).init(seed).params
        assert_close(jax.tree.map(lambda x, row=row: x[row], params), server)


def test_seeds_that_do_not_divide_are_refused():
    options = {"seeds": (1, 2, 3), "devices": jax.local_devices()[:2], "pushes_per_chunk": 5}
    with pytest.raises(InputError, match=r"num_seeds is 3.*2 devices: make it a multiple"):
        make_parameter_server(ENV, NETWORK, SMALL, ServerConfig(), **options)


def test_a_problem_names_the_seeds():
    problem = driver(1)[0].problem({"finite": np.array([True, False])})
    assert problem.startswith("seed(s) [7]: a loss or parameter is not finite")


@pytest.mark.parametrize("mode", ["asynchronous", "barrier"])
def test_a_shared_prioritised_memory_keeps_its_exponents(mode):
    """And learns: with exponents of 0 and no largest priority it would draw from nothing."""
    config = dataclasses.replace(SMALL, memory="prioritised", n_step=1, priority_exponent=0.75, importance_exponent=0.25)
    init, _ = program(config, ServerConfig(num_workers=3, replay="shared", mode=mode))
    state = init(jnp.uint32(SEED))
    priorities = state.workers.replay.priorities
    assert (priorities.hyperparams.priority_exponent, priorities.hyperparams.importance_exponent) == (0.75, 0.25)
    # Everything that the warm-up stored can be drawn, each with the first priority.
    stored = int(state.workers.replay.added.count)
    masses = np.asarray(priorities.tree[0]).reshape(-1)
    assert masses[: stored + 1].tolist() == [1.0] * stored + [0.0]


def test_a_server_of_deltas_keeps_its_rate_of_1():
    """The workers' learning rate falls; the server descends by all of what they push."""
    agent_config = dataclasses.replace(SMALL, learning_rate_decay_updates=2)
    server = make_server(ONE_NUMBER, agent_config, ServerConfig(push="delta"))
    state = server.init(0)
    for step in range(4):
        state, _ = server.apply(state, {"trunk": {}, "head": jnp.float32(0.5)})
        assert state.params["head"] == -0.5 * (step + 1)


def test_a_pull_brings_the_numbers_of_the_loss():
    agent_config = dataclasses.replace(SMALL, loss="huber")
    worker = make_worker(ENV, NETWORK, agent_config, ServerConfig())
    server = make_server(NETWORK, agent_config, ServerConfig()).init(0)
    server = server.replace(loss_hyperparams={"delta": jnp.float32(0.125)})
    one = worker.init(0, 1, server)
    assert one.learner.loss_hyperparams["delta"] == 0.125
    later = server.replace(loss_hyperparams={"delta": jnp.float32(0.25)})
    assert worker.pull(one, later, False).learner.loss_hyperparams["delta"] == 0.125
    assert worker.pull(one, later, True).learner.loss_hyperparams["delta"] == 0.25


def test_a_shared_memory_anneals_by_the_frames_of_all():
    """As many frames of each worker, whether they share a memory or not."""
    agent_config = dataclasses.replace(
        SMALL, memory="prioritised", n_step=1, importance_exponent=0.5, importance_anneal_frames=2 * SMALL.learning_starts
    )
    frames = []

    def watched(*args):
        frames.append(args[3])
        return make_prioritised_replay(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqn_jax.replay.make_prioritised_replay", watched)
        for replay in ("local", "shared"):
            make_worker(ENV, NETWORK, agent_config, ServerConfig(num_workers=3, replay=replay, mode="barrier"))
    assert frames == [2 * SMALL.learning_starts, 3 * 2 * SMALL.learning_starts]
