"""Orders and reports pass as promised, without any training: who counts, who is lost, who waits, and how it ends."""

import threading
from collections import deque

import numpy as np
import pytest

from dqn_jax.config import TrainingError
from dqn_jax.distributed import engines
from dqn_jax.distributed.engines.crew import Crew
from dqn_jax.distributed.engines.post import Engine, Job, Lost, Order, Post, Report

PATIENCE = 30.0
NOBODY = np.zeros(2, int)


class Scripted:
    """An engine that writes down orders, and reports what it was told to."""

    def __init__(self, *news):
        self.orders = []
        self.news = deque(news)
        self.patience = None

    def engine(self):
        return Engine(lambda worker, order: self.orders.append((worker, order)), self.receive, lambda: None)

    def receive(self, patience):
        self.patience = patience
        return self.news.popleft()


def report(worker, stream, sequence):
    return Report(worker, stream, sequence, version=0, payload=(worker, stream, sequence), info={})


def crew_of(script, lives=NOBODY, frames=NOBODY):
    return Crew(script.engine(), lives, frames, PATIENCE)


def echo_job(work=lambda state, order: None):
    """A job whose state is the orders of its life, and whose report is that state and what `work` makes of the order."""

    def carry_out(state, order):
        state = [*state, order.version]
        return state, (state, work(state, order)), {}

    return Job(lambda order: [], carry_out)


def order(version=0, stream=0, params="params"):
    return Order(stream, 0, version, params)


def test_reports_that_come_twice_count_once():
    script = Scripted(report(0, 0, 1), report(0, 0, 1), report(1, 1, 1), report(0, 0, 1), report(1, 1, 2))
    crew = crew_of(script)
    received = [crew.receive().payload for _ in range(3)]
    assert received == [(0, 0, 1), (1, 1, 1), (1, 1, 2)]
    assert crew.dropped == 2
    assert crew.reports.tolist() == [1, 2]
    assert script.patience == PATIENCE


def test_reports_of_an_earlier_life_do_not_count():
    script = Scripted(report(0, 0, 1), Lost(0, "gone"), report(0, 0, 2), report(0, 0, 1), report(0, 2, 1))
    crew = crew_of(script)
    assert crew.receive().stream == 0
    assert crew.receive() == Lost(0, "gone")
    # The second life's first report has the number of the first life's.
    assert crew.receive().payload == (0, 2, 1)
    assert (crew.dropped, crew.lost) == (2, 1)


def test_a_lost_worker_begins_anew_where_it_was():
    script = Scripted(report(1, 5, 1), Lost(1, "gone"))
    crew = crew_of(script, lives=np.array([1, 2]), frames=np.array([30, 40]))
    crew.send(0, 7, "a")
    crew.send(1, 7, None)
    crew.receive()
    crew.frames[1] += 10
    assert crew.at_work.tolist() == [True, False]
    crew.send(1, 8, "b")
    crew.receive()
    assert crew.at_work.tolist() == [True, False]
    crew.send(1, 9, "c")
    assert script.orders == [
        (0, Order(stream=2, frames=30, version=7, params="a")),
        # A life's frames are those before it, whatever it has done since.
        (1, Order(stream=5, frames=40, version=7, params=None)),
        (1, Order(stream=5, frames=40, version=8, params="b")),
        (1, Order(stream=7, frames=50, version=9, params="c")),
    ]


def test_no_two_lives_have_the_same_streams():
    size, streams = 3, []
    lives = np.zeros(size, int)
    losses = np.random.default_rng(0).integers(size, size=20)
    for restart in range(4):
        mine = losses[5 * restart : 5 * restart + 5]
        script = Scripted(*(Lost(worker, "gone") for worker in mine))
        crew = crew_of(script, lives, np.zeros(size, int))
        crew._losses -= 100
        for worker in range(size):
            crew.send(worker, 0, None)
        for _ in mine:
            crew.send(crew.receive().worker, 0, None)
        streams += [order.stream for _, order in script.orders]
        lives = crew.lives
    assert len(streams) == len(set(streams)) == 4 * size + 20
    # Which worker it was can be read off.
    assert sorted(set(np.array(streams) % size)) == [0, 1, 2]


def test_five_losses_in_a_row_end_the_run():
    script = Scripted(*[Lost(1, "first")] * 4, Lost(1, "out of memory"))
    crew = crew_of(script)
    for _ in range(4):
        crew.receive()
    with pytest.raises(TrainingError, match=r"^worker 1 was lost 5 times in a row before .* with: out of memory$"):
        crew.receive()


def test_losses_between_reports_do_not():
    lives = [news for life in range(8) for news in (report(1, 1 + 2 * life, 1), Lost(1, "gone"))]
    crew = crew_of(Scripted(*lives))
    for _ in lives:
        crew.receive()
    assert crew.lost == 8


def test_losses_of_several_workers_are_not_in_a_row():
    crew = crew_of(Scripted(*[Lost(0, "gone"), Lost(1, "gone")] * 4))
    for _ in range(8):
        crew.receive()
    assert crew.lives.tolist() == [5, 5]


def test_a_post_counts_its_reports_from_each_new_life():
    post = Post(3, echo_job())
    seen = [post.carry_out(o) for o in (order(4), order(5, params=None), order(6), order(7, stream=9), order(8, stream=9))]
    assert [(r.worker, r.stream, r.sequence) for r in seen] == [(3, 0, 1), (3, 0, 2), (3, 0, 3), (3, 9, 1), (3, 9, 2)]
    # Without new parameters the version is that of the old ones.
    assert [r.version for r in seen] == [4, 4, 6, 7, 8]
    assert [r.payload[0] for r in seen] == [[4], [4, 5], [4, 5, 6], [7], [7, 8]]


def test_in_turn_first_come_first_served():
    engine = engines.start("in-process", echo_job, num_workers=3)
    for worker in (2, 0, 1, 0):
        engine.send(worker, order())
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

    def work(state, order):
        # Beginnings are one at a time.
        return meeting.wait(PATIENCE) if len(state) > 1 else None

    engine = threads(echo_job(work))
    for round_ in range(3):
        for worker in range(2):
            engine.send(worker, order(round_))
        assert {engine.receive(PATIENCE).worker for _ in range(2)} == {0, 1}


def test_threads_begin_one_at_a_time(threads):
    """The first compiles for the others."""
    inside, most = [], []

    def work(state, order):
        inside.append(order.stream)
        most.append(len(inside))
        threading.Event().wait(0.01)
        inside.pop()

    engine = threads(echo_job(work), num_workers=4)
    for worker in range(4):
        engine.send(worker, order(stream=worker))
    for _ in range(4):
        engine.receive(PATIENCE)
    assert most == [1] * 4


def test_patience_with_threads_ends(threads):
    release = threading.Event()
    engine = threads(echo_job(lambda *_: release.wait(PATIENCE)))
    engine.send(0, order())
    with pytest.raises(TrainingError, match=r"^no worker has answered for 0\.05 seconds: raise --patience if .*$"):
        engine.receive(0.05)
    release.set()


@pytest.mark.parametrize("where", ["begin", "work"])
def test_a_job_that_raises_on_a_thread_ends_the_run_with_its_words(threads, where):
    def fail(*_):
        raise ArithmeticError("the words of the job")

    engine = threads(Job(fail, fail) if where == "begin" else echo_job(fail))
    engine.send(1, order())
    with pytest.raises(TrainingError, match=r"^a worker failed with ArithmeticError: the words of the job$"):
        engine.receive(PATIENCE)
    # A lock that it held would hold up the others.
    engine.send(0, order())
    with pytest.raises(TrainingError, match="the words of the job"):
        engine.receive(PATIENCE)


def test_closing_threads_lets_them_finish(threads):
    done = []
    engine = threads(echo_job(lambda state, order: done.append(order.version)))
    for worker in range(2):
        engine.send(worker, order(worker))
    engine.close()
    assert worker_threads() == []
    assert sorted(done) == [0, 1]
    # A second time changes nothing.
    engine.close()
