"""Proves the numbers of a comparison by hand, on runs that were written and not trained, and what a random policy returns."""

import csv
import dataclasses
import sys

import numpy as np
import pytest

from dqn_jax.commands import compare
from dqn_jax.config import Experiment, InputError, RunnerConfig
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.runner.compare import draw_runs, load_runs, table_of
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.records import Records

# {frames: (updates, seconds, returns of seeds 0 and 1)}
PLAIN = {100: (10, 1.5, [10.0, 20.0]), 200: (20, 2.5, [50.0, 30.0]), 300: (30, 4.0, [40.0, 30.0])}
# {rounds: (frames of each seed, seconds, returns of the clients of each seed)}; seeds 5 and 6 have two clients each.
FEDERATED = {2: ([150, 170], 7.0, [[0.0, 20.0], [8.0, 12.0]]), 4: ([250, 270], 9.0, [[40.0, 60.0], [9.0, 11.0]])}


def row_of(seed, frames, updates, value, **changes):
    row = {"seed": seed, "policy": "global", "split": "seen", "client": 0, "env_params": "{}", "rounds": ""}
    return row | {"frames": frames, "updates": updates, "return": value} | changes


def write_plain(run_dir, **changes):
    config = Experiment(num_seeds=2, runner=RunnerConfig(threshold=30.0))
    records = Records(run_dir, resume=False)
    records.write_config(config_dict(dataclasses.replace(config, **changes)))
    for frames, (updates, seconds, returns) in PLAIN.items():
        records.append_metrics({"frames": frames, "return": [1.0, 2.0], "eval_return": returns, "wall_seconds": seconds})
        records.append_returns([row_of(seed, frames, updates, value) for seed, value in enumerate(returns)])
    records.write_summary({})
    return run_dir


def write_federated(run_dir):
    records = Records(run_dir, resume=False)
    federated = config_dict(FederatedConfig(num_clients=2, heterogeneity="none"))
    records.write_config(config_dict(Experiment(num_seeds=2)) | {"rounds": 4, "federated": federated})
    for rounds, (frames, seconds, returns) in FEDERATED.items():
        line = {"rounds": rounds, "return": [1.0, 2.0], "eval_return": [10.0, 10.0], "wall_seconds": seconds}
        records.append_metrics(line)
        rows = [
            row_of(5 + seed, frames[seed], 10 * rounds, value, client=client, rounds=rounds)
            for seed, values in enumerate(returns)
            for client, value in enumerate(values)
        ]
        # Neither clients' own policies nor held-out environments are compared.
        others = [row | other for row in rows for other in ({"policy": "client"}, {"split": "beyond"})]
        records.append_returns(rows + [row | {"return": 1000.0} for row in others])
    return run_dir


@pytest.fixture
def run_dirs(tmp_path):
    return [write_plain(tmp_path / "plain"), write_federated(tmp_path / "federated")]


def run_command(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["dqn-jax compare", *map(str, args)])
    return compare.main()


def test_the_table_by_hand(run_dirs, capsys):
    runs = load_runs(run_dirs)
    assert capsys.readouterr().err == f"{run_dirs[1]} is not finished: its last evaluation stands for the final one\n"
    plain, federated = table_of(runs, None, [10.0, None])
    # Both were evaluated from 170 to 250 frames. Seed 0 has 38, 50 and 45 at 170, 200 and 250, seed 1 27, 30 and 30.
    area = np.mean([(30 * 44 + 50 * 47.5) / 80, (30 * 28.5 + 50 * 30) / 80])
    assert plain == {
        "run": "plain",
        "seeds": 2,
        "final_mean": 35.0,
        "final_iqm": 35.0,
        "final_ci95_low": 30.0,
        "final_ci95_high": 40.0,
        "area": pytest.approx(area),
        "threshold": 30.0,
        "threshold_share": 1.0,
        "frames_to_threshold": 200.0,
        "seconds_to_threshold": 2.5,
        "random_return": 10.0,
        # Seed 0 gained 40 and kept 30 of them, less than 32; seed 1 kept all.
        "late_collapse": 0.5,
    }
    # Seed 5 rises from 10 at 150 frames to 50 at 250, so from 18 at 170: 34 between; seed 6 has 10 throughout.
    assert federated["area"] == pytest.approx(22.0)
    assert (federated["final_mean"], federated["threshold"], federated["threshold_share"]) == (30.0, None, None)
    assert (federated["random_return"], federated["late_collapse"]) == (None, None)


def test_a_threshold_that_half_of_the_seeds_reach_has_no_median(run_dirs):
    names = ("threshold", "threshold_share", "frames_to_threshold", "seconds_to_threshold")
    plain, federated = table_of(load_runs(run_dirs), 45.0, [None, None])
    assert [plain[name] for name in names] == [45.0, 0.5, None, None]
    # A federation's are counted in frames too: seed 5 has 50 at 250 frames.
    assert [federated[name] for name in names] == [45.0, 0.5, None, None]
    _, federated = table_of(load_runs(run_dirs), 10.0, [None, None])
    assert [federated[name] for name in names] == [10.0, 1.0, 160.0, 7.0]


@pytest.mark.parametrize(("random_return", "share"), [(0.0, 0.0), (0.1, 0.5), (30.0, 0.5), (60.0, 0.0)])
def test_late_collapse_is_measured_from_the_random_policy(run_dirs, random_return, share):
    """40 is just 0.8 of 50, and less than that of what is above 0.1; who was never above the random policy loses nothing."""
    assert table_of(load_runs(run_dirs[:1]), None, [random_return])[0]["late_collapse"] == share


def test_a_single_evaluation_has_no_area(tmp_path):
    runs = load_runs([write_plain(tmp_path / "a")])
    short = [run._replace(**{name: getattr(run, name)[:, :1] for name in ("frames", "updates", "returns")}) for run in runs]
    assert table_of(short, None, [None])[0]["area"] is None


def test_curves_are_drawn_over_frames_updates_and_seconds(run_dirs):
    figure = draw_runs(load_runs(run_dirs))
    expected = [
        ([100, 200, 300], [160, 260]),
        ([10, 20, 30], [20, 40]),
        ([1.5, 2.5, 4.0], [7.0, 9.0]),
    ]
    for axes, times in zip(figure.axes, expected, strict=True):
        plain, federated = axes.lines
        assert (plain.get_xdata().tolist(), federated.get_xdata().tolist()) == times
        assert (plain.get_ydata().tolist(), federated.get_ydata().tolist()) == ([15.0, 40.0, 35.0], [10.0, 30.0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "federated"]


def test_the_command_writes_a_figure_and_a_table(run_dirs, tmp_path, monkeypatch, capsys):
    played = []
    monkeypatch.setattr(compare, "random_return", lambda config: played.append(config["num_seeds"]) or 10.0)
    out = tmp_path / "new" / "both.png"
    assert run_command(monkeypatch, *run_dirs, "--out", out) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    # One environment, so one random policy.
    assert played == [2]
    with open(out.with_suffix(".csv"), newline="") as file:
        plain, federated = csv.DictReader(file)
    assert (plain["run"], plain["final_mean"], plain["frames_to_threshold"]) == ("plain", "35.0", "200.0")
    assert (federated["late_collapse"], federated["threshold"]) == ("0.0", "")
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    shown = {line[0].strip(): [cell.strip() for cell in line[1:] if cell] for line in lines}
    assert shown["final return, mean"] == ["35.0", "30.0"]
    assert shown["95% interval"] == ["30.0 to 40.0", "10.0 to 50.0"]
    assert shown["late collapse"] == ["50%", "0%"]
    assert shown["frames to it"] == ["200", "-"]
    assert [line[0] for line in lines[-2:]] == [str(out), str(out.with_suffix(".csv"))]


def test_an_environment_that_cannot_be_made_leaves_late_collapse_out(tmp_path, monkeypatch, capsys):
    run_dir = write_plain(tmp_path / "a", env="missing_module:make")
    assert run_command(monkeypatch, run_dir, "--out", tmp_path / "a.png") == 0
    out, err = capsys.readouterr()
    assert err.startswith("no random policy was played, so late collapse is not known: env is 'missing_module:make'")
    assert "late collapse" not in out


def test_other_settings_of_the_environment_are_said(tmp_path, capsys):
    load_runs([write_plain(tmp_path / "a"), write_plain(tmp_path / "b", max_episode_steps=200, wrappers=("sticky:0.25",))])
    sentence = "the runs differ in wrappers, max_episode_steps: their returns are of different environments\n"
    assert capsys.readouterr().err == sentence


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    dirs = [write_plain(tmp_path / part / "run") for part in ("a", "b")]
    assert [run.name for run in load_runs(dirs)] == [str(run_dir) for run_dir in dirs]


def test_what_cannot_be_compared_is_refused(run_dirs, tmp_path, monkeypatch, capsys):
    other = write_plain(tmp_path / "other", env="Catch-bsuite")
    Records(empty := tmp_path / "empty", resume=False).write_config({"env": "CartPole-v1", "num_seeds": 2})
    (empty / "metrics.jsonl").write_text('{"frames": 1, "return": [1, 2], "eval_return": null, "wall_seconds": 1}\n')
    (tmp_path / "taken.csv").mkdir()
    monkeypatch.setattr(compare, "random_return", lambda config: 0.0)
    cases = {
        "run_dirs is empty: name the directories": [],
        f"run_dir {tmp_path}/none is not a directory": [run_dirs[0], tmp_path / "none"],
        f"{empty} has no whole evaluation: compare it once it has one": [run_dirs[0], empty],
        "the runs' env is CartPole-v1 (plain), Catch-bsuite (other): compare runs of one": [run_dirs[0], other],
        f"{tmp_path}/x.txt cannot be written (Format 'txt' is not": [run_dirs[0], "--out", tmp_path / "x.txt"],
        f"{tmp_path}/taken.csv cannot be written (Is a directory)": [run_dirs[0], "--out", tmp_path / "taken.png"],
    }
    for sentence, args in cases.items():
        assert run_command(monkeypatch, *args) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(sentence)


def test_a_random_policy_on_cartpole():
    """Random episodes last 22.27 steps, standard deviation 11.94: 256 of them tell it to 0.75, 128 to 1.06."""
    config = {"env": "CartPole-v1", "num_seeds": 2}
    assert abs(compare.random_return(config) - 22.27) < 3
    federated = {"num_clients": 2, "heterogeneity": "cartpole-length", "heterogeneity_level": 0.0, "env_seed": 0}
    assert abs(compare.random_return(config | {"federated": federated}) - 22.27) < 4
    # Its own time limit, and the wrappers of evaluations: rewards are not clipped.
    limited = {"max_episode_steps": 5, "wrappers": ["reward-clip:0.5"]}
    assert compare.random_return(config | limited) == 5.0
    with pytest.raises(InputError, match="CartPole-v9"):
        compare.random_return(config | {"env": "CartPole-v9"})
