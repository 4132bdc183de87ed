"""Proves that what is whole in a run directory is read, and that what is left out, or cannot be read at all, is said."""

import shutil
import sys

import pytest

from dqn_jax.commands import plot
from dqn_jax.runner.config_file import CONFIG
from dqn_jax.runner.reading import read_run
from dqn_jax.runner.records import METRICS, RETURNS, SUMMARY, Records


@pytest.fixture
def run_dir(tmp_path):
    """Seeds 3 and 4, three lines of metrics, greedy returns after the second and third."""
    records = Records(tmp_path, resume=False)
    records.write_config({"env": "CartPole-v1", "num_seeds": 2})
    row = {"policy": "global", "split": "seen", "client": 0, "env_params": '{"a": 1, "b": 2}', "rounds": "", "updates": 5}
    for frames in (10, 20, 30):
        evaluated = [8.0, 9.0] if frames > 10 else None
        line = {"frames": frames, "return": [1.5, None], "eval_return": evaluated, "wall_seconds": frames / 10}
        records.append_metrics(line)
        if evaluated:
            records.append_returns([row | {"seed": seed, "frames": frames, "return": seed + 0.25} for seed in (3, 4)])
    return tmp_path


def spoil(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))


def cut(path, size):
    """Leaves so much of a file: less than 0 counts from its end."""
    path.write_bytes(path.read_bytes()[:size])


def contents(run):
    return [line["frames"] for line in run.metrics], [(row["frames"], row["seed"], row["return"]) for row in run.returns]


ROWS = [(20, 3, 3.25), (20, 4, 4.25), (30, 3, 3.25), (30, 4, 4.25)]
LINES = [10, 20, 30]
LATER_ROWS = '3,global,seen,0,"{""a"": 1, ""b"": 2}",,30,5,3.25\n'
CASES = {
    "whole": (lambda d: None, LINES, ROWS, ""),
    # As a kill leaves them: a row without its end may have lost a digit.
    "torn line": (lambda d: cut(d / METRICS, -9), LINES[:2], ROWS, "1 torn or damaged line(s) of metrics.jsonl"),
    "torn row": (
        lambda d: cut(d / RETURNS, -1),
        LINES,
        ROWS[:2],
        "1 torn or damaged line(s) of returns.csv, 1 evaluation(s) of 2 that returns.csv has not whole",
    ),
    "a seed is missing": (
        lambda d: spoil(d / RETURNS, LATER_ROWS, ""),
        LINES,
        ROWS[:2],
        "1 evaluation(s) of 2 that returns.csv has not whole",
    ),
    "cut between two evaluations": (
        lambda d: cut(d / RETURNS, (d / RETURNS).read_text().index(LATER_ROWS)),
        LINES,
        ROWS[:2],
        "1 evaluation(s) of 2 that returns.csv has not whole",
    ),
    "all but one row is gone": (
        lambda d: cut(d / RETURNS, 120),
        LINES,
        [],
        "1 torn or damaged line(s) of returns.csv, 2 evaluation(s) of 2 that returns.csv has not whole",
    ),
    "no returns": (
        lambda d: (d / RETURNS).unlink(),
        LINES,
        [],
        "2 evaluation(s) of 2 that returns.csv has not whole",
    ),
    "a number is none": (
        lambda d: spoil(d / RETURNS, ",,30,5", ",,3x,5"),
        LINES,
        ROWS[:2],
        "1 torn or damaged line(s) of returns.csv, 1 evaluation(s) of 2 that returns.csv has not whole",
    ),
    "a seed too few": (
        lambda d: spoil(d / METRICS, "[1.5, null]", "[1.5]"),
        LINES[1:],
        ROWS,
        "1 torn or damaged line(s) of metrics.jsonl",
    ),
    "another name": (
        lambda d: spoil(d / METRICS, "eval_return", "eval_retorn"),
        LINES[1:],
        ROWS,
        "1 torn or damaged line(s) of metrics.jsonl",
    ),
    "no text": (
        lambda d: (d / METRICS).write_bytes(b"\xff\xfe\n" + (d / METRICS).read_bytes()),
        LINES,
        ROWS,
        "1 torn or damaged line(s) of metrics.jsonl",
    ),
    "header": (
        lambda d: spoil(d / RETURNS, "seed,policy", "seed;policy"),
        LINES,
        ROWS,
        "1 torn or damaged line(s) of returns.csv",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_whole_is_read_and_the_rest_is_said(case, run_dir, capsys):
    damage, lines, rows, said = CASES[case]
    damage(run_dir)
    assert contents(read_run(run_dir)) == (lines, rows)
    assert capsys.readouterr() == ("", f"{run_dir}: left out {said}\n" if said else "")


def test_a_finished_run_has_a_last_evaluation(run_dir, capsys):
    """Its last evaluation is no period's, so its metrics do not have it: without its rows, one is missing once it is over."""
    text = (run_dir / METRICS).read_text()
    (run_dir / METRICS).write_text("null".join(text.rsplit("[8.0, 9.0]", 1)))
    cut(run_dir / RETURNS, (run_dir / RETURNS).read_text().index(LATER_ROWS))
    assert not read_run(run_dir).finished
    assert capsys.readouterr().err == ""
    (run_dir / SUMMARY).write_text("{}")
    assert read_run(run_dir).finished
    assert "left out 1 evaluation(s) of 2 that" in capsys.readouterr().err


REFUSED = {
    "no such directory": (shutil.rmtree, "run_dir {} is not a directory: name one that a run has written"),
    "no config": (lambda d: (d / CONFIG).unlink(), "{}/config.json is missing or damaged: restore it, or name another"),
    "a torn config": (lambda d: cut(d / CONFIG, 20), "{}/config.json is missing or damaged: restore it"),
    "another config": (lambda d: (d / CONFIG).write_text("[1]"), "{}/config.json is missing or damaged: restore it"),
    "no metrics": (lambda d: (d / METRICS).unlink(), "{}/metrics.jsonl has no whole line: name the directory of a run"),
    "empty metrics": (lambda d: cut(d / METRICS, 0), "{}/metrics.jsonl has no whole line: name the directory of a run"),
    "a directory": (
        lambda d: ((d / RETURNS).unlink(), (d / RETURNS).mkdir()),
        "{}/returns.csv cannot be read (Is a dir",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_plot_refuses_in_a_sentence(case, run_dir, monkeypatch, capsys):
    damage, sentence = REFUSED[case]
    damage(run_dir)
    monkeypatch.setattr(sys, "argv", ["dqn-jax plot", str(run_dir)])
    assert plot.main() == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(sentence.format(run_dir))


def test_plot_draws_what_there_is(run_dir, monkeypatch, capsys):
    cut(run_dir / METRICS, -5)
    monkeypatch.setattr(sys, "argv", ["dqn-jax plot", str(run_dir)])
    assert plot.main() == 0
    picture = run_dir / "learning_curve.png"
    assert capsys.readouterr() == (f"{picture}\n", f"{run_dir}: left out 1 torn or damaged line(s) of {METRICS}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plot_explains_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dqn-jax plot", "--help"])
    with pytest.raises(SystemExit) as ended:
        plot.main()
    assert ended.value.code == 0
    assert "RUN_DIR" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["dqn-jax plot", "--out", "x.png"])
    assert plot.main() == 2
    assert capsys.readouterr().err.count("\n") == 1
