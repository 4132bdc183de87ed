"""The main of exporting what was trained, parameters and config alone: `dqn-jax export RUN_DIR FILE`."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from dqn_jax import runtime
from dqn_jax.runner.command_line import exit_code_of, options


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """From where to where."""

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")] = Path("runs/latest")
    """Run directory."""
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")] = Path("policy.npz")
    """File to write; dqn_jax.load and dqn-jax play read it."""


def copy() -> None:
    """Parses arguments, and copies the policy of the newest checkpoint."""
    chosen = options(ExportOptions(), "Writes what was trained, parameters and config alone, to one file.")
    runtime.setup(1)
    # Not at the top: these start jax.
    from dqn_jax.play.load import policy_file
    from dqn_jax.runner.policy import copy_policy

    policy = copy_policy(policy_file(chosen.source), chosen.file)
    print(f"{chosen.file}: {len(policy.arrays)} arrays of parameters, and the config")


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(copy)
