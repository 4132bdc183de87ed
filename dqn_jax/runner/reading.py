"""Files of a run, as far as they are whole: a run that was killed leaves torn lines. Not here: writing them (records)."""

import collections
import contextlib
import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dqn_jax.config import InputError, Record
from dqn_jax.runner.config_file import CONFIG
from dqn_jax.runner.records import METRICS, RETURNS, RETURNS_COLUMNS, SUMMARY, parse_row


class RunFiles(NamedTuple):
    """Contents of a run directory."""

    config: Record
    """As `config.json` has it."""
    unit: str
    """What the run counts: frames or rounds."""
    metrics: list[Record]
    """Whole lines of `metrics.jsonl`, at least one."""
    returns: list[Record]
    """Rows of `returns.csv`, those of whole evaluations."""
    finished: bool
    """Whether there is a summary."""


def read_run(run_dir: Path) -> RunFiles:
    """Reads what is whole in a run directory, and says on stderr what is left out.

    Raises:
      InputError: where that is nothing.
    """
    if not run_dir.is_dir():
        raise InputError(f"run_dir {run_dir} is not a directory: name one that a run has written")
    config = _config(run_dir / CONFIG)
    unit, finished = "rounds" if "rounds" in config else "frames", (run_dir / SUMMARY).exists()
    metrics, bad_lines = _whole_lines(run_dir / METRICS, lambda line: _metrics_of(line, unit, config["num_seeds"]))
    if not metrics:
        raise InputError(f"{run_dir / METRICS} has no whole line: name the directory of a run that has trained for a while")
    rows, bad_rows = _whole_lines(run_dir / RETURNS, lambda line: _row_of(line, unit))
    played = {line[unit] for line in metrics if line["eval_return"] is not None} | {row[unit] for row in rows}
    if finished and not bad_lines:
        # The final parameters are played even where no evaluation is due.
        played.add(metrics[-1][unit])
    whole = _whole_evaluations(rows, unit, config["num_seeds"])
    left_out = {
        f"torn or damaged line(s) of {METRICS}": bad_lines,
        f"torn or damaged line(s) of {RETURNS}": bad_rows,
        f"evaluation(s) of {len(played)} that {RETURNS} has not whole": len(played - whole),
    }
    if any(left_out.values()):
        what = ", ".join(f"{number} {of}" for of, number in left_out.items() if number)
        print(f"{run_dir}: left out {what}", file=sys.stderr)
    return RunFiles(config, unit, metrics, [row for row in rows if row[unit] in whole], finished)


def _config(path: Path) -> Record:
    try:
        config = json.loads(_text(path))
    except ValueError:
        config = None
    if not isinstance(config, dict) or not {"env", "num_seeds"} <= config.keys():
        raise InputError(f"{path} is missing or damaged: restore it, or name another run's directory")
    return config


def _text(path: Path) -> str:
    """Reads a file; one that is not there is empty, and what is no text becomes what nothing can be made of."""
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): restore it") from None


def _whole_lines(path: Path, parse: Callable[[str], Record]) -> tuple[list[Record], int]:
    """Parses the lines that can be parsed: (what they hold, how many of the others there are)."""
    # A line is written with its end: without it, its last number may be cut.
    *lines, torn = _text(path).split("\n")
    if lines[:1] == [",".join(RETURNS_COLUMNS)]:
        del lines[0]
    records: list[Record] = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, csv.Error):
            records.append(parse(line))
    return records, len(lines) - len(records) + bool(torn)


def _metrics_of(line: str, unit: str, num_seeds: int) -> Record:
    record = json.loads(line)
    if not isinstance(record, dict) or not {unit, "return", "eval_return", "wall_seconds"} <= record.keys():
        raise ValueError("names are missing")
    # Null is not a number.
    numbers = [np.array(record[name], float) for name in ("return", "drift") if name in record]
    if any(values.shape != (num_seeds,) for values in numbers) or not isinstance(record[unit], int):
        raise ValueError("numbers are missing")
    return record


def _row_of(line: str, unit: str) -> Record:
    row = parse_row(dict(zip(RETURNS_COLUMNS, next(csv.reader([line])), strict=True)))
    if row[unit] is None or row["seed"] is None:
        raise ValueError("numbers are missing")
    return row


def _whole_evaluations(rows: list[Record], unit: str, num_seeds: int) -> set[int]:
    """Returns the frames or rounds at which everything was played that is played at most of them, by all seeds."""
    played: dict[int, set[tuple]] = {}
    for row in rows:
        played.setdefault(row[unit], set()).add((row["seed"], row["policy"], row["split"], row["client"]))
    alike = collections.Counter(map(frozenset, played.values()))
    usual = max(alike, key=lambda cells: (alike[cells], len(cells)), default=frozenset())
    if len({seed for seed, *_ in usual}) != num_seeds:
        return set()
    return {at for at, cells in played.items() if cells == usual}
