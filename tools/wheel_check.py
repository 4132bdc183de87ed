"""Trains by the Python lines of a README, for a moment, and imports every module of the package that is installed."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

from dqn_jax.config import RunnerConfig


def training_lines(readme: str) -> str:
    """The first Python block that says for how many frames, with 2,000."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "total_frames=" in block)
    return re.sub(r"total_frames=[\d_]+", "total_frames=2_000, runner=RunnerConfig(log_every=1_000)", block)


def main() -> None:
    """Trains in the current directory, first of all: some modules start jax when they are imported."""
    lines: dict = {"RunnerConfig": RunnerConfig}
    exec(training_lines(Path(sys.argv[1]).read_text()), lines)
    print(f"{lines['summary']['env_steps']:,} frames of all seeds")
    import dqn_jax

    for module in pkgutil.walk_packages(dqn_jax.__path__, "dqn_jax."):
        importlib.import_module(module.name)


if __name__ == "__main__":
    main()
