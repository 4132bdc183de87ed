"""The main of exporting what was trained, parameters and config alone: `dqn-jax export RUN_DIR FILE`."""

import dataclasses
from pathlib import Path

import tyro

from dqn_jax import runtime
from dqn_jax.runner.command_line import exit_code_of


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """From where to where."""

    source: tyro.conf.Positional[Path]
    """Run directory."""
    file: tyro.conf.Positional[Path]
    """File to write; dqn_jax.load and dqn-jax play read it."""


def copy() -> None:
    """Parses arguments, and copies the policy of the newest checkpoint."""
    options = tyro.cli(ExportOptions, description="Writes what was trained, parameters and config alone, to one file.")
    runtime.setup(1)
    # Not at the top: these start jax.
    from dqn_jax.play.load import policy_file
    from dqn_jax.runner.policy import copy_policy

    policy = copy_policy(policy_file(options.source), options.file)
    print(f"{options.file}: {len(policy.arrays)} arrays of parameters, and the config")


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(copy)
