"""Every algorithm in every environment, by the same rules: `dqn-jax scoreboard` (also experiments/scoreboard.py).

What has its rows is not trained again. `--tune` trains each cell at several learning rates, on other seeds; the best of them go
into `dqn_jax/tuned.py` by hand, and a test compares. Not here: how a cell is trained (cells).
"""

import dataclasses
import sys
from pathlib import Path

from dqn_jax import runtime
from dqn_jax.algorithms import ALGORITHMS
from dqn_jax.commands.cells import TUNING_SEEDS, Cell, is_of, make_cell, train, tune
from dqn_jax.config import check_whole, require
from dqn_jax.runner.command_line import exit_code_of, options
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.runner.scoreboard import Row, add_origin, how_soon, markdown, read_rows, table
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
    seeds: int | None = None
    """Seeds where none are asked for; None is as many as elsewhere."""
    tuned_in: str | None = None
    """Name in this table of the environment whose learning rates it takes; None tunes its own."""
    tuning_frames: int | None = None
    """Frames of each seed while tuning; None is all."""


BUDGETS = {
    "CartPole": Budget("CartPole-v1", 100_000, 490),
    "Acrobot": Budget("Acrobot-v1", 100_000, -85),
    "MountainCar": Budget("MountainCar-v0", 150_000, -110),
    "Catch": Budget("Catch-bsuite", 50_000, 1),
    # The optimum is 0.99 for every size: a hundredth is the price of the way. At 12 some seeds find it, and some do not.
    **{
        f"DeepSea-{n}": Budget("DeepSea-bsuite", 100_000, 0.99 * 0.99, (f"size={n}",), tuned_in="DeepSea-12")
        for n in (8, 12, 16, 20)
    },
    "FourRooms": Budget("FourRooms-misc", 100_000, 1, ("use_visual_obs=true",)),
    "Breakout": Budget("Breakout-MinAtar", 2_000_000, 10, algorithms=("dqn", "rainbow", "pqn"), seeds=5, tuning_frames=200_000),
}
SEEDS = 10
RACE = ("dqn", "rainbow", "pqn")
"""Algorithms of which the table says how soon they are where the first of them ends."""
ROWS, TUNING, TABLE, ORIGINS = "rows.csv", "tuning.csv", "table.md", "origins.json"


@dataclasses.dataclass(frozen=True)
class ScoreboardOptions:
    """What is trained, and where its rows are."""

    algorithms: tuple[str, ...] = tuple(ALGORITHMS)
    """Algorithms to train."""
    envs: tuple[str, ...] = tuple(BUDGETS)
    """Environments to train in, by their names in the table of budgets."""
    num_seeds: int | None = None
    """Seeds of each cell, from 0; None is as the table of budgets says, or 10."""
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
        if self.num_seeds is not None:
            check_whole("", self, "num_seeds")
            require(
                self.num_seeds <= TUNING_SEEDS[0], f"num_seeds is {self.num_seeds}: {TUNING_SEEDS[0]} and on are for tuning"
            )
        for name, known in (("algorithms", ALGORITHMS), ("envs", BUDGETS)):
            unknown = [value for value in getattr(self, name) if value not in known]
            require(not unknown, f"{name} has {', '.join(unknown)}: give some of {', '.join(known)}")


def scoreboard() -> None:
    """Trains what is missing, then writes the table and the figures."""
    chosen = options(ScoreboardOptions(), "Trains every algorithm in every environment, and compares them.")
    if not chosen.only_draw:
        keep_compiled(True)
        runtime.setup(chosen.num_devices)
        add_origin(chosen.out / ORIGINS)
        for env in chosen.envs:
            for algorithm in chosen.algorithms:
                if chosen.tune and is_set(algorithm, env):
                    if tuning_env(env) == env:
                        tune(tuning_cell(algorithm, env, chosen.quick), chosen.out / TUNING)
                elif is_tuned(algorithm, env):
                    report(algorithm, env, chosen)
                elif algorithm in BUDGETS[env].algorithms:
                    print(f"{env}, {algorithm}: left out, dqn_jax/tuned.py has nothing for it", file=sys.stderr)
    if not chosen.tune:
        draw(chosen.out)


def report(algorithm: str, env: str, chosen: ScoreboardOptions) -> None:
    """Trains the seeds of a cell that have no row, at its tuned learning rate."""
    rate = tuned_fields(algorithm, BUDGETS[env].env)["agent.learning_rate"]
    number = chosen.num_seeds or BUDGETS[env].seeds or SEEDS
    train(cell_of(algorithm, env, chosen.quick), [(rate, seed) for seed in range(number)], chosen.out / ROWS)


def is_set(algorithm: str, env: str) -> bool:
    """Tells whether an algorithm is to be trained in an environment, and what all have in common there is known."""
    return algorithm in BUDGETS[env].algorithms and BUDGETS[env].env in TUNED


def is_tuned(algorithm: str, env: str) -> bool:
    """Tells whether its learning rate is known, too."""
    return is_set(algorithm, env) and algorithm in TUNED[BUDGETS[env].env].learning_rates


def cell_of(algorithm: str, env: str, quick: bool = False) -> Cell:
    """Returns the cell of an algorithm in an environment of the table."""
    return _cell(algorithm, env, BUDGETS[env].frames, quick)


def tuning_env(env: str) -> str:
    """Returns where in the table an environment's learning rates are tuned."""
    return BUDGETS[env].tuned_in or env


def tuning_cell(algorithm: str, env: str, quick: bool = False) -> Cell:
    """Returns the cell that the learning rate of an algorithm in an environment of the table is tuned in."""
    where = tuning_env(env)
    return _cell(algorithm, where, BUDGETS[where].tuning_frames or BUDGETS[where].frames, quick)


def _cell(algorithm: str, env: str, frames: int, quick: bool) -> Cell:
    budget = BUDGETS[env]
    fields = {"env": budget.env, "env_kwargs": budget.env_kwargs, "total_frames": frames}
    return make_cell(algorithm, env, fields | shared_fields(algorithm, budget.env), quick)


def reported(out: Path) -> list[Row]:
    """Reads the rows of a directory that belong to the cells as they are today, in the order of the tables."""
    rows = read_rows(out / ROWS)
    found = []
    for env, budget in BUDGETS.items():
        for algorithm in [name for name in ALGORITHMS if is_tuned(name, env)]:
            rate = TUNED[budget.env].learning_rates[algorithm]
            cells = [cell_of(algorithm, env, quick) for quick in (False, True)]
            found += [row for row in rows if row.learning_rate == rate and any(is_of(row, cell) for cell in cells)]
    return found


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
    (out / TABLE).write_text(table_text(rows))
    save(every_seed(rows, thresholds), out / "scores.png")
    save(profiles(rows, thresholds), out / "profiles.png")
    print(*(out / name for name in (TABLE, "scores.png", "profiles.png")), sep="\n")


def table_text(rows: list[Row]) -> str:
    """Writes the table, who is soon where DQN ends, and which cells have no row."""
    done = {(row.algorithm, row.env) for row in rows}
    missing = {env: [name for name in budget.algorithms if (name, env) not in done] for env, budget in BUDGETS.items()}
    lines = [f"- {env}: {', '.join(names)}" for env, names in missing.items() if names]
    text = markdown(table(rows, {env: budget.threshold for env, budget in BUDGETS.items()}))
    if any(row.algorithm == RACE[-1] for row in rows):
        text += "\n## To the mean final return of `dqn`\n\n" + how_soon(rows, RACE)
    return text + ("\n## Not trained so far\n\n" + "\n".join(lines) + "\n" if lines else "")


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(scoreboard)
