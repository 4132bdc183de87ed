"""Proves that the committed scoreboard is whole: rates, rows, tables and checkpoints belong to one another and to the code."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import dqn_jax
from dqn_jax.commands.cells import TUNING_SEEDS, best_rate, is_of
from dqn_jax.commands.scoreboard import BUDGETS, is_tuned, reported, table_text, tuning_cell, tuning_env
from dqn_jax.play.episodes import play
from dqn_jax.runner.scoreboard import paired, read_rows, table
from dqn_jax.tuned import TUNED
from experiments.studies import ingredients

RESULTS = Path(__file__).parent.parent / "experiments" / "results"
SCOREBOARD, POLICIES = RESULTS / "scoreboard", RESULTS / "policies"
CELLS = [(algorithm, env) for env, budget in BUDGETS.items() for algorithm in budget.algorithms if is_tuned(algorithm, env)]


def rows_by_cell(path):
    """{(algorithm, environment): rows}."""
    cells = {}
    for row in read_rows(path):
        cells.setdefault((row.algorithm, row.env), []).append(row)
    return cells


@pytest.mark.parametrize(("algorithm", "env"), CELLS)
def test_a_tuned_rate_is_the_best_of_its_committed_rows_and_inside_their_grid(algorithm, env):
    of_env = rows_by_cell(SCOREBOARD / "tuning.csv")[algorithm, tuning_env(env)]
    rows = [row for row in of_env if is_of(row, tuning_cell(algorithm, env))]
    rates = {row.learning_rate for row in rows}
    for rate in rates:
        assert sorted(row.seed for row in rows if row.learning_rate == rate) == list(TUNING_SEEDS)
    assert best_rate(rows) == TUNED[BUDGETS[env].env].learning_rates[algorithm]
    assert min(rates) < best_rate(rows) < max(rates)


def test_every_committed_row_is_of_a_cell_as_it_is_today():
    rows = read_rows(SCOREBOARD / "rows.csv")
    assert sorted(reported(SCOREBOARD)) == sorted(rows)
    lanes = [(row.algorithm, row.env, row.seed) for row in rows]
    assert len(lanes) == len(set(lanes))
    assert not {row.seed for row in rows} & set(TUNING_SEEDS)


def test_the_committed_table_is_made_of_the_committed_rows():
    assert (SCOREBOARD / "table.md").read_text() == table_text(reported(SCOREBOARD))


def test_the_study_of_ingredients_is_of_its_arms_and_rows():
    path = ingredients.RESULTS
    tuning = rows_by_cell(path / "tuning.csv")
    for (arm, env), rows in rows_by_cell(path / "rows.csv").items():
        cell = ingredients.cell_of(arm, env)
        assert all(is_of(row, cell) for row in rows)
        best = best_rate([row for row in tuning[arm, env] if is_of(row, cell)])
        assert {row.learning_rate for row in rows} == {best}
        assert len(ingredients.overestimates(env, arm)) == len(rows)
    assert (path / "table.md").read_text() == ingredients.table()


@pytest.mark.long
def test_committed_checkpoints_play_as_well_as_they_did():
    returns = json.loads((POLICIES / "returns.json").read_text())
    files = sorted(file.name for file in POLICIES.glob("*.npz"))
    assert files == sorted(returns)
    assert sum((POLICIES / file).stat().st_size for file in files) <= 3 * 2**20
    for file in files:
        trained = dqn_jax.load(POLICIES / file)
        budget = BUDGETS[file.removesuffix(".npz").partition("-")[2]]
        assert trained.config.env == budget.env
        mean = float(np.mean(play([trained], trained.config.runner.eval_episodes).returns))
        # The same episodes; on another machine a rounding may end some of them otherwise.
        assert mean == pytest.approx(returns[file], rel=0.1, abs=0.1)


def learnt_of_the_page():
    """[(environment, frames, threshold, algorithm, seeds, share at the threshold in percent)], as the page's table has them."""
    text = (RESULTS.parents[1] / "docs" / "results" / "scoreboard.md").read_text()
    lines = re.findall(r"^\| (\S+) \| ([\d,]+) \| (-?\d+) \| `(\w+)` \| (\d+) \| (\d+)% \|$", text, re.M)
    return [
        (env, int(frames.replace(",", "")), int(threshold), algorithm, int(seeds), int(percent))
        for env, frames, threshold, algorithm, seeds, percent in lines
    ]


def test_what_the_page_calls_learnt_was_learnt_by_four_of_five_seeds():
    rows = reported(SCOREBOARD)
    lines = learnt_of_the_page()
    assert {line[0] for line in lines} == {"CartPole", "Acrobot", "MountainCar", "Catch"}
    for env, frames, threshold, algorithm, seeds, percent in lines:
        finals = [row.returns[-1] for row in rows if (row.env, row.algorithm) == (env, algorithm)]
        budget = BUDGETS[env]
        assert (budget.frames, budget.threshold, len(finals)) == (frames, threshold, seeds)
        assert f"{np.mean(np.array(finals) >= threshold):.0%}" == f"{percent}%"
        assert seeds >= 30
        assert percent >= 80


def named(page):
    """{(environment, "above" or "below", base): arms} of a page's lines such as "- Catch: `c51` and `iqn` end below `dqn`."."""
    text = (RESULTS.parents[1] / "docs" / "results" / f"{page}.md").read_text()
    lines = re.findall(r"^- ([\w-]+): (.+) ends? (above|below) `(.+)`\.$", text, re.M)
    return {(env, side, base): set(re.findall(r"`([^`]+)`", arms)) for env, arms, side, base in lines}


def shown(differences):
    """The same, of {(environment, arm, base): paired difference}: those whose interval leaves out 0."""
    found = {}
    for (env, arm, base), (_, low, high) in differences.items():
        if low is not None and (low > 0 or high < 0):
            found.setdefault((env, "above" if low > 0 else "below", base), set()).add(arm)
    return found


def test_the_scoreboards_page_names_the_differences_that_are_shown():
    records = table(reported(SCOREBOARD), {env: budget.threshold for env, budget in BUDGETS.items()})
    paired = {(x["env"], x["algorithm"], "dqn"): x["difference"] for x in records if x["algorithm"] != "dqn"}
    assert named("scoreboard") == shown(paired)


def test_the_page_of_ingredients_names_the_differences_that_are_shown():
    pairs = {
        (env, arm, base): (ingredients.final_rows(env, arm), ingredients.final_rows(env, base))
        for env in ingredients.ENVS
        for arm in ingredients.ARMS
        if arm != (base := ingredients.base_of(arm))
    }
    assert named("ingredients") == shown({key: paired(*rows) for key, rows in pairs.items() if all(rows)})


def test_dqn_overestimates_but_for_what_the_page_says():
    means = {(env, arm): np.mean(ingredients.overestimates(env, arm)) for env in ingredients.ENVS for arm in ingredients.DQN}
    assert [cell for cell, mean in means.items() if mean < 0] == [("CartPole", "C = 1000")]
