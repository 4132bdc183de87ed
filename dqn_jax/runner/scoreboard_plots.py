"""Figures of a scoreboard: every seed's final return, and performance profiles. Not here: rows and tables (scoreboard)."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dqn_jax.runner.scoreboard import Row

_WIDE = 4
"""Panels in a line."""


def every_seed(rows: Sequence[Row], thresholds: Mapping[str, float]) -> Figure:
    """Draws the final return of every seed, a panel an environment: dots, their mean as a bar, the threshold dashed."""
    algorithms, envs = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("algorithm", "env"))
    figure, panels = _panels(len(envs), height=0.26 * len(algorithms) + 0.8)
    for axes, env in zip(panels, envs, strict=False):
        for height, algorithm in enumerate(algorithms):
            finals = [row.returns[-1] for row in rows if (row.algorithm, row.env) == (algorithm, env)]
            axes.plot(finals, [height] * len(finals), "o", color="tab:blue", alpha=0.35, markersize=4)
            if finals:
                axes.plot(np.mean(finals), height, "|", color="black", markersize=10)
        at_random = next(row.random_return for row in rows if row.env == env)
        axes.axvline(thresholds[env], color="tab:green", linestyle="--", linewidth=1)
        axes.axvline(at_random, color="tab:red", linestyle=":", linewidth=1)
        axes.set(title=env, ylim=(len(algorithms) - 0.5, -0.5))
        axes.set_yticks(range(len(algorithms)), algorithms)
        axes.grid(alpha=0.3)
    figure.suptitle("final greedy return: a dot a seed, the bar their mean; threshold dashed, random policy dotted")
    return figure


def profiles(rows: Sequence[Row], thresholds: Mapping[str, float]) -> Figure:
    """Draws, a panel an algorithm, the share of runs at or above each score; grey is that of the first algorithm.

    A score is the final return on a scale from the random policy (0) to the threshold (1); every environment that the first
    algorithm and the panel's have in common weighs the same. Source: Agarwal et al. (2021), section 4.2.
    """
    algorithms = list(dict.fromkeys(row.algorithm for row in rows))
    levels = np.linspace(0, 1.2, 121)
    envs_of = {name: {row.env for row in rows if row.algorithm == name} for name in algorithms}
    figure, panels = _panels(len(algorithms), height=2.2)
    for axes, name in zip(panels, algorithms, strict=False):
        common = envs_of[name] & envs_of[algorithms[0]]
        for other, color, width in ((algorithms[0], "0.6", 1.5), (name, "tab:blue", 2)):
            mine = [row for row in rows if row.algorithm == other and row.env in common]
            axes.step(levels, profile(mine, thresholds, levels), color=color, linewidth=width, where="post")
        axes.set(title=f"{name}, environments: {len(common)}", ylim=(0, 1.02), xlim=(0, levels[-1]))
        axes.grid(alpha=0.3)
    figure.supxlabel("score: 0 the random policy, 1 the threshold")
    figure.supylabel("share of runs at or above it")
    return figure


def profile(rows: Sequence[Row], thresholds: Mapping[str, float], levels: np.ndarray) -> np.ndarray:
    """Computes the share of runs [L] whose score is at least each level [L], the mean over environments; NaN without any."""
    if not rows:
        return np.full(len(levels), np.nan)
    scores: dict[str, list[float]] = {}
    for row in rows:
        score = (row.returns[-1] - row.random_return) / (thresholds[row.env] - row.random_return)
        scores.setdefault(row.env, []).append(score)
    # A score that is the threshold itself may miss 1 by rounding.
    return np.mean([np.mean(np.array(own)[:, None] >= levels - 1e-9, axis=0) for own in scores.values()], axis=0)


def _panels(number: int, height: float) -> tuple[Figure, list]:
    """Makes a figure with a panel for each of so many, and hides those that are left over."""
    lines = -(-number // _WIDE)
    figure = Figure(figsize=(13, 1 + height * lines), layout="constrained")
    panels = list(figure.subplots(lines, min(number, _WIDE), squeeze=False).flat)
    for axes in panels[number:]:
        axes.set_visible(False)
    return figure, panels
