"""Cells of a comparison: one arm in one environment, tuned and trained for many seeds at once, its rows in a file.

A cell that has its rows is not trained again. Not here: which cells there are (scoreboard, studies), tables and figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from dqn_jax.config import DataParallelExperiment, Experiment, require
from dqn_jax.runner.config_file import config_dict, flatten, nest, with_values
from dqn_jax.runner.scoreboard import Row, append_rows, digest_of, read_rows

if TYPE_CHECKING:
    from dqn_jax.commands.lanes import Curves

Lane: TypeAlias = tuple[float, int]
"""A learning rate, and a seed."""
EVALUATIONS, EPISODES = 10, 32
"""Evaluations of a run, and greedy episodes of each."""
TUNING_SEEDS = range(1_000, 1_004)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""Learning rates to try, by factors of about three; where the best is at an end, the next beyond it is tried too."""


class Cell(NamedTuple):
    """One arm in one environment."""

    arm: str
    """As rows name it: an algorithm, or an arm of a study."""
    env: str
    """As rows name it."""
    config: Experiment
    """What is trained; neither its learning rate nor its seeds are read."""
    settings: str
    """Digest of what was set; rows with another are not of this cell."""
    quick: bool = False
    """Whether only a few chunks are trained, to see that everything works."""


Trainer: TypeAlias = Callable[[Cell, Sequence[Lane]], Sequence[Row]]
"""(cell, lanes) -> a row of each lane."""


def make_cell(arm: str, env: str, fields: dict[str, Any], quick: bool = False) -> Cell:
    """Makes a cell from the fields that it sets, by dotted name; rows of a quick one are of no other."""
    if quick:
        starts = min(1_000, fields.get("agent.learning_starts", 1_000))
        fields = fields | {"total_frames": 2_000, "agent.learning_starts": starts, "runner.log_every": 1_000}
    start = DataParallelExperiment(num_seeds=1)
    config = with_values(start, nest(fields))
    before, after = (flatten(config_dict(one)) for one in (start, config))
    # A field that is new, with a default that changes nothing, makes no row older.
    changed = {name: value for name, value in after.items() if value != before[name]}
    return Cell(arm, env, config, digest_of(changed | {"evaluations": EVALUATIONS, "episodes": EPISODES}), quick)


def tune(
    cell: Cell,
    path: Path,
    run: Trainer | None = None,
    rates: tuple[float, ...] = RATES,
    seeds: Sequence[int] = TUNING_SEEDS,
) -> float:
    """Trains a cell at every learning rate of the grid, and beyond its ends until the best one lies inside; returns that.

    Args:
      cell: the cell.
      path: file of its rows.
      run: trains lanes; None takes this module's.
      rates: the grid.
      seeds: to train with, others than are reported.

    Raises:
      InputError: where no end is found.
    """
    while True:
        best = best_rate(train(cell, [(rate, seed) for rate in rates for seed in seeds], path, run))
        if rates[0] < best < rates[-1]:
            print(f"{cell.env}, {cell.arm}: {best:g}", flush=True)
            return best
        require(
            1e-7 < best < 1,
            f"{cell.env}, {cell.arm}: the best learning rate so far is {best:g}, and the next would make no sense: see {path}",
        )
        rates = (_next(best, -1), *rates) if best == rates[0] else (*rates, _next(best, 1))


def best_rate(rows: Sequence[Row]) -> float:
    """Returns the learning rate with the largest mean return over the last fifth of training, the middle one of equals."""
    scores: dict[float, list[float]] = {}
    for row in rows:
        scores.setdefault(row.learning_rate, []).append(fmean(row.returns[-max(1, len(row.returns) // 5) :]))
    means = {rate: fmean(scores[rate]) for rate in sorted(scores)}
    equals = [rate for rate, mean in means.items() if mean == max(means.values())]
    return equals[len(equals) // 2]


def _next(rate: float, direction: int) -> float:
    """Returns the next rate of the grid's kind: 1 and 3 times powers of ten."""
    power = round(2 * math.log10(rate)) + direction
    return float(f"{10 ** (power / 2):.0e}")


def train(cell: Cell, lanes: Sequence[Lane], path: Path, run: Trainer | None = None) -> list[Row]:
    """Trains the lanes of a cell that have no row in the file, and adds theirs; returns the rows of all."""
    missing = without_row(cell, lanes, path)
    if missing:
        append_rows(path, run(cell, missing) if run else train_together(cell, missing)[0])
    rows = {(row.learning_rate, row.seed): row for row in read_rows(path) if is_of(row, cell)}
    return [rows[lane] for lane in lanes]


def without_row(cell: Cell, lanes: Sequence[Lane], path: Path) -> list[Lane]:
    """Returns the lanes of a cell that have no row in the file."""
    done = {(row.learning_rate, row.seed) for row in read_rows(path) if is_of(row, cell)}
    return [lane for lane in lanes if lane not in done]


def train_together(cell: Cell, lanes: Sequence[Lane]) -> tuple[list[Row], Curves]:
    """Trains the lanes of a cell together: their rows, and all that training gave."""
    # Not at the top: these start jax.
    from dqn_jax.commands.compare import random_return
    from dqn_jax.commands.lanes import train_lanes

    assert isinstance(cell.config, DataParallelExperiment)
    rates, seeds = zip(*lanes, strict=True)
    curves = train_lanes(cell.config, seeds, rates, *(2, 2) if cell.quick else (EVALUATIONS, EPISODES))
    at_random = random_return(config_dict(cell.config))
    frames, updates, seconds = (tuple(x.tolist()) for x in (curves.frames, curves.updates, curves.seconds / len(lanes)))
    returns = curves.returns.mean(axis=2)
    print(f"{cell.env}, {cell.arm}: {len(lanes)} lane(s), mean final return {returns[:, -1].mean():.4g}", flush=True)
    rows = [
        Row(cell.arm, cell.env, cell.settings, rate, seed, at_random, frames, updates, seconds, tuple(own))
        for (rate, seed), own in zip(lanes, returns.tolist(), strict=True)
    ]
    return rows, curves


def is_of(row: Row, cell: Cell) -> bool:
    """Tells whether a row is of a cell, at whichever learning rate."""
    return (row.algorithm, row.env, row.settings) == (cell.arm, cell.env, cell.settings)
