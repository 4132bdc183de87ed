"""The rows of a scoreboard, a line of a CSV file for each seed, and the table that is made of them.

Not here: what is trained, and when (commands.scoreboard); figures.

Shapes: S seeds, T evaluations.
"""

import csv
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dqn_jax.config import InputError, Record
from dqn_jax.runner.compare import ComparedRun, table_of
from dqn_jax.runner.records import provenance
from dqn_jax.runner.statistics import bootstrap_ci95

COLUMNS = ("algorithm", "env", "settings", "learning_rate", "seed", "random_return", "frames", "updates", "seconds", "returns")
SERIES = ("frames", "updates", "seconds", "returns")
"""Columns with a number for each evaluation, divided by spaces."""
FEW = 10
"""Seeds below which an interval is not called one of 95%."""


class Row(NamedTuple):
    """One seed of one algorithm in one environment."""

    algorithm: str
    env: str
    settings: str
    """Digest of what was trained, but for the learning rate: a row of other settings is not a row of this cell."""
    learning_rate: float
    seed: int
    random_return: float
    """Mean return of a random policy."""
    frames: tuple[float, ...]
    """[T] frames until each evaluation."""
    updates: tuple[float, ...]
    """[T] updates until then."""
    seconds: tuple[float, ...]
    """[T] seconds of training until then: those of all seeds trained at once, divided by their number."""
    returns: tuple[float, ...]
    """[T] mean greedy returns."""


def digest_of(settings: Record) -> str:
    """Returns eight characters that tell settings apart."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a file; none where there is no file.

    Raises:
      InputError: for a file with other columns, or a line that is damaged.
    """
    if not path.exists():
        return []
    with open(path, newline="") as file:
        lines = csv.DictReader(file)
        if tuple(lines.fieldnames or ()) != COLUMNS:
            raise InputError(f"{path} has columns {lines.fieldnames}, not those of a scoreboard: give another directory")
        try:
            return [_row(line) for line in lines]
        except (TypeError, ValueError):
            raise InputError(f"{path}:{lines.line_num} is damaged: restore the file, or delete the line") from None


def _row(line: dict[str, str]) -> Row:
    values: Record = dict(line) | {"seed": int(line["seed"])}
    values |= {name: float(line[name]) for name in ("learning_rate", "random_return")}
    values |= {name: tuple(float(number) for number in line[name].split()) for name in SERIES}
    if len({len(values[name]) for name in SERIES}) != 1 or not values["returns"]:
        raise ValueError
    return Row(**values)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to a file, which is begun if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not begun:
            writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow([_text(value) for value in row])


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{number:.6g}" for number in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def add_origin(path: Path) -> None:
    """Adds where rows come from (command, date, hardware, versions) to a list in a JSON file, if it is not there yet."""
    origins = json.loads(path.read_text()) if path.exists() else []
    if provenance() not in origins:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([*origins, provenance()], indent=2) + "\n")


def table(rows: Sequence[Row], thresholds: Mapping[str, float]) -> list[Record]:
    """Builds the table: a record for each algorithm in each environment, in the order of the rows.

    Args:
      rows: of one learning rate and one kind of settings for each of them.
      thresholds: the return to reach, by environment.

    Returns:
      `compare.table_of`'s records with `algorithm`, `env`; `at_threshold`, the share of seeds whose final return reaches the
      threshold; `difference` [mean, low, high], `paired` with the first algorithm there. Below ten seeds intervals are null: a
      bootstrap of so few covers less than it says.
    """
    first = {env: next(row.algorithm for row in rows if row.env == env) for env in {row.env for row in rows}}
    records = []
    for algorithm, env in dict.fromkeys((row.algorithm, row.env) for row in rows):
        mine, others = ([row for row in rows if (row.algorithm, row.env) == (name, env)] for name in (algorithm, first[env]))
        run = run_of(mine)
        record = table_of([run], thresholds[env], [run.config["random_return"]])[0]
        if record["seeds"] < FEW:
            record |= {"final_ci95_low": None, "final_ci95_high": None}
        share = float(np.mean(run.returns[:, -1] >= thresholds[env]))
        difference = None if algorithm == first[env] else paired(mine, others)
        records.append({"algorithm": algorithm, "env": env, "at_threshold": share, "difference": difference} | record)
    return records


def paired(rows: Sequence[Row], others: Sequence[Row]) -> list[float | None]:
    """Computes the mean difference of final returns over the seeds that both have, and its 95% bootstrap interval."""
    theirs = {row.seed: row.returns[-1] for row in others}
    differences = np.array([row.returns[-1] - theirs[row.seed] for row in rows if row.seed in theirs])
    interval = [float(end) for end in bootstrap_ci95(differences)] if len(differences) >= FEW else [None, None]
    return [float(np.mean(differences)), *interval]


def paired_text(difference: list[float | None] | None) -> str:
    """Writes a paired difference, as "-3.1 [-5.2, -1.1]"."""
    if difference is None:
        return "-"
    mean, low, high = difference
    return f"{mean:.3g}" + ("" if low is None else f" [{low:.3g}, {high:.3g}]")


def run_of(rows: Sequence[Row]) -> ComparedRun:
    """Puts the seeds of one algorithm in one environment together."""
    series = {name: np.array([getattr(row, name) for row in rows]) for name in SERIES}
    series["seconds"] = series["seconds"].mean(axis=0)
    config = {"env": rows[0].env, "random_return": rows[0].random_return}
    return ComparedRun(rows[0].algorithm, config, **series)


def time_to(rows: Sequence[Row], target: float) -> tuple[float, float] | None:
    """Finds a seed's frames and seconds at the first evaluation whose mean over all is at a target; None if there is none."""
    returns = _mean_returns(rows)
    if not (returns >= target).any():
        return None
    first = int(np.argmax(returns >= target))
    return float(np.mean([row.frames[first] for row in rows])), float(np.mean([row.seconds[first] for row in rows]))


def _mean_returns(rows: Sequence[Row]) -> np.ndarray:
    return np.mean([row.returns for row in rows], axis=0)


def how_soon(rows: Sequence[Row], algorithms: Sequence[str]) -> str:
    """Writes, as Markdown, when the mean of each algorithm is at the mean final return of the first of them, by environment."""
    lines = [f"| environment | return | {' | '.join(f'`{name}`: frames, seconds' for name in algorithms)} |"]
    lines.append("|---" * (len(algorithms) + 2) + "|")
    for env in dict.fromkeys(row.env for row in rows):
        of = {name: [row for row in rows if (row.env, row.algorithm) == (env, name)] for name in algorithms}
        target = float(_mean_returns(of[algorithms[0]])[-1])
        times = [time_to(own, target) if own else () for own in of.values()]
        cells = ["never" if time is None else "not trained" if not time else f"{time[0]:,.0f}, {time[1]:.3g}" for time in times]
        lines.append(f"| {env} | {target:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def markdown(records: Sequence[Record]) -> str:
    """Writes the table as Markdown, an environment after the other."""
    parts = []
    for env in dict.fromkeys(record["env"] for record in records):
        mine = [record for record in records if record["env"] == env]
        lines = [
            f"## {env}\n",
            f"Threshold {mine[0]['threshold']:g}, random policy {mine[0]['random_return']:.3g}.\n",
            f"| {' | '.join(_HEAD)} |",
            "|---" * len(_HEAD) + "|",
        ]
        lines += ["| " + " | ".join(_cells(record)) + " |" for record in mine]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


_HEAD = (
    *("algorithm", "seeds", "final return", "interquartile mean", "95% interval", "difference from the first"),
    *("at the threshold", "ever reached it", "frames to it", "seconds to it", "late collapse"),
)


def _cells(record: Record) -> list[str]:
    def number(value: float | None, spec: str) -> str:
        return "-" if value is None else format(value, spec)

    low, high = record["final_ci95_low"], record["final_ci95_high"]
    return [
        f"`{record['algorithm']}`",
        str(record["seeds"]),
        number(record["final_mean"], ".3f") if abs(record["final_mean"]) < 10 else number(record["final_mean"], ".1f"),
        number(record["final_iqm"], ".4g"),
        "-" if low is None else f"{low:.4g} to {high:.4g}",
        paired_text(record["difference"]),
        number(record["at_threshold"], ".0%"),
        number(record["threshold_share"], ".0%"),
        number(record["frames_to_threshold"], ",.0f"),
        number(record["seconds_to_threshold"], ".3g"),
        number(record["late_collapse"], ".0%"),
    ]
