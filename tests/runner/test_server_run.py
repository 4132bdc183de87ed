"""Law 8 with a parameter server: a run killed between two saves, and resumed, is to the last bit the run never killed.

Two repetitions (seeds 3 and 4) of three asynchronous workers, in ten chunks of ten pushes.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from laws import killed_run
from laws.run_files import arrays_of, differences, saved
from runner.helpers import at, run_in

from dqn_jax.distributed.parameter_server import from_config
from dqn_jax.runner import loop
from dqn_jax.runner.records import METRICS, SUMMARY, read_metrics, read_returns

pytestmark = pytest.mark.long

SCRIPT = killed_run.__file__
config_of = killed_run.server_config_of

WARM_UP = 3 * 8
"""Frames of the warm-up: of each of three workers, four acts of two environments."""
FRAMES = 10 * 2
"""Of a chunk: ten pushes, each after an act of two environments."""
SAVED = [64, 124, 184, 224]
"""Frames after the chunks that pass a multiple of 60, and at the end."""


@pytest.fixture(scope="module")
def driver_and_evaluator():
    return from_config(config_of(Path("unused")))


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(loop, "draw_run", lambda run_dir: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, driver_and_evaluator) -> Path:
    """The run that nothing happens to."""
    return run_in(tmp_path_factory.mktemp("server"), config_of, driver_and_evaluator)


def test_metrics_list_what_seeds_do_not_share(whole):
    lines = read_metrics(whole)
    assert [line["frames"] for line in lines] == [WARM_UP + FRAMES * chunk for chunk in range(1, 11)]
    assert saved(whole) == SAVED
    updates = np.zeros(2, int)
    for line in lines:
        # What is dropped is no update.
        updates += 10 - np.array(line["dropped"])
        assert line["updates"] == updates.tolist()
        assert line["env_steps"] == 2 * line["frames"]
        histogram = np.array(line["lag_histogram"])
        assert histogram.shape == (2, 32)
        assert histogram.sum(axis=1).tolist() == [10, 10]
        assert histogram[:, 2:].sum(axis=1).tolist() == line["dropped"]
        assert line["finite"] == [True, True]
    assert updates[0] != updates[1]
    assert updates.max() < 100
    summary = json.loads((whole / SUMMARY).read_text())
    assert summary["updates_per_seed"] == updates.tolist()
    assert summary["updates"] == updates.sum()
    rows = read_returns(whole)
    assert [(row["frames"], row["seed"]) for row in rows] == [(frames, seed) for frames in (84, 164, 224) for seed in (3, 4)]
    assert [row["updates"] for row in rows[-2:]] == updates.tolist()


def test_the_run_is_worth_comparing(whole):
    """Everything that must come back is in the checkpoint, and has moved."""
    state = arrays_of(whole)
    wanted = {".remaining", ".pushes", ".pulled", ".waiting", ".plans", ".workers.replay.added.count"}
    assert wanted | {".workers.learner.params['head']['kernel']", ".server.params['head']['kernel']"} <= state.keys()
    # The rings have gone round: each worker has stored more than it keeps.
    assert (state[".workers.replay.added.count"] > 32).all()
    # Workers have copies of different ages.
    assert len(np.unique(state[".pulled"])) > 2


def test_a_killed_run_resumed_is_the_one_never_killed(tmp_path, whole, driver_and_evaluator):
    """In a process of its own, in the middle of a line after the second save."""
    command = [sys.executable, SCRIPT, str(tmp_path), "torn_line:8", "server"]
    killed = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert saved(tmp_path) == SAVED[:2]
    assert not (tmp_path / SUMMARY).exists()
    driver, evaluator = driver_and_evaluator
    loop.run(driver, config_of(tmp_path), evaluator)
    assert differences(tmp_path, whole) == set()


def who_comes_next(state):
    """The workers' remaining times, in another order."""
    return state.replace(remaining=jax.device_put(np.array(state.remaining)[..., ::-1], state.remaining.sharding))


def a_fresh_copy(state):
    """Every worker has the server's parameters."""
    copies = jax.tree.map(
        lambda x, own: jax.device_put(np.broadcast_to(np.array(x)[:, :, None], own.shape), own.sharding),
        state.server.params,
        state.workers.learner.params,
    )
    return state.replace(workers=state.workers.replace(learner=state.workers.learner.replace(params=copies)))


@pytest.mark.parametrize("perturb", [who_comes_next, a_fresh_copy])
def test_a_perturbed_state_is_seen(tmp_path, whole, driver_and_evaluator, perturb):
    driver, evaluator = driver_and_evaluator
    loop.run(driver, config_of(tmp_path, total_frames=184), evaluator)
    loop.run(at(driver, 1, perturb), config_of(tmp_path), evaluator)
    assert {".server.params['head']['kernel']", METRICS} <= differences(tmp_path, whole)
