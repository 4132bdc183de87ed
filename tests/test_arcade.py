"""What the page on arcade games says is what the committed rows say."""

import json
import re
from pathlib import Path

import arcade
import pytest

from dqn_jax.runner.scoreboard import read_rows

RESULTS = Path(__file__).parents[1] / "experiments" / "results" / "arcade"
PAGE = Path(__file__).parents[1] / "docs" / "results" / "arcade.md"


def test_every_committed_row_is_of_a_game_as_it_is_trained_today():
    rows = read_rows(RESULTS / "rows.csv")
    assert rows
    assert {(row.env, row.settings) for row in rows} <= {(game, arcade.settings_of(game)) for game in arcade.GAMES}
    assert {row.env for row in rows} <= arcade.baselines().keys() <= arcade.GAMES.keys()


def test_the_summary_is_made_of_the_committed_rows():
    assert json.loads((RESULTS / "summary.json").read_text()) == arcade.summary()


@pytest.mark.parametrize("game", arcade.GAMES)
def test_the_numbers_of_the_page_are_those_of_the_rows(game):
    known = arcade.summary()[game]
    finals = ", ".join(f"{value:.1f}" for value in known["final_returns"])
    minutes = f"{min(known['minutes']):.0f} to {max(known['minutes']):.0f}"
    line = next(line for line in PAGE.read_text().splitlines() if re.match(rf"\| .*`{game}|\| .*:{game}`", line))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        f"{known['random']:.1f}",
        f"{known['best_action']:.1f}",
        finals,
        minutes,
    ]
