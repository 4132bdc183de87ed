"""Figures drawn from a run directory's files, never by training again: `python -m dqn_jax.runner.plots RUN_DIR`."""

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dqn_jax.runner.records import CONFIG, read_metrics, read_returns
from dqn_jax.runner.statistics import bootstrap_ci95

LEARNING_CURVE = "learning_curve.png"


def learning_curve(run_dir: Path) -> Figure:
    """Greedy return over frames, mean over seeds with its 95% bootstrap band, each seed thin; training return dotted."""
    config = json.loads((run_dir / CONFIG).read_text())
    evaluations = read_returns(run_dir)
    seeds = sorted({seed for returns in evaluations.values() for seed in returns})
    frames = np.array(sorted(evaluations))
    greedy = np.array([[evaluations[at][seed] for at in frames] for seed in seeds])
    metrics = read_metrics(run_dir)
    training = np.array([[np.nan if value is None else value for value in line["return"]] for line in metrics])
    seen = ~np.isnan(training).all(axis=1)

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(frames, greedy.T, color="tab:blue", linewidth=0.6, alpha=0.35)
    axes.fill_between(
        frames, *bootstrap_ci95(greedy), color="tab:blue", alpha=0.25, linewidth=0, label="95% bootstrap interval"
    )
    axes.plot(
        frames, greedy.mean(axis=0), color="tab:blue", linewidth=2, marker="o", markersize=3, label="greedy, mean over seeds"
    )
    training_frames = np.array([line["frames"] for line in metrics])
    axes.plot(
        training_frames[seen],
        np.nanmean(training[seen], axis=1),
        color="tab:orange",
        linestyle=":",
        label="while training (exploring)",
    )
    axes.set(xlabel="frames of each seed", ylabel="episode return", title=f"{config['env']}, {len(seeds)} seeds")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def save_learning_curve(run_dir: Path) -> Path:
    """Draws `learning_curve.png` in a run directory and returns its path."""
    path = run_dir / LEARNING_CURVE
    learning_curve(run_dir).savefig(path, dpi=150)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dqn_jax.runner.plots RUN_DIR")
    print(save_learning_curve(Path(sys.argv[1])))
