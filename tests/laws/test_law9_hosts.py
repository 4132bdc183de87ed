"""Laws 8 and 9 for several processes: two of two devices are one of four, and killed and resumed they are never killed.

Every start of processes is a few seconds of imports, so the tests share four of them.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from laws import killed_run
from laws.common import assert_close, assert_differs
from laws.run_files import arrays_of, differences, without_times

from dqn_jax.config import InputError
from dqn_jax.distributed import data_parallel
from dqn_jax.mapping import place
from dqn_jax.runner import checkpoint, loop
from dqn_jax.runner.records import read_metrics

pytestmark = pytest.mark.long

SCRIPT = killed_run.__file__

LIMIT_SECONDS = 400
"""Nothing hangs: a launcher that is not done by then fails its test."""


def start(run_dir: Path, point: str = "") -> subprocess.CompletedProcess:
    """Two processes of two devices."""
    command = [sys.executable, "-m", "dqn_jax.runner.launch", "--num-processes", "2", SCRIPT, str(run_dir), point, "hosts"]
    return subprocess.run(
        command,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_SECONDS,
    )


def frames_after(chunk: int) -> int:
    return killed_run.INITIAL_FRAMES + chunk * killed_run.FRAMES_PER_CHUNK


def steps_in(run_dir: Path) -> list[int]:
    """Chunks after which there is a checkpoint with a manifest."""
    done = [int(path.parent.name.removeprefix("step_")) for path in run_dir.glob("checkpoints/step_*/manifest.json")]
    return sorted((frames - killed_run.INITIAL_FRAMES) // killed_run.FRAMES_PER_CHUNK for frames in done)


def lines_of(run_dir: Path) -> list[dict]:
    return [without_times(line) for line in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two processes that nothing happens to."""
    run_dir = tmp_path_factory.mktemp("hosts") / "whole"
    done = start(run_dir)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return run_dir


def alone(run_dir: Path) -> Path:
    """The same config in this process on its four devices."""
    config = killed_run.hosts_config_of(run_dir, num_devices=4)
    driver, evaluator = data_parallel.from_config(config)
    loop.run(driver, config, evaluator)
    return run_dir


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Law 9: experience and counts are the same, parameters up to the order in which gradients are added."""
    assert_close(arrays_of(run_dir), arrays_of(other))
    lines, others = lines_of(run_dir), lines_of(other)
    assert [line.keys() for line in lines] == [line.keys() for line in others]
    for line, expected in zip(lines, others, strict=True):
        for name in line.keys() - {"eval_return", "eval_unfinished"}:  # a greedy action near a tie may be another
            actual, wanted = (np.asarray(values[name], float) for values in (line, expected))
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, err_msg=name)


def test_two_processes_of_two_devices_are_one_of_four(whole, tmp_path):
    assert len(list((max(whole.glob("checkpoints/step_*"))).glob("arrays-*.npz"))) == 2
    assert_same_run(whole, alone(tmp_path / "alone"))
    # Law 2 across processes: the first reduction of gradients that is not the same everywhere would show.
    for name, values in arrays_of(whole).items():
        if name.startswith(".learner"):
            assert {row.tobytes() for row in values} == {values[0].tobytes()}, name


def test_processes_that_each_number_their_devices_from_zero_are_seen(whole, tmp_path, monkeypatch):
    """The control: shards 0, 1, 0, 1 in place of 0, 1, 2, 3."""
    again = np.array([0, 1, 0, 1])
    monkeypatch.setattr(data_parallel, "place", lambda tree, devices: place(jax.tree.map(lambda x: x[again], tree), devices))
    assert_differs(arrays_of(whole), arrays_of(alone(tmp_path / "alone")))


@pytest.fixture(scope="module")
def resumed(whole, tmp_path_factory) -> tuple[Path, list[subprocess.CompletedProcess]]:
    """Stopped by a SIGTERM to process 1, process 1 killed, a shard of its damaged, and resumed each time."""
    run_dir = tmp_path_factory.mktemp("hosts") / "run"
    stopped = start(run_dir, "stop:4")
    steps = [steps_in(run_dir)]
    killed = start(run_dir, "chunk:4")
    steps.append(steps_in(run_dir))
    shard = run_dir / "checkpoints" / f"step_{frames_after(6):012d}" / "arrays-1.npz"
    os.truncate(shard, shard.stat().st_size - 1)
    done = start(run_dir)
    assert steps == [[3, 4], [4, 6]], (stopped.stderr, killed.stderr)
    return run_dir, [stopped, killed, done]


def test_a_signal_to_one_process_saves_and_stops_all(resumed):
    stopped = resumed[1][0]
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    sentences = re.findall(r"stopped at ([\d,]+) frames, saved in \S+: --resume continues", stopped.stderr)
    assert sentences == [f"{frames_after(4):,}"] * 2


def test_a_lost_process_ends_the_job_with_a_message(resumed):
    killed = resumed[1][1]
    assert killed.returncode == 128 + signal.SIGKILL
    assert "process 1 was ended by SIGKILL: the others are ended; the same command with --resume goes on" in killed.stderr
    # The survivor was inside a collective; how soon it knows is up to the network, and it says so itself.
    assert re.search(r"process 0 lost another process \(.*\): end those that are left and start all .* --resume", killed.stderr)
    assert "Traceback" not in killed.stderr


def test_killed_and_resumed_is_never_killed(resumed, whole):
    run_dir, (_, _, done) = resumed
    assert done.returncode == 0, done.stderr
    # One process's damaged shard makes all go on from the checkpoint before.
    assert f"warning: step_{frames_after(6):012d} is damaged (arrays-1.npz is not what was written)" in done.stdout
    assert f"at {frames_after(4):,} frames" in done.stdout
    assert differences(run_dir, whole) == set()


def test_another_number_of_processes_is_refused(whole):
    with pytest.raises(InputError, match=r"was written by 2 process\(es\), and there are 1: resume with as many"):
        checkpoint.newest_valid(whole / "checkpoints")
