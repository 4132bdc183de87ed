"""Proves that a scoreboard trains what has no row, tunes inside its grid, counts right; and that the committed one is whole."""

import itertools

import numpy as np
import pytest

from dqn_jax.commands import cells, lanes, scoreboard
from dqn_jax.commands.cells import RATES, TUNING_SEEDS, best_rate
from dqn_jax.commands.scoreboard import BUDGETS, Budget, ScoreboardOptions, cell_of
from dqn_jax.config import InputError
from dqn_jax.runner.plots import save
from dqn_jax.runner.scoreboard import (
    COLUMNS,
    Row,
    append_rows,
    digest_of,
    how_soon,
    markdown,
    paired,
    paired_text,
    read_rows,
    table,
)
from dqn_jax.runner.scoreboard_plots import every_seed, profile, profiles
from dqn_jax.tuned import TUNED, Tuned, shared_fields, tuned_fields

ROW = Row("dqn", "CartPole", "abc", 1e-3, 0, 20.0, (10.0, 20.0), (1.0, 2.0), (0.5, 1.0), (100.0, 500.0))


def rows_of(*curves, **changes):
    return [ROW._replace(seed=seed, returns=curve, **changes) for seed, curve in enumerate(curves)]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A scoreboard whose training is instant: the return of a lane is -|log10(rate / 1e-5)|; returns lanes trained so far."""
    calls = []

    def train_lanes(config, seeds, learning_rates, evaluations, episodes):
        calls.extend(zip(learning_rates, seeds, strict=True))
        times = np.arange(1.0, evaluations + 1)
        scores = -np.abs(np.log10(np.array(learning_rates) / 1e-5))
        returns = np.broadcast_to(scores[:, None, None], (len(seeds), evaluations, episodes))
        return lanes.Curves(times, times, returns, {}, times, {})

    monkeypatch.setattr(lanes, "train_lanes", train_lanes)
    monkeypatch.setattr("dqn_jax.commands.compare.random_return", lambda record: -8.0)
    monkeypatch.setitem(TUNED, "CartPole-v1", Tuned({"agent.batch_size": 16}, {"dqn": 1e-3}))
    return calls, ScoreboardOptions(out=tmp_path, num_seeds=3)


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = rows_of((1.0, 2.0), (3.0, 4.5))
    append_rows(tmp_path / "rows.csv", rows[:1])
    append_rows(tmp_path / "rows.csv", rows[1:])
    assert read_rows(tmp_path / "rows.csv") == rows


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["a,b,c"], "has columns"),
        ([",".join(COLUMNS), "dqn,CartPole,abc,1e-3,0,20,10 20,1 2,1 2,100 x"], "rows.csv:2 is damaged"),
        ([",".join(COLUMNS), "dqn,CartPole,abc,1e-3,0,20,10 20,1 2,1 2,100"], "rows.csv:2 is damaged"),
        ([",".join(COLUMNS), "dqn,CartPole"], "rows.csv:2 is damaged"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, lines, said):
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=said):
        read_rows(tmp_path / "rows.csv")


def test_what_has_a_row_is_not_trained_again(trained):
    calls, chosen = trained
    scoreboard.report("dqn", "CartPole", chosen)
    assert calls == [(1e-3, 0), (1e-3, 1), (1e-3, 2)]
    scoreboard.report("dqn", "CartPole", ScoreboardOptions(out=chosen.out, num_seeds=4))
    assert calls[3:] == [(1e-3, 3)]
    rows = scoreboard.reported(chosen.out)
    assert [row.seed for row in rows] == [0, 1, 2, 3]
    # A second for each chunk of three seeds together, and then of one alone.
    assert [row.seconds[0] for row in rows] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1], rel=1e-5)


def test_settings_are_what_differs_from_the_defaults():
    counts = {"evaluations": cells.EVALUATIONS, "episodes": cells.EPISODES}
    cell = cells.make_cell("arm", "CartPole", {"agent.num_envs": 4, "agent.batch_size": 32})
    assert cell.settings == digest_of({"agent.num_envs": 4} | counts)


def test_what_is_set_otherwise_is_trained_again(trained, monkeypatch):
    calls, chosen = trained
    scoreboard.report("dqn", "CartPole", chosen)
    for changed in (Tuned({"agent.batch_size": 32}, {"dqn": 1e-3}), Tuned({"agent.batch_size": 16}, {"dqn": 3e-3})):
        monkeypatch.setitem(TUNED, "CartPole-v1", changed)
        assert scoreboard.reported(chosen.out) == []
        calls.clear()
        scoreboard.report("dqn", "CartPole", chosen)
        assert len(calls) == 3


def test_tuning_goes_on_until_the_best_rate_is_inside(trained):
    calls, chosen = trained
    assert cells.tune(cell_of("dqn", "CartPole"), chosen.out / "tuning.csv") == 1e-5
    assert {rate for rate, _ in calls} == {3e-6, 1e-5, 3e-5, *RATES}
    assert {seed for _, seed in calls} == set(TUNING_SEEDS)
    assert len(calls) == len(set(calls))


def test_a_rate_that_only_rises_is_refused(trained, monkeypatch):
    _, chosen = trained
    monkeypatch.setattr(cells, "best_rate", lambda rows: max(row.learning_rate for row in rows))
    with pytest.raises(InputError, match="the best learning rate so far"):
        cells.tune(cell_of("dqn", "CartPole"), chosen.out / "tuning.csv")


def test_the_best_rate_by_hand():
    # Means at the end: 1e-3 has (4 + 6) / 2 = 5, 3e-3 has (9 + 0) / 2 = 4.5; over everything 3e-3 would win.
    rows = rows_of((0.0, 4.0), (0.0, 6.0)) + rows_of((50.0, 9.0), (50.0, 0.0), learning_rate=3e-3)
    assert best_rate(rows) == 1e-3
    equal = [ROW._replace(learning_rate=rate, returns=(0.0, 1.0)) for rate in (1e-2, 1e-4, 1e-3)]
    assert best_rate(equal) == 1e-3


def test_the_table_by_hand():
    # Final returns 500, 100 (late collapse: 80 of a gain of 480 are kept) and 495.
    record = table(rows_of((100.0, 500.0), (500.0, 100.0), (20.0, 495.0)), {"CartPole": 490.0})[0]
    assert (record["algorithm"], record["env"], record["seeds"]) == ("dqn", "CartPole", 3)
    assert record["final_mean"] == pytest.approx(365)
    assert record["at_threshold"] == pytest.approx(2 / 3)
    assert record["threshold_share"] == 1
    # First reached at 20, 10 and 20 frames.
    assert (record["frames_to_threshold"], record["seconds_to_threshold"]) == (20, 1.0)
    assert record["late_collapse"] == pytest.approx(1 / 3)
    assert record["final_ci95_low"] is None
    assert "| `dqn` | 3 | 365.0 | 365 | - | - | 67% | 100% | 20 | 1 | 33% |" in markdown([record])


def test_how_soon_by_hand():
    """The mean of `dqn` ends at 30; `fast` is there at its first evaluation, `slow` never, and one is not there."""
    rows = [
        *rows_of((10.0, 20.0), (20.0, 40.0)),
        *rows_of((25.0, 5.0), (35.0, 5.0), algorithm="fast", frames=(8.0, 16.0), seconds=(0.25, 0.5)),
        *rows_of((29.0, 29.5), algorithm="slow"),
    ]
    assert how_soon(rows, ("dqn", "fast", "slow", "none")).splitlines()[2:] == [
        "| CartPole | 30 | 20, 1 | 8, 0.25 | never | not trained |"
    ]


def test_intervals_begin_with_ten_seeds():
    ten = rows_of(*itertools.repeat((0.0, 5.0), 9), (0.0, 15.0))
    assert table(ten, {"CartPole": 490.0})[0]["final_ci95_low"] is not None
    assert table(ten[:9], {"CartPole": 490.0})[0]["final_ci95_high"] is None


def test_differences_are_paired_by_seed():
    # Seed 0: 7 - 5, seed 1: 9 - 1; seed 2 has no partner.
    first, other = rows_of((0.0, 5.0), (0.0, 1.0)), rows_of((0.0, 7.0), (0.0, 9.0), (0.0, 900.0), algorithm="c51")
    records = table(first + other, {"CartPole": 490.0})
    assert [record["difference"] for record in records] == [None, [5.0, None, None]]
    many = [rows_of(*[(0.0, float(start + seed)) for seed in range(10)]) for start in (0, 3)]
    assert paired(many[1], many[0]) == [3.0, 3.0, 3.0]
    assert paired_text([-3.14, -5.2, -1.1]) == "-3.14 [-5.2, -1.1]"


def test_the_profile_by_hand():
    # Scores (return - 20) / (120 - 20): 0.5 and 1 in one environment, 0 in another, which weighs the same.
    rows = rows_of((0.0, 70.0), (0.0, 120.0)) + rows_of((0.0, 20.0), env="Acrobot")
    shares = profile(rows, {"CartPole": 120.0, "Acrobot": 120.0}, np.array([0.0, 0.1, 0.5, 0.6, 1.0]))
    np.testing.assert_allclose(shares, [1, 0.5, 0.5, 0.25, 0.25])


def test_figures_of_algorithms_without_a_common_environment(tmp_path):
    rows = rows_of((0.0, 70.0)) + rows_of((0.0, 20.0), env="Acrobot", algorithm="c51")
    for draw in (every_seed, profiles):
        save(draw(rows, {"CartPole": 120.0, "Acrobot": 120.0}), tmp_path / "figure.png")
    assert np.isnan(profile([], {}, np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithms": ("dqn", "dnq")}, "dnq"),
        ({"envs": ("Pong",)}, "Pong"),
        ({"num_seeds": 1_001}, "are for tuning"),
        ({"num_seeds": 0}, "num_seeds"),
    ],
)
def test_bad_options_are_one_sentence(changes, said):
    with pytest.raises(InputError, match=said):
        ScoreboardOptions(**changes)


def test_an_algorithms_own_fields_come_before_those_of_the_environment(monkeypatch):
    monkeypatch.setitem(TUNED, "CartPole-v1", Tuned({"agent.target_period": 20}, {"no_target": 3e-3, "dqn": 1e-3}))
    assert shared_fields("no_target", "CartPole-v1")["agent.target_period"] == 1
    assert tuned_fields("dqn", "CartPole-v1")["agent.target_period"] == 20
    assert tuned_fields("no_target", "CartPole-v1")["agent.learning_rate"] == 3e-3
    with pytest.raises(InputError, match="rainbow is not tuned"):
        tuned_fields("rainbow", "CartPole-v1")
    with pytest.raises(InputError, match="nothing is tuned"):
        tuned_fields("dqn", "Pong")


@pytest.mark.long
def test_a_quick_scoreboard_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(BUDGETS, "Catch", Budget("Catch-bsuite", 50_000, 1.0))
    monkeypatch.setitem(TUNED, "Catch-bsuite", Tuned({"network.hidden_sizes": (8,)}, {"dqn": 1e-3}))
    args = ["--quick", "--envs", "Catch", "--algorithms", "dqn", "--num-seeds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["scoreboard", *args])
    assert scoreboard.main() == 0, capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"rows.csv", "table.md", "origins.json", "scores.png", "profiles.png"}
    rows = read_rows(tmp_path / "rows.csv")
    assert [row.seed for row in rows] == [0, 1]
    assert all(-1 <= value <= 1 for row in rows for value in (*row.returns, row.random_return))
    # Only a quick run finds a quick run's rows.
    assert cell_of("dqn", "Catch", quick=True).settings == rows[0].settings != cell_of("dqn", "Catch").settings
