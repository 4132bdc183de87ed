"""Workers as Ray processes: trained with, killed, replaced, and never left behind. One session of Ray serves all of them.

Ray ends a process whose cluster is gone, tests and all: `make test` runs this file in a process of its own.
"""

import dataclasses
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from laws.common import STEADY, arrays, assert_close

from dqn_jax.config import InputError, NetworkConfig, RunnerConfig, TrainingError
from dqn_jax.distributed import actor_learner, actors, engines, server_on_workers, workers
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.distributed.engines import on_ray, raylet
from dqn_jax.distributed.engines.tasks import Job, Task, WorkerLost
from dqn_jax.runner.loop import run

pytestmark = pytest.mark.long

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
PATIENCE = 300.0


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a cluster on this machine, which engines join and leave, showing the token that it asks for."""
    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(64 * "7")
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    head = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--port", str(port), "--num-cpus", "4"]
    head += ["--include-dashboard", "false", "--disable-usage-stats"]
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    with subprocess.Popen(head, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: listens(port) or process.poll() is not None)
            ray = on_ray.connect(f"127.0.0.1:{port}", num_workers=4)
            yield f"127.0.0.1:{port}"
            ray.shutdown()
        finally:
            process.terminate()


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def noting(make_job, notes):
    """A job that notes the process and the package of each life of a worker."""

    def make_noting_job():
        import dqn_jax

        job = make_job()

        def begin(task):
            (notes / f"{task.stream}.json").write_text(json.dumps([os.getpid(), dqn_jax.__file__, task.frames]))
            return job.begin(task)

        return job._replace(begin=begin)

    return make_noting_job


def starts(notes):
    """{stream: (process, package, frames before)}."""
    return {int(file.stem): json.loads(file.read_text()) for file in notes.glob("*.json")}


def killing(driver, notes, before_chunk, seen):
    """A driver that loses worker 0 before a chunk, and shows the states it goes through."""

    def step(state):
        if len(seen) == before_chunk:
            os.kill(starts(notes)[0][0], signal.SIGKILL)
        state, info = driver.step(state)
        seen.append((state, info))
        return state, info

    return driver._replace(step=step)


def experiment(kind, tmp_path, address, **fields):
    return kind(
        num_seeds=1,
        num_devices=1,
        backend="ray",
        ray_address=address,
        patience=PATIENCE,
        run_dir=tmp_path / "run",
        network=NetworkConfig(hidden_sizes=(16, 16)),
        **fields,
    )


def metrics(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


def check_lives(notes, size):
    """One worker began anew, with streams and in a process that nobody had had."""
    seen = starts(notes)
    assert set(seen) == {*range(size), size}
    assert len({process for process, _, _ in seen.values()} - {os.getpid()}) == size + 1
    assert {package for _, package, _ in seen.values()} == {sys.modules["dqn_jax"].__file__}
    assert seen[size][2] > 0


def test_a_server_outlives_a_worker(address, tmp_path):
    """Worker 1 cannot end the run alone: it would be too far ahead."""
    config = experiment(
        ServerExperiment,
        tmp_path,
        address,
        # Its environments are stepped by Ray's processes, between their programs.
        env="gymnasium:CartPole-v1",
        total_frames=32 + 5 * 100,
        agent=dataclasses.replace(STEADY, num_envs=1, batch_size=8, replay_capacity=64, learning_starts=15),
        runner=RunnerConfig(log_every=100, checkpoint_every=200),
        server=ServerConfig(num_workers=2, mode="bounded", staleness_bound=20),
    )
    engine = engines.start("ray", noting(lambda: workers.make_job(config), tmp_path), 2, address)
    driver, evaluator = server_on_workers.from_config(config, engine)
    seen = []
    summary = run(killing(driver, tmp_path, 2, seen), config, evaluator)
    lines = metrics(tmp_path)
    assert len(lines) == 5
    # While both are at work, one push overtakes another: W - 1.
    assert 0.5 < lines[1]["lag"][0] < 1.5
    assert [sum(line[name][0] for line in lines) for name in ("workers_lost", "results_dropped", "dropped")] == [1, 0, 0]
    # Nothing was applied twice or passed over.
    state = seen[-1][0]
    assert int(state.server.updates.count) == int(state.pushes.sum()) == summary["updates"] == 500
    assert abs(int(state.pushes[0]) - int(state.pushes[1])) <= 21
    assert state.starts.tolist() == [2, 1]
    # The replacement gathered experience too.
    assert summary["env_steps"] == 32 + 500 + 16
    check_lives(tmp_path, 2)


def test_actors_are_the_plain_agent_and_a_learner_outlives_one(address, tmp_path):
    """Synchronous: nobody goes on until the new actor is there."""
    config = experiment(
        ActorLearnerExperiment,
        tmp_path,
        address,
        total_frames=32 + 4 * 40,
        agent=dataclasses.replace(STEADY, num_envs=2, batch_size=8, replay_capacity=64, learning_starts=30, n_step=2),
        runner=RunnerConfig(log_every=40, checkpoint_every=80),
        actors=ActorLearnerConfig(num_actors=2, mode="synchronous", exploration="shared"),
    )
    engine = engines.start("ray", noting(lambda: actors.make_job(config), tmp_path), 2, address)
    driver, evaluator = actor_learner.from_config(config, engine)
    seen = []
    copied = killing(driver, tmp_path, 2, seen)

    def step(state):
        state, info = copied.step(state)
        # The next chunk reuses its buffers.
        seen[-1] = {name: values.copy() for name, values in arrays(state).items()}
        return state, info

    summary = run(driver._replace(step=step), config, evaluator)
    here = dataclasses.replace(config, backend="in-process", ray_address=None)
    alone, _ = actor_learner.from_config(here, engines.start("in-process", lambda: actors.make_job(here), 2))
    state = alone.init()
    for chunk in range(2):
        state, _ = alone.step(state)
        assert_close(
            {name: jnp.asarray(x) for name, x in seen[chunk].items()}, {n: jnp.asarray(x) for n, x in arrays(state).items()}
        )
    assert [line["workers_lost"] for line in metrics(tmp_path)] in ([[0], [0], [1], [0]], [[0], [1], [0], [0]])
    assert summary["updates"] == 4 * 20
    assert summary["env_steps"] == 32 + 4 * 40
    check_lives(tmp_path, 2)


def task(stream=0):
    return Task(stream, 0, 0, np.zeros(1))


def test_losses_failures_and_patience(address):
    """Of workers that train nothing: one process after another."""
    ray = on_ray.connect(address, 1)

    def make_job():
        def work(state, task):
            if task.stream == 1:
                os._exit(3)
            if task.stream == 2:
                raise ArithmeticError("the words of the job")
            if task.stream == 3:
                time.sleep(PATIENCE)
            return state, os.getpid(), {}

        return Job(lambda task: None, work)

    engine = on_ray.start(make_job, 2, address)
    engine.send(0, task(0))
    first = engine.receive(PATIENCE).payload
    engine.send(0, task(1))
    lost = engine.receive(PATIENCE)
    assert isinstance(lost, WorkerLost)
    assert (lost.worker, "\n" in lost.reason) == (0, False)
    engine.send(0, task(2))
    with pytest.raises(TrainingError, match=r"^worker 0 failed with ArithmeticError\('the words of the job'\)$"):
        engine.receive(PATIENCE)
    engine.send(0, task(4))
    second = engine.receive(PATIENCE).payload
    assert second != first
    engine.send(0, task(3))
    with pytest.raises(TrainingError, match=r"^no worker has answered for 0\.1 seconds: "):
        engine.receive(0.1)
    # Once another answers, it alone is frozen.
    engine.send(1, task(0))
    assert engine.receive(PATIENCE).worker == 1
    assert engine.receive(0.1) == WorkerLost(0, "it has not answered for 0.1 seconds")
    wait_until(lambda: not running([psutil.Process(second)] if psutil.pid_exists(second) else []))
    engine.send(0, task(4))
    second = engine.receive(PATIENCE).payload
    engine.close()
    wait_until(lambda: not running([psutil.Process(second)] if psutil.pid_exists(second) else []))
    # What was joined is left as it is.
    assert ray.is_initialized()


def test_a_job_that_cannot_be_made_ends_the_run_with_its_words(address):
    def make_job():
        raise InputError("env is 'nowhere': no such thing")

    engine = on_ray.start(make_job, 1, address)
    engine.send(0, task())
    with pytest.raises(TrainingError, match=r"^worker 0 could not start: .*env is 'nowhere': no such thing$"):
        engine.receive(PATIENCE)
    engine.close()


def running(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def wait_until(condition, seconds=240.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "still waiting"
        time.sleep(0.05)


TINY = ["--agent.num-envs", "1", "--agent.batch-size", "8", "--agent.replay-capacity", "64", "--agent.learning-starts", "16"]
TINY += ["--network.hidden-sizes", "8", "--runner.log-every", "20", "--runner.checkpoint-every", "20"]


def test_a_script_that_loses_its_raylet_is_resumed_and_killed(tmp_path):
    """As a user starts it, so that what is printed is ours alone, from a folder whose module the workers need.

    It listens on this machine alone, its token is its user's alone, and no worker outlives it.
    """
    (tmp_path / "mine.py").write_text("from dqn_jax.losses import squared\n")
    flags = [
        *TINY,
        "--agent.loss",
        "mine:squared",
        "--backend",
        "ray",
        "--actors.num-actors",
        "1",
        "--total-frames",
        "100000000",
    ]
    script = [sys.executable, str(EXPERIMENTS / "actor_learner.py"), *flags, "--run-dir", str(tmp_path / "run"), "--resume"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}

    for ending in ("raylet", "script"):
        before = checkpoints(tmp_path)
        with (
            (tmp_path / "err").open("w") as err,
            subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=err, cwd=tmp_path, env=env) as process,
        ):
            try:
                wait_for_checkpoint(process, tmp_path, before)
                assert process.poll() is None, (tmp_path / "err").read_text()
                everybody = psutil.Process(process.pid).children(recursive=True)
                # Ray's agents look for their master once a minute.
                started = [child for child in everybody if "Agent" not in "".join(child.cmdline())]
                assert any("RayPost" in "".join(child.cmdline()) for child in started)
                if ending == "raylet":
                    check_addresses([psutil.Process(process.pid), *everybody])
                    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
                    next(child for child in started if child.name() == "raylet").kill()
                    assert process.wait(120.0) == 1
            finally:
                process.kill()
        wait_until(functools.partial(nobody_runs, started))
        # Of a raylet that is gone, whoever is the first to see it tells.
        words = [raylet.KILLED, raylet.GONE] if ending == "raylet" else [raylet.KILLED]
        assert (tmp_path / "err").read_text() in [f"{line}\n" for line in words]


def nobody_runs(processes):
    return not running(processes)


def checkpoints(tmp_path):
    return set(tmp_path.glob("run/checkpoints/step_*/manifest.json"))


def wait_for_checkpoint(process, tmp_path, before):
    """Waits for one that was not there before, or for the end of the process."""
    wait_until(lambda: checkpoints(tmp_path) - before or process.poll() is not None, 300.0)


def check_addresses(processes):
    """All that listen are reached from this machine alone."""
    listening = [c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 3
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.parametrize("where", ["127.0.0.1:1", "nobody.invalid:6379", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_is_ends_the_script_with_one_sentence(where, tmp_path):
    """Within the limit that is set here: Ray alone would try for a quarter of an hour."""
    flags = ["--backend", "ray", "--ray-address", where, "--run-dir", str(tmp_path / "run")]
    script = [sys.executable, str(EXPERIMENTS / "parameter_server.py"), *flags]
    done = subprocess.run(script, capture_output=True, text=True, timeout=240.0, check=False)
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(rf"--ray-address is '{re.escape(where)}', and no Ray cluster answers there: .*\n", done.stderr)
    assert not (tmp_path / "run").exists()
