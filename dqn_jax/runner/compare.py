"""Runs side by side: their learning curves and a table, from their files. Not here: how a random policy plays (commands).

Shapes: S seeds, T evaluations.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dqn_jax.config import InputError, Record
from dqn_jax.runner.plots import band
from dqn_jax.runner.reading import read_run
from dqn_jax.runner.records import jsonable
from dqn_jax.runner.statistics import bootstrap_ci95, interquartile_mean

KEPT = 0.8
"""Share of what a seed's best return gained over a random policy; one that ends with less has collapsed."""


class ComparedRun(NamedTuple):
    """Greedy returns of a run: of a federation, what it serves where clients train, their mean."""

    name: str
    config: Record
    frames: np.ndarray
    """[S, T] frames of each seed."""
    updates: np.ndarray
    """[S, T] updates of each seed."""
    seconds: np.ndarray
    """[T] seconds since the start, compilation and evaluations included; NaN where the metrics do not say."""
    returns: np.ndarray
    """[S, T]."""


def load_runs(run_dirs: Sequence[Path]) -> list[ComparedRun]:
    """Reads the runs, and says on stderr what makes them less comparable.

    Raises:
      InputError: for a directory without an evaluation, none at all, or environments of different names.
    """
    if not run_dirs:
        raise InputError("run_dirs is empty: name the directories of the runs to compare")
    short = [run_dir.resolve().name for run_dir in run_dirs]
    names = short if len(set(short)) == len(short) else [str(run_dir) for run_dir in run_dirs]
    runs = [_load(run_dir, name) for run_dir, name in zip(run_dirs, names, strict=True)]
    envs = {run.config["env"]: run.name for run in runs}
    if len(envs) > 1:
        of_each = ", ".join(f"{env} ({name})" for env, name in envs.items())
        raise InputError(f"the runs' env is {of_each}: compare runs of one environment, returns of others have other scales")
    places = [environment_of(run.config) for run in runs]
    differing = [field for field in dict.fromkeys(name for place in places for name in place) if _differs(field, places)]
    if differing:
        print(f"the runs differ in {', '.join(differing)}: their returns are of different environments", file=sys.stderr)
    return runs


def environment_of(config: Record) -> Record:
    """Returns the entries of a config that change what is played, and so the scale of returns."""
    names = ("env", "env_kwargs", "wrappers", "max_episode_steps")
    place = {name: config.get(name) or None for name in names}
    place["runner.eval_wrappers"] = config.get("runner", {}).get("eval_wrappers")
    federated = config.get("federated", {})
    if federated.get("heterogeneity", "none") != "none":
        varied = ("heterogeneity", "heterogeneity_level", "env_seed", "num_clients")
        place |= {f"federated.{name}": federated.get(name) for name in varied}
    return place


def _differs(field: str, places: list[Record]) -> bool:
    return any(place.get(field) != places[0].get(field) for place in places)


def _load(run_dir: Path, name: str) -> ComparedRun:
    run = read_run(run_dir)
    cells: dict[tuple[int, int], list[tuple[int, int, float]]] = {}
    for row in run.returns:
        if row["policy"] in ("global", "personal") and row["split"] == "seen":
            numbers = (row["frames"], row["updates"], row["return"])
            cells.setdefault((row["seed"], row[run.unit]), []).append(numbers)
    if not cells:
        raise InputError(f"{run_dir} has no whole evaluation: compare it once it has one, or leave it out")
    if not run.finished:
        print(f"{run_dir} is not finished: its last evaluation stands for the final one", file=sys.stderr)
    seeds, times = (sorted({key[part] for key in cells}) for part in (0, 1))
    means = np.array([[np.mean(cells[seed, at], axis=0) for at in times] for seed in seeds])
    clock = {line[run.unit]: line["wall_seconds"] for line in run.metrics}
    seconds = np.array([clock.get(at) for at in times], float)
    return ComparedRun(name, run.config, means[..., 0], means[..., 1], seconds, means[..., 2])


def table_of(runs: Sequence[ComparedRun], threshold: float | None, random_returns: Sequence[float | None]) -> list[Record]:
    """Builds the table, a row for each run.

    Args:
      runs: the runs.
      threshold: the return to reach; None takes each run's own.
      random_returns: mean return of a random policy in the environment of each run; None where it is not known.

    Returns:
      Rows with the final returns' mean, interquartile mean and 95% bootstrap interval of the mean; `area`, the mean return over
      the frames that all runs were evaluated in; of each seed's first evaluation that reached the threshold the median frames
      and seconds, a seed that never did counting as infinite, and the share that did; and `late_collapse`, the share of seeds
      that kept less than `KEPT` of what their best evaluation had gained over the random policy. None is not known, or never.
    """
    begin = max(run.frames[:, 0].max() for run in runs)
    end = min(run.frames[:, -1].min() for run in runs)
    rows = []
    for run, random_return in zip(runs, random_returns, strict=True):
        final = run.returns[:, -1]
        low, high = bootstrap_ci95(final)
        row = {
            "run": run.name,
            "seeds": len(final),
            "final_mean": final.mean(),
            "final_iqm": interquartile_mean(final),
            "final_ci95_low": low,
            "final_ci95_high": high,
            "area": _area(run, begin, end),
            **_to_threshold(run, run.config.get("runner", {}).get("threshold") if threshold is None else threshold),
            "random_return": np.nan if random_return is None else random_return,
            "late_collapse": np.nan if random_return is None else _late_collapse(run.returns, random_return),
        }
        rows.append(jsonable(row))
    return rows


def _area(run: ComparedRun, begin: float, end: float) -> float:
    """Computes the area under the curve from `begin` to `end` frames, by trapezia, over their number: a mean return."""
    if end <= begin:
        return np.nan
    areas = []
    for frames, returns in zip(run.frames, run.returns, strict=True):
        at = np.array([begin, *frames[(frames > begin) & (frames < end)], end])
        heights = np.interp(at, frames, returns)
        areas.append(np.sum(np.diff(at) * (heights[1:] + heights[:-1]) / 2) / (end - begin))
    return float(np.mean(areas))


def _to_threshold(run: ComparedRun, threshold: float | None) -> Record:
    names = ("threshold", "threshold_share", "frames_to_threshold", "seconds_to_threshold")
    if threshold is None:
        return dict.fromkeys(names)
    reached = run.returns >= threshold
    ever, first = reached.any(axis=1), reached.argmax(axis=1)
    frames = np.where(ever, run.frames[np.arange(len(first)), first], np.inf)
    seconds = np.where(ever, run.seconds[first], np.inf)
    return dict(zip(names, (threshold, ever.mean(), np.median(frames), np.median(seconds)), strict=True))


def _late_collapse(returns: np.ndarray, random_return: float) -> float:
    gained, kept = returns.max(axis=1) - random_return, returns[:, -1] - random_return
    # A seed that was never above the random policy has nothing to lose.
    return float(np.mean((gained > 0) & (kept < KEPT * gained)))


def draw_runs(runs: Sequence[ComparedRun]) -> Figure:
    """Draws the greedy returns over frames, updates and seconds: means over seeds with their 95% bootstrap intervals."""
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for number, run in enumerate(runs):
        times = (run.frames.mean(axis=0), run.updates.mean(axis=0), run.seconds)
        for axes, at in zip(panels, times, strict=True):
            band(axes, at, run.returns, f"C{number}", run.name, thin=False)
    labels = ("frames of each seed", "updates of each seed", "seconds, with compilation and evaluations")
    for axes, label in zip(panels, labels, strict=True):
        axes.set(xlabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="greedy return, mean over seeds")
    figure.suptitle(runs[0].config["env"])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def write_table(rows: list[Record], path: Path) -> None:
    """Writes the rows as CSV, None as nothing.

    Raises:
      InputError: where the file cannot be written.
    """
    try:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): name another file") from None
