"""All jobs behind one name: `dqn-jax data_parallel --num-seeds 16`, or `python -m dqn_jax.commands data_parallel ...`."""

import importlib
import sys

JOBS = ("data_parallel", "parameter_server", "actor_learner", "federated", "reference", "plot", "compare")


def main() -> int:
    """Runs the job named by the first argument with the other arguments, and returns its exit status."""
    name = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else ""
    if name not in JOBS:
        print(f"usage: dqn-jax JOB [flags], JOB one of {', '.join(JOBS)}; dqn-jax JOB --help lists its flags", file=sys.stderr)
        return 2
    sys.argv = [f"dqn-jax {name}", *sys.argv[2:]]
    return importlib.import_module(f"dqn_jax.commands.{name}").main()


if __name__ == "__main__":
    sys.exit(main())
