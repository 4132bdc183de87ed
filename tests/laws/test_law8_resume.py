"""Law 8: a run of 2N frames is a run killed at any point and resumed in a new process to 2N, to the last bit."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import killed_run
from laws.run_files import arrays_of, differences, manifest_of

from dqn_jax.distributed.data_parallel import from_config
from dqn_jax.runner import checkpoint, loop
from dqn_jax.runner.records import CHECKPOINTS, METRICS, RETURNS, SUMMARY, Records, read_metrics

SCRIPT = killed_run.__file__


def start(run_dir: Path, *point: str) -> subprocess.CompletedProcess:
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, SCRIPT, str(run_dir), *point], env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing happens to, in a process of its own."""
    run_dir = tmp_path_factory.mktemp("law8") / "whole"
    done = start(run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir


def frames_after(chunk: int) -> int:
    return killed_run.INITIAL_FRAMES + chunk * killed_run.FRAMES_PER_CHUNK


def step_of(chunk: int) -> str:
    return f"step_{frames_after(chunk):012d}"


def test_the_run_is_worth_comparing(whole):
    """Everything that must come back is in the checkpoint, and has moved."""
    arrays = arrays_of(whole)
    wanted = (r"learner\.params", r"learner\.target_params", r"learner\.opt_state.*mu", r"learner\.updates", r"replay\.storage")
    wanted += (r"replay\.added", r"actor\.env_state", r"actor\.obs", r"actor\.window", r"actor\.clock", r"actor\.streams")
    wanted += (r"actor\.episode_return", r"^\.stream")
    assert [part for part in wanted if not any(re.search(part, name) for name in arrays)] == []
    assert sum(leaf["dtype"] == "key<fry>" for leaf in manifest_of(whole)["leaves"]) >= 2
    online, target = (arrays[f".learner.{kind}['head']['kernel']"] for kind in ("params", "target_params"))
    assert not np.array_equal(online, target)
    lines = read_metrics(whole)
    assert [line["frames"] for line in lines] == [frames_after(chunk) for chunk in range(1, killed_run.CHUNKS + 1)]
    assert np.sum([line["truncated"] for line in lines]) > 0
    assert np.sum([line["terminated"] for line in lines]) > 0
    # The ring has gone round: more was added than it holds.
    assert np.all(arrays[".replay.added.count"] > 2 * killed_run.config_of(whole).agent.replay_capacity // 2)


RANDOM_CHUNK = int(np.random.default_rng(8).integers(2, killed_run.CHUNKS + 1))
# point: (newest checkpoint it leaves, or None; lines of metrics it leaves, the torn one among them)
POINTS = {
    "chunk:2": (None, 1),  # before the first checkpoint
    "torn_arrays:2": (3, 6),  # in the second save, half of the arrays written
    "after_rename:3": (9, 9),  # in the third save, in place and the oldest not yet removed
    "torn_line:8": (6, 8),  # between two saves, in the middle of a line
    f"chunk:{RANDOM_CHUNK}": (max([chunk for chunk in (3, 6, 9) if chunk < RANDOM_CHUNK], default=None), RANDOM_CHUNK - 1),
}


@pytest.fixture(scope="module")
def driver_and_evaluator():
    return from_config(killed_run.config_of(Path("unused")))


@pytest.mark.parametrize("point", [pytest.param(p, marks=[] if p == "torn_line:8" else pytest.mark.long) for p in POINTS])
def test_killed_and_resumed_is_never_killed(tmp_path, whole, driver_and_evaluator, point):
    run_dir = tmp_path / "run"
    killed = start(run_dir, point)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    newest, lines = POINTS[point]
    found, problems = checkpoint.newest_valid(run_dir / "checkpoints")
    assert problems == []
    assert (found and found.path.name) == (newest and step_of(newest))
    assert len((run_dir / METRICS).read_text().splitlines()) == lines
    aside = [path.name for path in run_dir.glob("checkpoints/.writing_*")]
    assert aside == ([f".writing_{step_of(6)}"] if point == "torn_arrays:2" else [])
    assert not (run_dir / SUMMARY).exists()

    # This process is another one than the first's too; a fresh one starts twice as slowly.
    if point == "torn_arrays:2":
        resumed = start(run_dir)
        assert resumed.returncode == 0, resumed.stderr
    else:
        driver, evaluator = driver_and_evaluator
        loop.run(driver, killed_run.config_of(run_dir), evaluator)
    assert differences(run_dir, whole) == set()


@pytest.fixture
def resume(tmp_path, whole, driver_and_evaluator):
    """Resumes a copy of the whole run from the checkpoint before its last; returns what then differs from the whole."""

    def again() -> set[str]:
        run_dir = tmp_path / "run"
        shutil.copytree(whole, run_dir)
        shutil.rmtree(run_dir / "checkpoints" / step_of(killed_run.CHUNKS))
        driver, evaluator = driver_and_evaluator
        loop.run(driver, killed_run.config_of(run_dir), evaluator)
        return differences(run_dir, whole) - {CHECKPOINTS}

    return again


def one_byte_of_replay(state):
    """The lowest byte of the first number of the newest transition, which stays until the run ends."""
    rewards = np.array(state.replay.storage.r_t)
    newest = (int(np.asarray(state.replay.added.count)[0]) - 1) % rewards.shape[-1]
    rewards.view(np.uint8).reshape(*rewards.shape, 4)[0, 0, newest, 0] ^= 1
    storage = state.replay.storage._replace(r_t=jax.device_put(rewards, state.replay.storage.r_t.sharding))
    return state.replace(replay=state.replay.replace(storage=storage))


def another_stream(state):
    """What sampling and learning draw from, begun anew."""
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)), in_axes=(0, None))
    return state.replace(stream=jax.device_put(fold(state.stream, 1), state.stream.sharding))


def an_empty_window(state):
    """The n - 1 steps that wait for their rewards are forgotten."""
    window = jax.tree.map(lambda x: jax.device_put(jnp.zeros_like(x), x.sharding), state.actor.window)
    return state.replace(actor=state.actor.replace(window=window))


def an_earlier_clock(state):
    """Epsilon and the environments' draws go back a step."""
    clock = state.actor.clock
    return state.replace(actor=state.actor.replace(clock=clock.replace(count=clock.count - 1)))


@pytest.mark.long
def test_resuming_here_changes_nothing(resume):
    """What the controls below differ by is what they do, not where they run."""
    assert resume() == set()


@pytest.mark.long
@pytest.mark.parametrize("perturb", [one_byte_of_replay, another_stream, an_empty_window, an_earlier_clock])
def test_a_perturbed_state_is_seen(resume, monkeypatch, perturb):
    restore = checkpoint.Checkpoint.restore
    monkeypatch.setattr(checkpoint.Checkpoint, "restore", lambda self, template, **_: perturb(restore(self, template)))
    found = resume()
    part = {one_byte_of_replay: ".replay.storage.r_t", an_earlier_clock: ".actor.clock.count", another_stream: ".stream"}
    assert part.get(perturb, ".replay.storage.r_t") in found
    if perturb is not one_byte_of_replay:
        assert {METRICS, ".learner.params['head']['kernel']"} <= found


@pytest.mark.long
def test_a_state_that_is_not_restored_is_seen(resume, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "restore", lambda self, template, **_: template)
    assert {".learner.params['head']['kernel']", ".replay.added.count", ".actor.clock.count", METRICS} <= resume()


@pytest.mark.long
def test_files_that_are_not_cut_are_seen(resume, monkeypatch):
    monkeypatch.setattr(Records, "cut", lambda self, marks: None)
    assert resume() == {METRICS, RETURNS}


@pytest.mark.long
def test_progress_that_is_not_restored_is_seen(resume, monkeypatch):
    read = checkpoint.read

    def forgetful(path):
        found = read(path)
        return checkpoint.Checkpoint(path, found.progress | {"updates": [0, 0]}, found.config, found.leaves, found.has_replay)

    monkeypatch.setattr(checkpoint, "read", forgetful)
    assert {METRICS, RETURNS, SUMMARY} <= resume()
