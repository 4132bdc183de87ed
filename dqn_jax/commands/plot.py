"""The command that draws the figures of a run again: `dqn-jax plot runs/quickstart`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from dqn_jax.runner.command_line import exit_code_of, options


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """What is drawn."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")] = Path("runs/latest")
    """Directory of a run, finished or not."""


def plot() -> None:
    """Draws the figures into the run's directory and prints their paths."""
    chosen = options(PlotOptions(), "Draws the figures of a run from its files, without training again.")
    from dqn_jax.runner.plots import draw_run

    print(*draw_run(chosen.run_dir), sep="\n")


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(plot)
