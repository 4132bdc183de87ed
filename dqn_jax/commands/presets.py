"""The command that lists the configs to start from."""

import importlib

from dqn_jax.commands.__main__ import TRAIN
from dqn_jax.config import Experiment
from dqn_jax.runner.command_line import NoFlags, exit_code_of, options


def show() -> None:
    """Prints each job's presets: environment, length and what for."""
    options(NoFlags(), "Lists the presets of every job; dqn-jax train JOB --preset NAME starts from one.")
    for job in TRAIN:
        presets = getattr(importlib.import_module(f"dqn_jax.commands.{job.replace('-', '_')}"), "PRESETS", {})
        for number, (name, config) in enumerate(presets.items()):
            print(f"train {job:18s}{name + (' (default)' if number == 0 else ''):26s}{_words(config)}")


def _words(config: Experiment) -> str:
    unit = "rounds" if hasattr(config, "rounds") else "frames"
    return f"{config.env}, {config.budget:,} {unit}, {config.num_seeds} seed(s)"


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(show)
