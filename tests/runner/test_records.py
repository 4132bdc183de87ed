"""Proves what the files of a run directory hold, and that opening or cutting one that cannot be used changes nothing."""

import csv
import hashlib
import json
import math
import os

import numpy as np
import pytest

from dqn_jax.config import AgentConfig, DataParallelExperiment, InputError
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.records import (
    CONFIG,
    METRICS,
    RETURNS,
    SUMMARY,
    Records,
    jsonable,
    read_metrics,
    read_returns,
)


def contents(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rows(frames: int) -> list[dict]:
    shared = {"policy": "global", "split": "seen", "client": 0, "env_params": '{"max_steps": 9}', "rounds": ""}
    shared |= {"frames": frames, "updates": frames // 2}
    return [shared | {"seed": np.int64(seed), "return": seed + 0.25} for seed in (4, 5)]


def test_metrics_are_one_object_a_line_with_keys_in_order(tmp_path):
    records = Records(tmp_path, resume=False)
    lines = [
        {"frames": 10, "return": np.array([1.5, np.nan], np.float32), "finite": np.array([True, False]), "loss": np.inf},
        {"frames": 20, "return": np.array([2.0, -np.inf]), "finite": np.array([True, True]), "loss": np.float32(0.5)},
    ]
    for line in lines:
        records.append_metrics(line)
    text = (tmp_path / METRICS).read_text()
    assert text == (
        '{"frames": 10, "return": [1.5, null], "finite": [true, false], "loss": null}\n'
        '{"frames": 20, "return": [2.0, null], "finite": [true, true], "loss": 0.5}\n'
    )
    assert [list(line) for line in read_metrics(tmp_path)] == [["frames", "return", "finite", "loss"]] * 2


def test_jsonable_is_strict_json():
    value = {
        "array": np.array([[1.0, math.nan], [math.inf, -0.5]]),
        "numbers": (np.int32(3), np.float32(0.25), np.bool_(True), 2**40, math.nan, None, "text"),
        "nested": [{"deep": np.array(math.inf)}],
    }
    expected = {
        "array": [[1.0, None], [None, -0.5]],
        "numbers": [3, 0.25, True, 2**40, None, None, "text"],
        "nested": [{"deep": None}],
    }
    assert jsonable(value) == expected
    assert json.loads(json.dumps(jsonable(value), allow_nan=False)) == expected


def test_returns_have_the_documented_columns_and_one_header(tmp_path):
    records = Records(tmp_path, resume=False)
    for frames in (10, 20):
        records.append_returns(rows(frames))
    with open(tmp_path / RETURNS, newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["seed", "policy", "split", "client", "env_params", "rounds", "frames", "updates", "return"]
    assert table[1:] == [
        [seed, "global", "seen", "0", '{"max_steps": 9}', "", frames, updates, value]
        for frames, updates in (("10", "5"), ("20", "10"))
        for seed, value in (("4", "4.25"), ("5", "5.25"))
    ]
    assert read_returns(tmp_path) == [
        rows(frames)[row] | {"rounds": None, "seed": seed, "return": value}
        for frames in (10, 20)
        for row, (seed, value) in enumerate(((4, 4.25), (5, 5.25)))
    ]


def test_returns_read_back_what_only_some_rows_have(tmp_path):
    """Rounds of a federated run; no client where an environment is nobody's."""
    records = Records(tmp_path, resume=False)
    held_out = {"seed": 3, "policy": "client", "split": "beyond", "client": "", "env_params": "{}", "rounds": 7}
    held_out |= {"frames": 10, "updates": 5, "return": 0.1 + 0.2}
    records.append_returns([held_out])
    assert read_returns(tmp_path) == [held_out | {"client": None}]


def test_cut_goes_back_to_the_bytes_of_a_checkpoint(tmp_path):
    records = Records(tmp_path, resume=False)
    records.append_metrics({"frames": 10})
    records.append_returns(rows(10))
    before, marks = contents(tmp_path), records.marks()
    assert marks == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in before.items()}
    records.append_metrics({"frames": 20})
    records.append_returns(rows(20))
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"fra')  # a line torn by a kill
    assert contents(tmp_path) != before
    # As read back from a checkpoint.
    Records(tmp_path, resume=True).cut(json.loads(json.dumps(marks)))
    assert contents(tmp_path) == before
    Records(tmp_path, resume=True).cut({})
    assert contents(tmp_path) == {METRICS: b"", RETURNS: b""}
    # An emptied table gets its header again.
    records.append_returns(rows(10))
    assert contents(tmp_path)[RETURNS] == before[RETURNS]


def test_marks_are_of_what_is_on_disk(tmp_path, monkeypatch):
    """A checkpoint must not promise bytes that a power cut can take back."""
    records = Records(tmp_path, resume=False)
    records.append_metrics({"frames": 10})
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd))
    )
    assert {name: size for name, (size, _) in records.marks().items()} == {METRICS: 15, RETURNS: 0}
    assert synced == [METRICS, RETURNS]


def test_too_short_a_file_is_refused_and_nothing_is_lost(tmp_path):
    records = Records(tmp_path, resume=False)
    records.append_metrics({"frames": 10})
    written = records.marks()
    for marks, words in (
        ({RETURNS: (9, "")}, r"returns\.csv has 0 bytes, and the checkpoint was saved at 9: restore the file"),
        ({METRICS: (16, "")}, r"metrics\.jsonl has 15 bytes, and the checkpoint was saved at 16: restore the file"),
    ):
        before = contents(tmp_path)
        with pytest.raises(InputError, match=words):
            records.cut(written | marks)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("name", [METRICS, RETURNS])
def test_a_changed_digit_before_a_checkpoint_is_refused_and_nothing_is_lost(tmp_path, name):
    records = Records(tmp_path, resume=False)
    records.append_metrics({"frames": 10})
    records.append_returns(rows(10))
    marks = records.marks()
    path = tmp_path / name
    size = path.stat().st_size
    records.append_metrics({"frames": 20})
    records.append_returns(rows(20))
    path.write_bytes(path.read_bytes().replace(b"10", b"11", 1))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=rf"{name} has changed before byte {size}, where the checkpoint was saved: restore"):
        records.cut(marks)
    assert contents(tmp_path) == before
    # What comes after the checkpoint may be anything.
    path.write_bytes(path.read_bytes().replace(b"11", b"10", 1) + b"\xff")
    records.cut(marks)


def test_a_directory_that_holds_a_run_is_left_alone_without_resume(tmp_path):
    records = Records(tmp_path, resume=False)
    records.append_metrics({"frames": 10})
    records.write_config(config_dict(DataParallelExperiment()))
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"run_dir .* already holds a run: add --resume .*, or name another") as refused:
        Records(tmp_path, resume=False)
    assert str(tmp_path) in str(refused.value)
    assert contents(tmp_path) == before
    Records(tmp_path, resume=True)
    assert contents(tmp_path) == before


def test_a_new_directory_is_made_with_its_parents(tmp_path):
    Records(tmp_path / "a" / "b", resume=False)
    Records(tmp_path / "c", resume=True)
    assert sorted(contents(tmp_path)) == [f"{name}/{file}" for name in ("a/b", "c") for file in (METRICS, RETURNS)]


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_that_cannot_be_written_is_refused(tmp_path, resume):
    """Below a regular file, as the file itself, or where a directory stands in for a file: root may write anywhere else."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "odd" / METRICS).mkdir(parents=True)
    for name in ("file", "file/run", "odd"):
        with pytest.raises(InputError, match=r"run_dir .* cannot be written \(.*\): name another directory") as refused:
            Records(tmp_path / name, resume)
        assert str(tmp_path / name) in str(refused.value)
    assert contents(tmp_path) == {"file": b"x"}


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        Records(tmp_path / ("x" * 300), resume=False)


def test_config_is_written_whole_and_read_back_without_what_is_aside(tmp_path):
    records = Records(tmp_path, resume=False)
    assert records.read_config() is None
    config = config_dict(DataParallelExperiment(run_dir=tmp_path, agent=AgentConfig(learning_rate=1e-4)))
    assert config["agent"]["learning_rate"] == 1e-4
    assert config["network"]["hidden_sizes"] == [128, 128]
    assert config["run_dir"] == str(tmp_path)
    history = [{"frames": 10, "agent.learning_rate": [1e-3, 1e-4]}]
    records.write_config(config, history)
    written = json.loads((tmp_path / CONFIG).read_text())
    assert {"python", "jax", "jaxlib", "flax", "optax", "chex", "gymnax", "numpy"} == written["versions"].keys()
    assert written["versions"]["numpy"] == np.__version__
    assert written["history"] == history
    assert records.read_config() == config
    assert written == config | {"history": history, "versions": written["versions"]}
    (tmp_path / CONFIG).write_text('{"env": "Cart')
    with pytest.raises(InputError, match=r"config\.json is damaged \(not JSON\): restore it or use a new run directory"):
        records.read_config()


def test_summary_replaces_the_last(tmp_path):
    records = Records(tmp_path, resume=False)
    records.write_summary({"final_returns": [1.0, None], "more": "x" * 100})
    records.write_summary({"final_returns": [2.0, None], "devices": ["cpu:0"]})
    assert json.loads((tmp_path / SUMMARY).read_text()) == {"final_returns": [2.0, None], "devices": ["cpu:0"]}
    assert sorted(contents(tmp_path)) == [METRICS, RETURNS, SUMMARY]
