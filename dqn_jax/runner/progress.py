"""The display of a run's progress: a live bar in a terminal, one line per evaluation elsewhere. Not here: files."""

from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dqn_jax.config import Record
from dqn_jax.runner import peers


class Display:
    """Shows metrics lines as they come; only the first of several processes does."""

    def __init__(self, budget: int, done: int, unit: str, console: Console | None = None) -> None:
        self.console = console or Console(quiet=not peers.is_first())
        self.budget, self.unit = budget, unit
        self._progress = Progress(
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
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
        """Shows one line of metrics."""
        rate = line["env_steps_per_second"]
        speed = "compiled" if rate is None else f"{rate:,.0f} frames/s"
        done = line[self.unit]
        text = f"{done:,}/{self.budget:,} {self.unit}  {speed}  {_describe(line)}"
        self._progress.update(self._task, completed=min(done, self.budget), text=text)
        if line["eval_return"] is not None and not self.console.is_terminal:
            self.say(text)


def _describe(line: Record) -> str:
    parts = [f"return {_mean(line['return'])}", f"loss {_mean(line['loss'], 3)}", f"epsilon {_mean(line['epsilon'], 2)}"]
    if line["eval_return"] is not None:
        parts.append(f"greedy return {_mean(line['eval_return'])}")
    if np.sum(line.get("left_out", 0)):
        parts.append(f"left out {np.sum(line['left_out'])} update(s)")
    return "  ".join(parts)


def _mean(values: np.ndarray, digits: int = 1) -> str:
    known = np.asarray(values)[np.isfinite(values)]
    return f"{known.mean():.{digits}f}" if len(known) else "-"
