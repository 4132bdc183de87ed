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
    today = {(name, game, arcade.settings_of(game, name)) for game in arcade.GAMES for name in arcade.LEARNERS}
    assert {(row.algorithm, row.env, row.settings) for row in rows} <= today
    assert {row.env for row in rows} <= arcade.baselines().keys() <= arcade.GAMES.keys()


def test_the_summary_is_made_of_the_committed_rows():
    assert json.loads((RESULTS / "summary.json").read_text()) == arcade.summary()


@pytest.mark.parametrize("algorithm", arcade.LEARNERS)
@pytest.mark.parametrize("game", arcade.GAMES)
def test_the_numbers_of_the_page_are_those_of_the_rows(game, algorithm):
    known = arcade.summary()[game]
    own = known[algorithm]
    finals = ", ".join(f"{value:.1f}" for value in own["final_returns"])
    minutes = " to ".join(dict.fromkeys(f"{x:.0f}" for x in (min(own["minutes"]), max(own["minutes"]))))
    begins = rf"\| .*:{game}` \| `{algorithm}`"
    line = next(line for line in PAGE.read_text().splitlines() if re.match(begins, line))
    assert [cell.strip() for cell in line.split("|")[3:-1]] == [
        f"{known['random']:.1f}",
        f"{known['best_action']:.1f}",
        finals,
        minutes,
    ]
