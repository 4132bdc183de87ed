"""What the page on clients that see one game differently says is what the committed rows say."""

import json
import re
from pathlib import Path

import image_clients as study
import numpy as np
import pytest

from dqn_jax.commands.cells import best_rate, is_of
from dqn_jax.runner.scoreboard import read_rows

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/results/image_clients.md").read_text()
PROSE = " ".join(PAGE.split())
NAMES = {"federated": "one policy", "own heads": "heads of their own"}


@pytest.mark.parametrize("arm", study.ARMS)
def test_the_rows_are_of_what_is_trained_today(arm):
    rows = study.rows_of(arm)
    assert [row.seed for row in rows] == list(study.SEEDS)
    assert study.matrix_of(arm).shape == (len(study.SEEDS), len(study.policies_of(arm)), len(study.VIEWS))
    tuned = [row for row in read_rows(study.RESULTS / "tuning.csv") if is_of(row, study.cell_of(arm))]
    rates = sorted({row.learning_rate for row in tuned})
    assert {row.learning_rate for row in rows} == {best_rate(tuned)}
    assert rates[0] < best_rate(tuned) < rates[-1]
    assert {row.seed for row in tuned} == set(study.TUNING_SEEDS)
    assert f"{best_rate(tuned):g} for {NAMES[arm]}" in PROSE
    frames = rows[0].frames[-1] / len(study.VIEWS)
    assert f"{frames / 1000:.0f},000 frames a client" in PROSE


def test_the_summary_is_made_of_the_rows():
    assert json.loads((study.RESULTS / "summary.json").read_text()) == study.summary()


@pytest.mark.parametrize("arm", study.ARMS)
def test_the_table(arm):
    cells = re.search(rf"^\| {NAMES[arm]} \|(.*)\|$", PAGE, re.M)[1].split("|")
    assert [float(cell) for cell in cells] == [round(x, 1) for x in study.at_home(arm).mean(axis=0)]


def test_the_words():
    one, own = (study.at_home(arm).mean(axis=1) for arm in study.ARMS)
    difference = own - one
    assert (
        f"larger by {difference.min():.1f} to {difference.max():.1f} in each of the five seeds, by {difference.mean():.1f}"
        in PROSE
    )
    at_random = next(
        row.random_return for row in read_rows(ROOT / "experiments/results/scoreboard/rows.csv") if row.env == "Breakout"
    )
    assert f"no better than at random ({at_random:.1f})" in PROSE
    assert study.at_home("federated").mean(axis=0)[1] < at_random
    # Who plays what: all but the mirrored play each other's games.
    matrix = study.matrix_of("own heads").mean(axis=0)
    others = [0, 2, 3]
    assert matrix[np.ix_(others, others)].min() > 3
    assert max(matrix[1, others].max(), matrix[others, 1].max()) < at_random
