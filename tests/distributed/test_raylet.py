"""Workers on a made-up Ray: who is replaced, and when; what is said once its node process is gone, which is a socket here."""

import math
import re
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from dqn_jax.config import TrainingError
from dqn_jax.distributed.engines import on_ray, raylet
from dqn_jax.distributed.engines.tasks import Task, WorkerLost

PATIENCE = 30.0


class Node:
    """A raylet's socket."""

    def __init__(self, path):
        self.path = str(path)
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(self.path)
        self.server.listen()

    def end(self):
        """Closes all connections: nobody takes them."""
        self.server.close()


@pytest.fixture
def node(tmp_path):
    node = Node(tmp_path / "raylet")
    yield node
    node.end()


DEPENDENT = """
import os, sys
from dqn_jax.distributed.engines.raylet import Raylet
raylet = Raylet(sys.argv[1])
event = sys.stdin.readline()
if event == "leave\\n":
    raylet.leave()
    raylet.leave()
if event != "exit\\n":
    os._exit(1)
"""


@pytest.mark.parametrize(
    ("event", "words"), [("end", raylet.KILLED + "\n"), ("leave", ""), ("exit", "")], ids=["by Ray", "farewell", "by itself"]
)
def test_a_process_that_ray_ends_has_a_last_word(node, event, words):
    command = [sys.executable, "-c", DEPENDENT, node.path]
    done = subprocess.run(command, input=f"{event}\n", capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0 if event == "exit" else 1, words)


class MadeUpRay:
    """A Ray whose calls are done at the moments that `done` gives them; waiting for them is what makes time go by."""

    exceptions = SimpleNamespace(RayError=RuntimeError, RayTaskError=ArithmeticError)

    def __init__(self, path, done):
        self.path, self.done = path, done
        self.now, self.actors, self.killed = 0.0, 0, []

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "mine")

    def nodes(self):
        return [{"NodeID": "another", "RayletSocketName": "/"}, {"NodeID": "mine", "RayletSocketName": self.path}]

    def remote(self, **options):
        return lambda kind: SimpleNamespace(remote=self.start)

    def start(self, worker, make_job):
        """An actor's calls are (its number, what is called), actors numbered as they start."""
        number, self.actors = self.actors, self.actors + 1
        greet, run = (SimpleNamespace(remote=lambda *_, name=name: (number, name)) for name in ("greet", "run"))
        return SimpleNamespace(number=number, greet=greet, run=run)

    def wait(self, calls, num_returns, timeout):
        done = [call for call in calls if self.done.get(call, math.inf) <= self.now]
        if not done:
            self.now = min([self.now + timeout, *(self.done.get(call, math.inf) for call in calls)])
            done = [call for call in calls if self.done.get(call, math.inf) <= self.now]
        return done[:num_returns], None

    def get(self, call):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return call

    outcome = None

    def kill(self, actor):
        self.killed.append(actor.number)


@pytest.fixture
def made_up(node, monkeypatch):
    """Starts two actors, which are at their first task."""
    started = []

    def start(done):
        ray = MadeUpRay(node.path, done)
        actors = on_ray._Actors(ray, None, 2)
        started.append(actors)
        monkeypatch.setattr(time, "monotonic", lambda: ray.now)
        for worker in range(2):
            actors.send(worker, Task(worker, 0, 0, None))
        return ray, actors

    yield start
    monkeypatch.undo()
    for actors in started:
        actors.raylet.leave()


def test_an_actor_is_lost_after_its_patience_from_its_start(made_up):
    """Worker 1 greets at 100 and answers at 190; worker 0 greets at 50, and no more."""
    ray, actors = made_up({(0, "greet"): 50.0, (1, "greet"): 100.0, (1, "run"): 190.0, (2, "greet"): 250.0, (2, "run"): 300.0})
    assert (actors.receive(120.0), ray.now) == ((1, "run"), 190.0)
    # It was overdue at 170, but till now nobody had answered at all.
    assert (actors.receive(120.0), ray.now) == (WorkerLost(0, "it has not answered for 120 seconds"), 190.0)
    assert ray.killed == [0]
    # Its replacement greets at 250, and answers within its own patience.
    actors.send(0, Task(2, 0, 0, None))
    assert (actors.receive(120.0), ray.now) == ((2, "run"), 300.0)


def test_an_actor_that_waits_for_a_cpu_is_not_frozen(made_up):
    ray, actors = made_up({(1, "greet"): 1.0} | {(1, "run"): 2.0})
    assert actors.receive(120.0) == (1, "run")
    ray.now, ray.done = 500.0, {}
    with pytest.raises(TrainingError, match=r"^no worker has answered for 120 seconds"):
        actors.receive(120.0)
    assert (ray.killed, ray.now) == ([], 620.0)


def test_whoever_answered_while_nobody_looked_is_not_lost(made_up):
    ray, actors = made_up({(0, "greet"): 1.0, (1, "greet"): 1.0, (1, "run"): 2.0})
    assert actors.receive(120.0) == (1, "run")
    actors.send(1, Task(1, 0, 0, None))
    ray.now, ray.done = 1000.0, {(0, "run"): 900.0, (1, "run"): 950.0}
    assert {actors.receive(120.0), actors.receive(120.0)} == {(0, "run"), (1, "run")}
    assert ray.killed == []


def test_where_nobody_answers_nobody_is_singled_out(made_up):
    """Both have answered before, but not since they were sent their second tasks."""
    ray, actors = made_up({(worker, call): 1.0 for worker in range(2) for call in ("greet", "run")})
    for _ in range(2):
        actors.receive(120.0)
    ray.done = {}
    ray.now = 5.0
    for worker in range(2):
        actors.send(worker, Task(worker, 0, 1, None))
    with pytest.raises(TrainingError, match=r"^no worker has answered for 120 seconds"):
        actors.receive(120.0)
    assert (ray.killed, ray.now) == ([], 125.0)


def test_a_raylet_that_is_gone_ends_the_run_with_one_sentence(made_up, node):
    ray, actors = made_up({(0, "greet"): 1.0, (1, "greet"): 1.0, (1, "run"): 2.0})
    ray.outcome = RuntimeError("the worker is gone")
    assert actors.receive(120.0) == WorkerLost(1, "the worker is gone")
    node.end()
    with pytest.raises(TrainingError, match=rf"^{re.escape(raylet.GONE)}$"):
        actors.receive(120.0)
    # Nobody waits for the patience.
    assert ray.now < 5.0
    actors.send(1, Task(3, 0, 0, None))
    ray.done = {(2, "run"): 0.0}
    with pytest.raises(TrainingError, match=rf"^{re.escape(raylet.GONE)}$"):
        actors.receive(120.0)
