"""Orders and results pass as promised, without any training: who counts, who is lost, who waits, and how it ends."""

import math
import threading
import time
from collections import deque

import numpy as np
import pytest

from dqn_jax.config import TrainingError
from dqn_jax.distributed import engines
from dqn_jax.distributed.engines import silence
from dqn_jax.distributed.engines.pool import WorkerPool
from dqn_jax.distributed.engines.tasks import Engine, Job, Result, Task, WorkerLoop, WorkerLost

PATIENCE = 30.0
NOBODY = np.zeros(2, int)


class Scripted:
    """An engine that writes down tasks, and results what it was told to."""

    def __init__(self, *news):
        self.tasks = []
        self.news = deque(news)
        self.patience = None

    def engine(self):
        return Engine(lambda worker, task: self.tasks.append((worker, task)), self.receive, lambda: None)

    def receive(self, patience):
        self.patience = patience
        return self.news.popleft()


def result(worker, stream, sequence):
    return Result(worker, stream, sequence, version=0, payload=(worker, stream, sequence), info={})


def pool_of(script, starts=NOBODY, frames=NOBODY):
    return WorkerPool(script.engine(), starts, frames, PATIENCE)


def echo_job(work=lambda state, task: None):
    """A job whose state is the orders of its life, and whose result is that state and what `work` makes of the order."""

    def carry_out(state, task):
        state = [*state, task.version]
        return state, (state, work(state, task)), {}

    return Job(lambda task: [], carry_out)


def task(version=0, stream=0, params="params"):
    return Task(stream, 0, version, params)


def test_reports_that_come_twice_count_once():
    script = Scripted(result(0, 0, 1), result(0, 0, 1), result(1, 1, 1), result(0, 0, 1), result(1, 1, 2))
    pool = pool_of(script)
    received = [pool.receive().payload for _ in range(3)]
    assert received == [(0, 0, 1), (1, 1, 1), (1, 1, 2)]
    assert pool.dropped == 2
    assert pool.results.tolist() == [1, 2]
    assert script.patience == PATIENCE


def test_reports_of_an_earlier_life_do_not_count():
    script = Scripted(result(0, 0, 1), WorkerLost(0, "gone"), result(0, 0, 2), result(0, 0, 1), result(0, 2, 1))
    pool = pool_of(script)
    assert pool.receive().stream == 0
    assert pool.receive() == WorkerLost(0, "gone")
    # The second life's first result has the number of the first life's.
    assert pool.receive().payload == (0, 2, 1)
    assert (pool.dropped, pool.lost) == (2, 1)


def test_a_lost_worker_begins_anew_where_it_was():
    script = Scripted(result(1, 5, 1), WorkerLost(1, "gone"))
    pool = pool_of(script, starts=np.array([1, 2]), frames=np.array([30, 40]))
    pool.send(0, 7, "a")
    pool.send(1, 7, None)
    pool.receive()
    pool.frames[1] += 10
    assert pool.at_work.tolist() == [True, False]
    pool.send(1, 8, "b")
    pool.receive()
    assert pool.at_work.tolist() == [True, False]
    pool.send(1, 9, "c")
    assert script.tasks == [
        (0, Task(stream=2, frames=30, version=7, params="a")),
        # A life's frames are those before it, whatever it has done since.
        (1, Task(stream=5, frames=40, version=7, params=None)),
        (1, Task(stream=5, frames=40, version=8, params="b")),
        (1, Task(stream=7, frames=50, version=9, params="c")),
    ]


def test_no_two_lives_have_the_same_streams():
    size, streams = 3, []
    starts = np.zeros(size, int)
    losses = np.random.default_rng(0).integers(size, size=20)
    for restart in range(4):
        mine = losses[5 * restart : 5 * restart + 5]
        script = Scripted(*(WorkerLost(worker, "gone") for worker in mine))
        pool = pool_of(script, starts, np.zeros(size, int))
        pool._losses -= 100
        for worker in range(size):
            pool.send(worker, 0, None)
        for _ in mine:
            pool.send(pool.receive().worker, 0, None)
        streams += [task.stream for _, task in script.tasks]
        starts = pool.starts
    assert len(streams) == len(set(streams)) == 4 * size + 20
    # Which worker it was can be read off.
    assert sorted(set(np.array(streams) % size)) == [0, 1, 2]


def test_five_losses_in_a_row_end_the_run():
    script = Scripted(*[WorkerLost(1, "first")] * 4, WorkerLost(1, "out of memory"))
    pool = pool_of(script)
    for _ in range(4):
        pool.receive()
    with pytest.raises(TrainingError, match=r"^worker 1 was lost 5 times in a row before .* with: out of memory$"):
        pool.receive()


def test_losses_between_reports_do_not():
    starts = [news for life in range(8) for news in (result(1, 1 + 2 * life, 1), WorkerLost(1, "gone"))]
    pool = pool_of(Scripted(*starts))
    for _ in starts:
        pool.receive()
    assert pool.lost == 8


def test_losses_of_several_workers_are_not_in_a_row():
    pool = pool_of(Scripted(*[WorkerLost(0, "gone"), WorkerLost(1, "gone")] * 4))
    for _ in range(8):
        pool.receive()
    assert pool.starts.tolist() == [5, 5]


def test_a_post_counts_its_reports_from_each_new_life():
    loop = WorkerLoop(3, echo_job())
    seen = [loop.run(o) for o in (task(4), task(5, params=None), task(6), task(7, stream=9), task(8, stream=9))]
    assert [(r.worker, r.stream, r.sequence) for r in seen] == [(3, 0, 1), (3, 0, 2), (3, 0, 3), (3, 9, 1), (3, 9, 2)]
    # Without new parameters the version is that of the old ones.
    assert [r.version for r in seen] == [4, 4, 6, 7, 8]
    assert [r.payload[0] for r in seen] == [[4], [4, 5], [4, 5, 6], [7], [7, 8]]


def test_in_turn_first_come_first_served():
    engine = engines.start("in-process", echo_job, num_workers=3)
    for worker in (2, 0, 1, 0):
        engine.send(worker, task())
    assert [engine.receive(PATIENCE).worker for _ in range(4)] == [2, 0, 1, 0]
    with pytest.raises(TrainingError, match="no worker is at work"):
        engine.receive(PATIENCE)


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]


@pytest.fixture
def threads():
    """Starts workers on threads, and ends them."""
    started = []

    def start(job, num_workers=2):
        started.append(engines.start("threads", lambda: job, num_workers))
        assert len(worker_threads()) == num_workers
        return started[-1]

    yield start
    for engine in started:
        engine.close()
    assert worker_threads() == []


def test_threads_work_side_by_side(threads):
    """Each waits for the other in the middle of its work."""
    meeting = threading.Barrier(2)

    def work(state, task):
        # Beginnings are one at a time.
        return meeting.wait(PATIENCE) if len(state) > 1 else None

    engine = threads(echo_job(work))
    for round_ in range(3):
        for worker in range(2):
            engine.send(worker, task(round_))
        assert {engine.receive(PATIENCE).worker for _ in range(2)} == {0, 1}


def test_threads_begin_one_at_a_time(threads):
    """The first compiles for the others."""
    inside, most = [], []

    def work(state, task):
        inside.append(task.stream)
        most.append(len(inside))
        threading.Event().wait(0.01)
        inside.pop()

    engine = threads(echo_job(work), num_workers=4)
    for worker in range(4):
        engine.send(worker, task(stream=worker))
    for _ in range(4):
        engine.receive(PATIENCE)
    assert most == [1] * 4


def test_patience_with_threads_ends(threads):
    release = threading.Event()
    engine = threads(echo_job(lambda state, task: task.version and release.wait(PATIENCE)))
    engine.send(0, task())
    engine.receive(PATIENCE)
    engine.send(0, task(1))
    with pytest.raises(TrainingError, match=r"^no worker has answered for 0\.05 seconds: raise --patience if .*$"):
        engine.receive(0.05)
    release.set()


@pytest.mark.parametrize("late", ["result", "error"])
def test_a_frozen_thread_is_replaced_and_what_comes_of_it_late_is_dropped(threads, capsys, late):
    asleep, wake = threading.Event(), threading.Event()

    def work(state, task):
        if task.version == 7:
            asleep.set()
            wake.wait(PATIENCE)
            if late == "error":
                raise ArithmeticError("nobody hears this")

    pool = WorkerPool(threads(echo_job(work)), NOBODY, NOBODY, PATIENCE)
    for worker in range(2):
        pool.send(worker, 0, "params")
    assert {pool.receive().worker for _ in range(2)} == {0, 1}
    (old,) = [thread for thread in worker_threads() if thread.name == "worker-0"]
    pool.send(0, 7, "params")
    asleep.wait(PATIENCE)
    pool.send(1, 1, None)
    assert pool.receive().worker == 1
    # Another has answered since: it alone is frozen.
    pool.patience = 0.01
    assert pool.receive() == WorkerLost(0, "it has not answered for 0.01 seconds")
    words = "worker 0 is lost, and another takes its place: it has not answered for 0.01 seconds\n"
    assert capsys.readouterr() == ("", words)
    pool.patience = PATIENCE
    pool.send(0, 8, "params")
    first = pool.receive()
    wake.set()
    old.join(PATIENCE)
    pool.send(0, 9, "params")
    second = pool.receive()
    # Streams of its own, its results from 1, and no task of the thread that it replaces.
    assert [(r.worker, r.stream, r.sequence, r.payload[0]) for r in (first, second)] == [(0, 2, 1, [8]), (0, 2, 2, [8, 9])]
    assert (pool.lost, pool.dropped) == (1, late == "result")


def test_a_thread_that_freezes_before_its_first_answer_holds_nobody_up(threads):
    asleep, wake = threading.Event(), threading.Event()

    def begin(task):
        if task.stream == 1:
            asleep.set()
            wake.wait(PATIENCE)

    engine = threads(Job(begin, lambda state, task: (state, task.stream, {})), num_workers=3)
    for worker in range(3):
        engine.send(worker, task(stream=worker))
    assert engine.receive(PATIENCE).payload == 0
    asleep.wait(PATIENCE)
    # As behind a barrier: worker 0 had answered before worker 1 began.
    assert engine.receive(0.01).worker == 1
    # Its turn comes.
    assert engine.receive(PATIENCE).payload == 2
    engine.send(1, task(stream=4))
    assert engine.receive(PATIENCE).payload == 4
    wake.set()


def test_closing_waits_once_for_all_that_are_frozen(threads, monkeypatch):
    wake, waits = threading.Event(), []
    engine = threads(echo_job(lambda *_: wake.wait(PATIENCE)))
    for worker in range(2):
        engine.send(worker, task())
    clock = iter([100.0, 110.0, 200.0])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", lambda thread, seconds: waits.append(seconds))
        patched.setattr(time, "monotonic", lambda: next(clock))
        engine.close()
    assert waits == [20.0, 0.0]
    wake.set()


@pytest.fixture
def at_100(monkeypatch):
    """The time is 100."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)


@pytest.mark.parametrize(
    ("activities", "expected"),
    [
        # Worker 1 is at its task for 11 seconds, and worker 0 has answered since it was sent.
        ([(80.0, math.inf, 99.0), (89.0, 89.0, 88.0)], ([1], 1)),
        ([(80.0, math.inf, 87.0), (86.0, 89.0, 85.0)], ([1], 1)),
        # Nobody has: it is not alone.
        ([(80.0, math.inf, 81.0), (89.0, 89.0, 88.0)], ([1], None)),
        ([(89.0, 89.0, 0.0)], ([0], None)),
        # Its own last answer does not speak against it.
        ([(80.0, 80.0, 80.0), (89.0, 89.0, 70.0)], ([0, 1], None)),
        # Both are overdue, and worker 1's answer came after worker 0 was sent its task.
        ([(80.0, 80.0, 79.0), (89.0, 89.0, 88.0)], ([0, 1], 0)),
        # One that has not started, or has no task, is never overdue.
        ([(10.0, math.inf, -math.inf), (95.0, 95.0, 94.0)], ([], None)),
    ],
)
def test_who_is_frozen_after_10_seconds(at_100, activities, expected):
    workers = [silence.Activity(*times) for times in activities]
    assert (silence.overdue(workers, 10.0), silence.frozen(workers, 10.0)) == expected


def test_how_long_to_wait(at_100):
    workers = [silence.Activity(since=since) for since in (math.inf, 85.0, 94.0, 97.0)]
    # Until the third worker is overdue; the second has been for 5 seconds.
    assert silence.seconds_left(workers, 10.0, end=130.0) == 4.0
    assert silence.seconds_left(workers, 10.0, end=101.0) == 1.0
    assert silence.seconds_left(workers[:1], 10.0, end=99.0) == 0.0


@pytest.mark.parametrize("where", ["begin", "work"])
def test_a_job_that_raises_on_a_thread_ends_the_run_with_its_words(threads, where):
    def fail(*_):
        raise ArithmeticError("the words of the job")

    engine = threads(Job(fail, fail) if where == "begin" else echo_job(fail))
    engine.send(1, task())
    with pytest.raises(TrainingError, match=r"^a worker failed with ArithmeticError: the words of the job$"):
        engine.receive(PATIENCE)
    # A lock that it held would hold up the others.
    engine.send(0, task())
    with pytest.raises(TrainingError, match="the words of the job"):
        engine.receive(PATIENCE)


def test_closing_threads_lets_them_finish(threads):
    done = []
    engine = threads(echo_job(lambda state, task: done.append(task.version)))
    for worker in range(2):
        engine.send(worker, task(worker))
    engine.close()
    assert worker_threads() == []
    assert sorted(done) == [0, 1]
    # A second time changes nothing.
    engine.close()
