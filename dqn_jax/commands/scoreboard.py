"""Every algorithm in every environment, by the same rules: `dqn-jax scoreboard` (also experiments/scoreboard.py).

A cell is one algorithm in one environment; its seeds are trained at once. Its rows are written when it is done, and a cell that
has its rows is not trained again. `--tune` trains each cell at several learning rates, on other seeds.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from dqn_jax import runtime
from dqn_jax.algorithms import ALGORITHMS
from dqn_jax.config import DataParallelExperiment, check_whole, require
from dqn_jax.runner.command_line import exit_code_of, options
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.runner.config_file import config_dict, nest, with_values
from dqn_jax.runner.scoreboard import Row, append_rows, digest_of, markdown, read_rows, table
from dqn_jax.tuned import TUNED, shared_fields, tuned_fields


@dataclasses.dataclass(frozen=True)
class Budget:
    """What training in one environment may take, and what is asked of it."""

    env: str
    frames: int
    """Of each seed."""
    threshold: float
    """Greedy return that counts as learnt."""
    env_kwargs: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = tuple(ALGORITHMS)


BUDGETS = {
    "CartPole": Budget("CartPole-v1", 100_000, 490),
    "Acrobot": Budget("Acrobot-v1", 100_000, -85),
    "MountainCar": Budget("MountainCar-v0", 150_000, -110),
    "Catch": Budget("Catch-bsuite", 50_000, 1),
    # The optimum is 0.99 for every size: a hundredth is the price of the way.
    **{f"DeepSea-{n}": Budget("DeepSea-bsuite", 100_000, 0.99 * 0.99, (f"size={n}",)) for n in (8, 12, 16, 20)},
    "FourRooms": Budget("FourRooms-misc", 100_000, 1),
    "Breakout": Budget("Breakout-MinAtar", 2_000_000, 10, algorithms=("dqn", "rainbow")),
}
EVALUATIONS, EPISODES = 10, 32
TUNING_SEEDS, REPORTING_SEEDS = range(1_000, 1_004), range(10)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
"""The grid of learning rates, by factors of about three; where the best is at an end, the next beyond it is tried too."""
ROWS, TUNING, TABLE = "rows.csv", "tuning.csv", "table.md"


@dataclasses.dataclass(frozen=True)
class ScoreboardOptions:
    """What is trained, and where its rows are."""

    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Algorithms to train."""
    envs: tuple[str, ...] = tuple(BUDGETS)
    """Environments to train in, by their names in the table of budgets."""
    num_seeds: int = len(REPORTING_SEEDS)
    """Seeds of each cell, from 0."""
    num_devices: int | None = None
    """Devices that seeds are divided over; None takes all."""
    out: Path = Path("runs/scoreboard")
    """Directory of rows, table and figures; rows that are there are not trained again."""
    tune: bool = False
    """Tune learning rates, on seeds of their own, instead."""
    only_draw: bool = False
    """Write table and figures from the rows that are there."""
    quick: bool = False
    """Cut every budget to a few chunks, to see that everything works; nothing is learnt."""

    def __post_init__(self) -> None:
        check_whole("", self, "num_seeds")
        require(self.num_seeds <= TUNING_SEEDS[0], f"num_seeds is {self.num_seeds}: {TUNING_SEEDS[0]} and on are for tuning")
        for name, known in (("algorithms", ALGORITHMS), ("envs", BUDGETS)):
            unknown = [value for value in getattr(self, name) if value not in known]
            require(not unknown, f"{name} has {', '.join(unknown)}: give some of {', '.join(known)}")


def scoreboard() -> None:
    """Trains what is missing, then writes the table and the figures."""
    chosen = options(ScoreboardOptions(), "Trains every algorithm in every environment, and compares them.")
    if not chosen.only_draw:
        keep_compiled(True)
        runtime.setup(chosen.num_devices)
        for env in chosen.envs:
            for algorithm in chosen.algorithms:
                if algorithm in BUDGETS[env].algorithms:
                    (tune if chosen.tune else report)(algorithm, env, chosen)
    if not chosen.tune:
        draw(chosen.out)


def report(algorithm: str, env: str, chosen: ScoreboardOptions) -> None:
    """Trains the seeds of a cell that have no row, at its tuned learning rate."""
    rate = tuned_fields(algorithm, BUDGETS[env].env)["agent.learning_rate"]
    _train(algorithm, env, [(rate, seed) for seed in range(chosen.num_seeds)], chosen, ROWS)


def tune(algorithm: str, env: str, chosen: ScoreboardOptions) -> float:
    """Trains a cell at every learning rate of the grid, and beyond its ends until the best one lies inside; returns that."""
    rates: tuple[float, ...] = RATES
    while True:
        lanes = [(rate, seed) for rate in rates for seed in TUNING_SEEDS]
        best = best_rate(_train(algorithm, env, lanes, chosen, TUNING))
        if rates[0] < best < rates[-1]:
            print(f"{env}, {algorithm}: {best:g}", flush=True)
            return best
        require(
            1e-7 < best < 1,
            f"{env}, {algorithm}: {best:g} is the best learning rate so far, and the next would make no sense: see the rows",
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


def _train(algorithm: str, env: str, lanes: Sequence[tuple[float, int]], chosen: ScoreboardOptions, name: str) -> list[Row]:
    """Trains the lanes (learning rate, seed) of a cell that have no row in the file of that name; returns the rows of all."""
    # Not at the top: these start jax.
    from dqn_jax.commands.compare import random_return
    from dqn_jax.commands.lanes import train_lanes

    config, settings = cell(algorithm, env, chosen.quick)
    path = chosen.out / name
    rows = {
        (row.learning_rate, row.seed): row
        for row in read_rows(path)
        if (row.algorithm, row.env, row.settings) == (algorithm, env, settings)
    }
    missing = [lane for lane in lanes if lane not in rows]
    if missing:
        rates, seeds = zip(*missing, strict=True)
        curves = train_lanes(config, seeds, rates, *(2, 2) if chosen.quick else (EVALUATIONS, EPISODES))
        at_random = random_return(config_dict(config))
        returns, seconds = curves.returns.mean(axis=2), curves.seconds / len(missing)
        new = [
            Row(algorithm, env, settings, *lane, at_random, *(tuple(x) for x in (curves.frames, curves.updates, seconds, own)))
            for lane, own in zip(missing, returns.tolist(), strict=True)
        ]
        append_rows(path, new)
        rows |= {(row.learning_rate, row.seed): row for row in new}
        print(f"{env}, {algorithm}: {len(missing)} lane(s), mean final return {returns[:, -1].mean():.4g}", flush=True)
    return [rows[lane] for lane in lanes]


def cell(algorithm: str, env: str, quick: bool = False) -> tuple[DataParallelExperiment, str]:
    """Returns a cell's config, whose learning rate is not read, and the digest of its settings."""
    budget = BUDGETS[env]
    fields: dict[str, Any] = {"env": budget.env, "env_kwargs": budget.env_kwargs, "total_frames": budget.frames}
    fields |= shared_fields(algorithm, budget.env)
    if quick:
        # Rows of a quick run are not taken for others: their settings differ.
        fields |= {"total_frames": 2_000, "agent.learning_starts": 1_000, "runner.log_every": 1_000}
    config = with_values(DataParallelExperiment(num_seeds=1), nest(fields))
    return config, digest_of(fields | {"evaluations": EVALUATIONS, "episodes": EPISODES})


def reported(out: Path) -> list[Row]:
    """Reads the rows of a directory that belong to the cells as they are today, in the order of the tables."""
    rows = read_rows(out / ROWS)
    found = []
    for env in BUDGETS:
        for algorithm in ALGORITHMS:
            found += [row for row in rows if (row.algorithm, row.env) == (algorithm, env) and _is_todays(row)]
    return found


def _is_todays(row: Row) -> bool:
    env = BUDGETS[row.env].env
    known = env in TUNED and row.algorithm in TUNED[env].learning_rates
    if not known or row.learning_rate != TUNED[env].learning_rates[row.algorithm]:
        return False
    return row.settings in (cell(row.algorithm, row.env, quick)[1] for quick in (False, True))


def draw(out: Path) -> None:
    """Writes the table and the figures of the rows that are there.

    Raises:
      InputError: where there is none.
    """
    from dqn_jax.runner.plots import save
    from dqn_jax.runner.scoreboard_plots import every_seed, profiles

    rows = reported(out)
    require(bool(rows), f"out is {out}, which has no row of today's cells: train some first")
    thresholds = {env: budget.threshold for env, budget in BUDGETS.items()}
    (out / TABLE).write_text(markdown(table(rows, thresholds)))
    save(every_seed(rows, thresholds), out / "scores.png")
    save(profiles(rows, thresholds), out / "profiles.png")
    print(*(out / name for name in (TABLE, "scores.png", "profiles.png")), sep="\n")


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(scoreboard)
