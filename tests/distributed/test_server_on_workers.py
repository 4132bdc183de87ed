"""A server with real workers: who may go on, what a restart keeps, and a script that is killed and resumed."""

import csv
import dataclasses
import json
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.common import ENV, NETWORK, STEADY

from dqn_jax.config import InputError, NetworkConfig, RunnerConfig
from dqn_jax.distributed import engines, server_on_workers
from dqn_jax.distributed.config import ServerConfig, ServerExperiment
from dqn_jax.distributed.engines.tasks import Engine, Job, Result, WorkerLost
from dqn_jax.distributed.roles import make_worker

pytestmark = pytest.mark.long

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PARAMS = NETWORK.init(jax.random.key(1))
INFO = {"loss": 1.0, "epsilon": 0.5, "episodes": 2, "return_sum": 3.0, "terminated": 1, "truncated": 1}


def config_of(pushes, num_workers=2, **server):
    """One push is one frame, a chunk `pushes` of them."""
    return ServerExperiment(
        num_seeds=1,
        num_devices=1,
        backend="in-process",
        total_frames=10_000,
        agent=dataclasses.replace(STEADY, num_envs=1, batch_size=8, replay_capacity=64, learning_starts=15),
        network=NetworkConfig(hidden_sizes=(16, 16)),
        runner=RunnerConfig(log_every=pushes),
        server=ServerConfig(num_workers=num_workers, **server),
    )


class Played:
    """Workers that push gradients of ones, in the order that is written down; None is one that is lost."""

    def __init__(self, *turns):
        self.turns = deque(turns)
        self.tasks, self.counts, self.versions = [], {}, {}
        self.idle = set()

    def engine(self):
        return Engine(self.send, self.receive, lambda: None)

    def send(self, worker, task):
        self.tasks.append((worker, task))
        key = worker, task.stream
        assert self.counts.setdefault(key, 0) > 0 or task.params is not None, "a new life needs parameters"
        self.latest = {**getattr(self, "latest", {}), worker: task}
        if task.params is not None:
            self.versions[worker] = task.version

    def receive(self, patience):
        worker, lost = self.turns.popleft()
        task = self.latest.pop(worker)
        if lost:
            return WorkerLost(worker, "gone")
        self.counts[worker, task.stream] += 1
        grads = jax.tree.map(jnp.ones_like, PARAMS)
        return Result(worker, task.stream, self.counts[worker, task.stream], self.versions[worker], grads, INFO)


def play(config, turns, state=None):
    """(state, info, what was sent) of one chunk."""
    played = Played(*((abs(turn) - 1, turn < 0) for turn in turns))
    driver, _ = server_on_workers.from_config(config, played.engine())
    state, info = driver.step(driver.init() if state is None else state)
    return state, {name: values[0].tolist() for name, values in info.items()}, played


# Workers are written from 1, losses with a minus.
def test_lags_are_the_updates_that_overtook():
    state, info, played = play(config_of(5), [1, 1, 1, 2, 1])
    # Worker 2 pulled at the start, and three updates came before its push; then one came before worker 1's.
    assert info["lag_histogram"][:5] == [3, 1, 0, 1, 0]
    assert (info["lag_max"], info["lag"]) == (3, pytest.approx(4 / 5))
    assert (info["updates"], info["frames"], info["dropped"]) == (5, 5, 0)
    assert state.pushes.tolist() == [4, 1]
    assert [(worker, task.version) for worker, task in played.tasks] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 4),
        (0, 5),
    ]
    # Sums and means of what the workers said.
    assert (info["episodes"], info["return_sum"], info["loss"], info["epsilon"]) == (10, 15.0, 1.0, 0.5)


def test_late_pushes_are_refused_and_counted():
    state, info, _ = play(config_of(5, lag_limit=2), [1, 1, 1, 2, 1])
    assert (info["dropped"], info["updates"]) == (1, 4)
    assert int(state.server.updates.count) == 4
    # What was refused was pushed all the same.
    assert (state.pushes.tolist(), state.frames.tolist(), info["frames"]) == ([4, 1], [4, 1], 5)


def test_a_worker_pulls_every_so_many_pushes():
    _, info, played = play(config_of(6, pull_period=2), [1, 1, 2, 1, -1, 1, 1])
    pulled = [task.params is not None for worker, task in played.tasks if worker == 0]
    # Its first task, after its second push, and the first of its new life.
    assert pulled == [True, False, True, False, True, True, False]
    assert info["workers_lost"] == 1


def test_a_lost_worker_gathers_experience_again():
    _, info, played = play(config_of(3), [1, -2, 1, 2])
    assert (info["workers_lost"], info["updates"]) == (1, 3)
    assert info["frames"] == 3 + 16
    new, again = [task for _, task in played.tasks if task.stream == 3]
    assert (new.version, new.params is None, again.version) == (1, False, 3)
    # Its push is late by what came after it began anew.
    assert info["lag_max"] == 1


def test_a_push_has_the_frames_of_all_its_steps():
    """Three agent steps of two acts: a worker that is lost after two pushes has taken 12 frames."""
    config = config_of(4, push="delta", local_steps=3)
    config = dataclasses.replace(config, agent=dataclasses.replace(config.agent, acts_per_step=2))
    config = dataclasses.replace(config, runner=RunnerConfig(log_every=4 * 6))
    state, info, played = play(config, [1, 1, -1, 1, 2])
    assert [task.frames for worker, task in played.tasks if worker == 0] == [0, 0, 0, 12, 12]
    assert state.frames.tolist() == [18, 6]
    assert info["frames"] == 4 * 6 + config.agent.warm_up_frames


def test_nobody_runs_ahead_of_the_bound():
    """After each loss and each push, those wait who are two pushes ahead of the slowest."""
    _, _, played = play(config_of(4, mode="bounded", staleness_bound=1), [1, 1, -2, 2, 1])
    assert [worker for worker, _ in played.tasks] == [0, 1, 0, 1, 0, 1]


def test_behind_a_barrier_pushes_are_averaged_in_the_workers_order():
    _, info, played = play(config_of(4, mode="barrier"), [2, 1, 1, -2, 2])
    assert (info["updates"], info["lag_max"]) == (2, 0)
    assert [(worker, task.version) for worker, task in played.tasks] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
        (1, 1),
        (0, 2),
        (1, 2),
    ]


def test_a_restart_counts_on_and_lets_only_those_begin_who_may():
    config = config_of(3, mode="bounded", staleness_bound=1, pull_period=2)
    state, _, _ = play(config, [1, 1, 2])
    state = state.replace(pushes=jnp.array([3, 1]))
    after, info, played = play(config, [2, 2, 1], state)
    # Worker 1 had been two ahead: it waits for worker 2's push, and begins with a pull.
    assert [(worker, task.stream) for worker, task in played.tasks] == [(1, 3), (0, 2), (1, 3), (1, 3), (0, 2)]
    assert (after.starts.tolist(), after.pushes.tolist()) == ([2, 2], [4, 3])
    assert [task.frames for _, task in played.tasks] == [1, 2, 1, 1, 2]
    # Both gather experience again.
    assert info["frames"] == 3 + 2 * 16
    assert int(after.server.updates.count) == 6


def test_states_do_not_change_when_training_goes_on():
    config = config_of(2)
    engine = engines.start("in-process", lambda: Job(lambda task: 0, lambda state, task: (0, PARAMS, INFO)), 2)
    driver, _ = server_on_workers.from_config(config, engine)
    state, _ = driver.step(driver.init())
    # Where jax need not copy an array of the host, it does not: where it is aligned.
    pool = driver.step.__self__.pool
    room = np.zeros(64, np.int32)
    first = -room.ctypes.data % 64 // 4
    pool.frames = room[first : first + 2]
    pool.frames[:] = state.frames
    state, _ = driver.step(state)
    before = [np.array(x) for x in (state.starts, state.frames, state.pushes)]
    driver.step(state)
    np.testing.assert_array_equal(before, [np.asarray(x) for x in (state.starts, state.frames, state.pushes)])
    assert before[1].tolist() == [2, 2]


def test_epsilon_goes_on_in_a_new_life():
    agent = dataclasses.replace(STEADY, num_envs=1, batch_size=8, learning_starts=16, n_step=1, epsilon_end=0.0)
    worker = make_worker(ENV, NETWORK, dataclasses.replace(agent, epsilon_decay_frames=100), ServerConfig())
    job = jax.jit(lambda frames: worker.work(worker.init(0, 4, NETWORK_COPY, frames=frames))[2]["epsilon"])
    # 16 frames of warm-up and 40 of earlier starts, of 100.
    np.testing.assert_allclose([job(0), job(40)], [0.84, 0.44], rtol=1e-6)


NETWORK_COPY = server_on_workers.Copy(PARAMS, PARAMS, loss_hyperparams={})

REFUSED = {
    "several devices": ({"num_devices": 2}, "num_devices is 2 and backend 'in-process': .* leave it out$"),
    "several seeds": ({"num_seeds": 4}, "num_seeds is 4 and backend 'in-process': "),
    "an address without Ray": (
        {"ray_address": "host:1"},
        "ray_address is 'host:1' and backend 'in-process': add --backend ray$",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_ignored_is_refused(case):
    fields, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        dataclasses.replace(config_of(1), **fields)


TINY = ["--agent.num-envs", "2", "--agent.batch-size", "8", "--agent.replay-capacity", "64", "--agent.learning-starts", "16"]
TINY += [
    "--network.hidden-sizes",
    "8",
    "--runner.log-every",
    "40",
    "--runner.checkpoint-every",
    "40",
    "--max-episode-steps",
    "20",
]
SCRIPTS = {"parameter_server": ["--server.num-workers", "2"], "actor_learner": ["--actors.num-actors", "2"]}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_that_is_killed_can_be_resumed(name, tmp_path):
    script = [sys.executable, str(EXPERIMENTS / f"{name}.py"), "--backend", "threads", *TINY, *SCRIPTS[name]]
    script += ["--run-dir", str(tmp_path / "run"), "--total-frames"]
    with subprocess.Popen([*script, "100000000"], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300.0
        while not list(tmp_path.glob("run/checkpoints/step_*/manifest.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    saved = max(int(path.parent.name.removeprefix("step_")) for path in tmp_path.glob("run/checkpoints/step_*/manifest.json"))
    resume = [*script, str(saved + 200), "--resume", "--patience", "240"]
    done = subprocess.run(resume, capture_output=True, text=True, timeout=300.0, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resuming {tmp_path / 'run'} at {saved:,} frames" in done.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    frames = [line["frames"] for line in lines]
    # Workers keep their own replays, and gather experience again: 16 frames each.
    again = 32 if name == "parameter_server" else 0
    before = [count for count in frames if count <= saved]
    assert before == list(range(frames[0], saved + 1, 40))
    assert frames[len(before) :] == list(range(saved + 40 + again, saved + 201 + again, 40))
    updates = [line["updates"][0] for line in lines]
    assert (np.diff(updates) == 20).all()
    assert updates[0] == 20
    assert summary["updates"] == updates[-1]
    assert [row["updates"] for row in csv.DictReader((tmp_path / "run" / "returns.csv").read_text().splitlines())][-1] == str(
        updates[-1]
    )
