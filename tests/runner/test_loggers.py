"""Proves that loggers have what metrics.jsonl has, seed by seed and no step twice, and that a run does not depend on them."""

import dataclasses
import json
import os
import shutil
import signal
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from federated.helpers import refusal
from runner.test_loop import PLAIN, config_of, fake_driver
from tensorboardX.proto.event_pb2 import Event, SessionLog

from dqn_jax.config import LOGGERS
from dqn_jax.runner import loggers, loop, peers
from dqn_jax.runner.records import Records, read_metrics
from dqn_jax.runner.signals import Stopped

FIRST = {"frames": 10, "loss": [0.5, 0.25], "return": [np.nan, 1.5], "eval_return": None, "wall_seconds": 2.0}
SECOND = {"frames": 20, "loss": [0.125, np.inf], "return": [2.0, 1.0], "eval_return": [3.5, -1.0], "wall_seconds": 3.0}
NEXT, THIRD, FOURTH = ({"frames": step, "loss": [step, 0.0], "wall_seconds": step / 10} for step in (11, 30, 40))


def config_with(run_dir, *names, resume=False):
    """Of seeds 7 and 8."""
    config = config_of(run_dir, resume=resume)
    return dataclasses.replace(config, runner=dataclasses.replace(config.runner, loggers=names))


def log(config, *lines, on_disk=()):
    """Logs lines after those that the file has, and returns what was said."""
    said = []
    records = Records(config.run_dir, resume=True)
    records.cut({})
    for line in on_disk:
        records.append_metrics(line)
    with loggers.opened(config, {"env": "none"}, "frames", said.append) as give:
        for line in lines:
            give(line)
    return said


def events(run_dir):
    """What our only event file holds."""
    (path,) = (run_dir / "tensorboard").glob("*.dqn_jax")
    data, found = path.read_bytes(), []
    while data:
        (size,) = struct.unpack_from("<Q", data)
        found.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return found


def scalars(run_dir):
    """[(step, name, value)] of the event file, in order."""
    return [(event.step, one.tag, one.simple_value) for event in events(run_dir) for one in event.summary.value]


def test_tensorboard_has_the_numbers_of_each_seed_at_their_frames(tmp_path):
    log(config_with(tmp_path, "tensorboard"), {**FIRST, "updates": 4, "lag_histogram": np.eye(2), "unlike": [1.0]}, SECOND)
    assert scalars(tmp_path) == [
        (10, "loss/seed_7", 0.5),
        (10, "loss/seed_8", 0.25),
        (10, "return/seed_8", 1.5),
        (10, "wall_seconds", 2.0),
        (10, "updates", 4.0),
        (20, "loss/seed_7", 0.125),
        (20, "return/seed_7", 2.0),
        (20, "return/seed_8", 1.0),
        (20, "eval_return/seed_7", 3.5),
        (20, "eval_return/seed_8", -1.0),
        (20, "wall_seconds", 3.0),
    ]


def test_tensorboard_has_a_line_once_it_is_logged(tmp_path):
    Records(tmp_path, resume=False)
    with loggers.opened(config_with(tmp_path, "tensorboard"), {}, "frames", print) as give:
        give(FIRST)
        assert [step for step, *_ in scalars(tmp_path)] == [10] * 4


def test_tensorboard_begins_anew_with_the_lines_on_disk_and_their_times(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "time", SimpleNamespace(time=lambda: 1000.0))
    config = config_with(tmp_path, "tensorboard")
    foreign, ours = (tmp_path / "tensorboard" / f"events.out.tfevents.{name}" for name in ("another", "before.dqn_jax"))
    foreign.parent.mkdir()
    foreign.touch()
    ours.touch()
    log(config, FOURTH, on_disk=(FIRST, SECOND))
    assert [step for step, name, _ in scalars(tmp_path) if name == "wall_seconds"] == [10, 20, 40]
    _, start, *lines = events(tmp_path)
    assert (start.step, start.session_log.status) == (0, SessionLog.START)
    # The training has lasted for three seconds when it goes on.
    assert [line.wall_time for line in lines] == [999.0, 1000.0, 1001.0]
    assert foreign.exists()


@pytest.mark.parametrize("before", [(), ("tensorboard",)])
def test_a_run_that_goes_on_from_an_older_checkpoint_logs_no_step_twice(tmp_path, before):
    stop = {7: lambda: os.kill(os.getpid(), signal.SIGINT)}
    with pytest.raises(Stopped):
        loop.run(fake_driver(stop), config_with(tmp_path, *before), PLAIN)
    shutil.rmtree(tmp_path / "checkpoints" / "step_000000000075")
    loop.run(fake_driver(), config_with(tmp_path, "tensorboard", resume=True), PLAIN)
    lines, logged = read_metrics(tmp_path), scalars(tmp_path)
    for name in ("loss", "eval_return"):
        for place, seed in enumerate((7, 8)):
            expected = [(line["frames"], line[name][place]) for line in lines if line[name] is not None]
            assert [(step, value) for step, tag, value in logged if tag == f"{name}/seed_{seed}"] == [
                (step, np.float32(value)) for step, value in expected
            ]
    assert [step for step, tag, _ in logged if tag == "loss/seed_7"] == list(range(15, 106, 10))


def test_only_the_first_process_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "is_first", lambda: False)
    assert log(config_with(tmp_path, "tensorboard", "wandb"), FIRST) == []
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "returns.csv"}


@pytest.mark.parametrize("name", list(LOGGERS))
def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, LOGGERS[name], None)
    config = config_with(tmp_path / "run", name)
    message = refusal(lambda: loop.run(fake_driver(), config, PLAIN))
    assert message == f"runner.loggers has {name}, and {LOGGERS[name]} is not installed: pip install -e '.[{name}]'"
    assert not (tmp_path / "run").exists()


def test_a_mere_directory_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "left_by_wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(LOGGERS, "wandb", "left_by_wandb")
    assert "is not installed" in refusal(lambda: loggers.check_installed(["wandb"]))


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """Weights & Biases, where nobody is logged in; not among the versions that `make test` installs, but the newest have it."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith(("WANDB_", "NETRC"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb.teardown()
    # What is behind it has written its files when it is gone.
    yield wandb.teardown
    wandb.teardown()


def sent(path):
    """{step: numbers} of a file that Weights & Biases has written: records behind seven bytes each, after seven of the file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, found = path.read_bytes()[7:], {}
    while data:
        (size,) = struct.unpack_from("<H", data, 4)
        items = Record.FromString(data[7 : 7 + size]).history.item
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        if values:
            assert found.setdefault(values["_step"], values) is values
        data = data[7 + size :]
    return {step: {name: value for name, value in values.items() if name[0] != "_"} for step, values in found.items()}


def test_wandb_offline_is_one_run_over_a_resume_and_never_asks(tmp_path, nobody):
    run_dir = tmp_path / "run"
    offline = f"W&B is offline (nobody is logged in): wandb sync {run_dir}/wandb/offline-run-* sends what it has"
    assert log(config_with(run_dir, "wandb"), FIRST, SECOND, THIRD) == [offline]
    nobody()
    (first,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert list(sent(first)) == [10, 20, 30]
    assert sent(first)[10] == {"loss/seed_7": 0.5, "loss/seed_8": 0.25, "return/seed_8": 1.5, "wall_seconds": 2.0}
    moved = first.rename(tmp_path / "first")
    said = log(config_with(run_dir, "wandb", resume=True), SECOND, THIRD, FOURTH, on_disk=(FIRST,))
    nobody()
    assert said == [offline, "W&B has this run up to 30 frames, and keeps that: what is trained anew up to there is not sent"]
    (second,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert (second.name, list(sent(second)), list(sent(moved))) == (first.name, [40], [10, 20, 30])


class Server:
    """Stands in for the module, somebody being logged in: each run's steps by its id."""

    def __init__(self):
        self.runs, self.settings, self.ended = {}, SimpleNamespace(mode="online"), []
        self.Settings = dict
        self.logged_in, self.answers, self.teardowns = True, True, 0

    def setup(self):
        return self

    def login(self, prompt, verify):
        assert not prompt
        return self.logged_in

    def teardown(self):
        self.teardowns += 1

    def init(self, id, mode, **others):
        if mode == "online" and not self.answers:
            raise RuntimeError("no\nroute")
        steps = self.runs.setdefault(id, [])

        def take(values, step, commit):
            assert commit
            if step == 40 and not self.answers:
                raise BrokenPipeError("gone")
            steps.append(step)

        step = steps[-1] + 1 if steps and mode == "online" else 0
        return SimpleNamespace(
            id=id, url="its page", step=step, log=take, finish=lambda exit_code: self.ended.append(exit_code)
        )


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Server())
    return sys.modules["wandb"]


def kill(run_dir):
    """Leaves what a run that was killed has left."""
    path = run_dir / "wandb" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": None}))


def test_wandb_online_is_asked_for_what_it_has_even_after_a_kill(tmp_path, server):
    assert log(config_with(tmp_path, "wandb"), FIRST, SECOND) == ["W&B: its page"]
    kill(tmp_path)
    (steps,) = server.runs.values()
    del steps[1:]
    assert log(config_with(tmp_path, "wandb", resume=True), FOURTH, on_disk=(FIRST, NEXT, THIRD)) == ["W&B: its page"]
    assert list(server.runs.values()) == [[10, 11, 30, 40]]
    assert server.ended == [0, 0]


def test_wandb_is_a_new_run_where_none_is_resumed_and_nobody_where_it_is_disabled(tmp_path, server):
    for _ in range(2):
        log(config_with(tmp_path, "wandb"), FIRST)
    assert list(server.runs.values()) == [[10], [10]]
    server.settings.mode, server.logged_in = "disabled", False
    assert log(config_with(tmp_path / "disabled", "wandb"), FIRST) == ["W&B: its page"]


def test_wandb_offline_is_a_new_run_after_a_kill_with_all_the_lines(tmp_path, server):
    server.logged_in = False
    log(config_with(tmp_path, "wandb"), FIRST, SECOND)
    kill(tmp_path)
    log(config_with(tmp_path, "wandb", resume=True), SECOND, on_disk=(FIRST,))
    assert list(server.runs.values()) == [[10, 20], [10, 20]]


def test_wandb_is_offline_where_nothing_answers_and_a_run_goes_on_when_it_fails(tmp_path, server):
    server.answers = False
    said = log(config_with(tmp_path, "wandb"), FIRST, FOURTH, THIRD)
    assert said[0].startswith("W&B is offline (no route): ")
    assert said[1:] == ["warning: W&B has failed (gone): the run goes on without, metrics.jsonl has it all"]
    assert (server.teardowns, server.ended) == (1, [])
    assert json.loads((tmp_path / "wandb" / "run.json").read_text())["step"] is None


def test_wandb_is_told_that_a_run_has_failed(tmp_path, server):
    Records(tmp_path, resume=False)
    with pytest.raises(ZeroDivisionError), loggers.opened(config_with(tmp_path, "wandb"), {}, "frames", print):
        raise ZeroDivisionError
    assert server.ended == [1]


def test_a_damaged_id_of_wandb_is_refused(tmp_path, server):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run.json").write_text("{")
    path = tmp_path / "wandb" / "run.json"
    said = refusal(lambda: log(config_with(tmp_path, "wandb", resume=True)))
    assert said == f"{path} cannot be read: remove it, and W&B gets the run anew"
