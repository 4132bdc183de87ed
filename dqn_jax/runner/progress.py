"""The display of a run's progress: a live bar in a terminal, one line per evaluation elsewhere. Not here: files, clocks."""

import datetime
from pathlib import Path
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dqn_jax.config import Record
from dqn_jax.runner import peers

_GAP = "  "


class Display:
    """Shows metrics lines as they come; only the first of several processes does."""

    def __init__(self, budget: int, done: int, unit: str, console: Console | None = None) -> None:
        self.console = console or Console(quiet=not peers.is_first())
        self.budget, self.unit = budget, unit
        self._first: Record | None = None
        self._greedy: str | None = None
        self._bar_width = min(20, self.console.width // 8)
        self._progress = Progress(
            BarColumn(self._bar_width), TextColumn("{task.fields[text]}", markup=False), console=self.console
        )
        self._task = self._progress.add_task("train", total=budget, completed=done, text="compiling")

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def say(self, message: str) -> None:
        """Prints one line above the bar."""
        self.console.print(message, highlight=False, soft_wrap=True)

    def update(self, line: Record) -> None:
        """Shows one line of metrics: in a terminal as much of it as there is room for, the most important first."""
        if line["eval_return"] is not None:
            self._greedy = f"greedy return {_mean(line['eval_return'])}"
        parts = self._parts(line)
        room = self.console.width - self._bar_width - 1
        fitting = [part for n, part in enumerate(parts) if len(_GAP.join(parts[: n + 1])) <= room]
        done = min(line[self.unit], self.budget)
        self._progress.update(self._task, completed=done, text=_GAP.join(fitting))
        if line["eval_return"] is not None and not self.console.is_terminal:
            self.say(_GAP.join(parts))

    def _parts(self, line: Record) -> list[str]:
        """Describes a line: the last greedy return, or before there is one the training return, then all the rest."""
        rate = line["env_steps_per_second"]
        speed = "compiled" if rate is None else f"{rate:,.0f} frames/s"
        training = f"return {_mean(line['return'])}"
        returns = [self._greedy, training] if self._greedy else [training]
        parts = [returns[0], f"{self._remaining(line)} left", speed, *returns[1:]]
        if np.sum(line.get("left_out", 0)):
            parts.append(f"left out {np.sum(line['left_out'])} update(s)")
        parts.append(f"{line[self.unit]:,}/{self.budget:,} {self.unit}")
        return [*parts, f"loss {_mean(line['loss'], 3)}", f"epsilon {_mean(line['epsilon'], 2)}"]

    def _remaining(self, line: Record) -> str:
        """Estimates the time to the end from that since this start's first line, which waited for compilation."""
        self._first = self._first or line
        done = line[self.unit] - self._first[self.unit]
        if done == 0:
            return "-:--:--"
        seconds = line["wall_seconds"] - self._first["wall_seconds"]
        left = max(0, self.budget - line[self.unit])
        return str(datetime.timedelta(seconds=round(seconds / done * left)))


def describe_end(summary: Record, run_dir: Path) -> str:
    """Says how a run has ended, where its files are and how its policy is watched, in three lines.

    Args:
      summary: as `summary.json` has it.
      run_dir: the run's directory.
    """
    low, high = summary["final_return_ci95"]
    interval = "" if low is None else f", 95% interval [{low:.1f}, {high:.1f}]"
    seeds = len(summary["final_returns"])
    return (
        f"final greedy return {summary['final_return_mean']:.1f}{interval}, {seeds} seed(s)\n"
        f"files: {run_dir}\nwatch it: dqn-jax play {run_dir}"
    )


def _mean(values: np.ndarray, digits: int = 1) -> str:
    known = np.asarray(values)[np.isfinite(values)]
    return f"{known.mean():.{digits}f}" if len(known) else "-"
