"""Trains one seed of `dqn` and `rainbow` in each environment of the scoreboard, and exports what was learnt.

    python experiments/policies.py   # writes experiments/results/policies/ALGORITHM-ENV.npz, and their returns

Each file is what `dqn-jax export` writes: `dqn-jax play FILE` plays it, `dqn_jax.load(FILE)` gives its `act`.
"""

import dataclasses
import json
import sys
from pathlib import Path

from dqn_jax import runtime
from dqn_jax.commands.scoreboard import BUDGETS, cell_of, is_tuned
from dqn_jax.config import DataParallelExperiment
from dqn_jax.runner.command_line import exit_code_of, options
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.tuned import tuned_fields

ALGORITHMS = ("dqn", "rainbow")
INDEX = "returns.json"


@dataclasses.dataclass(frozen=True)
class Options:
    """Where the files go."""

    out: Path = Path(__file__).parent / "results" / "policies"
    """Directory; what is there already is not trained again."""


def main() -> None:
    """Trains what has no file yet, exports it, and writes the final greedy return of each."""
    out = options(Options(), "Trains and exports a seed of each algorithm in each environment.").out
    keep_compiled(True)
    runtime.setup(1)
    from dqn_jax.distributed.data_parallel import from_config
    from dqn_jax.play.load import policy_file
    from dqn_jax.runner.loop import run
    from dqn_jax.runner.policy import copy_policy

    out.mkdir(parents=True, exist_ok=True)
    index = out / INDEX
    returns = json.loads(index.read_text()) if index.exists() else {}
    for env, budget in BUDGETS.items():
        for algorithm in ALGORITHMS:
            file = out / f"{algorithm}-{env}.npz"
            if file.exists() or not is_tuned(algorithm, env):
                continue
            config = cell_of(algorithm, env).config
            assert isinstance(config, DataParallelExperiment)
            rate = tuned_fields(algorithm, budget.env)["agent.learning_rate"]
            agent = dataclasses.replace(config.agent, learning_rate=rate)
            periods = dataclasses.replace(config.runner, checkpoint_every=budget.frames)
            run_dir = Path("runs/policies") / file.stem
            config = dataclasses.replace(config, agent=agent, runner=periods, run_dir=run_dir, num_devices=1, resume=True)
            driver, evaluator = from_config(config)
            summary = run(driver, config, evaluator)
            copy_policy(policy_file(run_dir), file)
            returns[file.name] = summary["final_returns"][0]
            index.write_text(json.dumps(returns, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
