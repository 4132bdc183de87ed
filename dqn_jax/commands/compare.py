"""The command that compares runs by their files: `dqn-jax compare runs/a runs/b --out compare.png`."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import tyro

from dqn_jax import runtime
from dqn_jax.config import Experiment, InputError, Record
from dqn_jax.runner.command_line import exit_code_of, options
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.runner.config_file import CONFIG, with_values

EPISODES, REPETITIONS = 32, 8
"""Episodes that a random policy plays side by side, and how often: in a federation, once in each client's environment."""


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """What is compared."""

    run_dirs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN_DIR...")] = ()
    """Directories of runs in one environment, finished or not."""
    out: Path = Path("compare.png")
    """Figure to write; the table is written beside it, as .csv."""
    threshold: float | None = None
    """Greedy return to reach; None takes each run's own --runner.threshold."""


def compare() -> None:
    """Reads the runs, plays a random policy in their environments, and writes and prints the comparison."""
    chosen = options(CompareOptions(), "Compares runs: learning curves over frames, updates and time, and a table.")
    from dqn_jax.runner.compare import draw_runs, load_runs, table_of, write_table
    from dqn_jax.runner.plots import save

    runs = load_runs(chosen.run_dirs)
    keep_compiled(True)
    runtime.setup(1)
    rows = table_of(runs, chosen.threshold, random_returns([run.config for run in runs]))
    save(draw_runs(runs), chosen.out)
    write_table(rows, chosen.out.with_suffix(".csv"))
    print_rows(rows)
    print(chosen.out, chosen.out.with_suffix(".csv"), sep="\n")


def random_returns(configs: list[Record]) -> list[float | None]:
    """Plays at random in the environment of each config: mean returns, None and a line on stderr where it cannot be made."""
    from dqn_jax.runner.compare import environment_of

    known: dict[str, float | None] = {}
    played = []
    for config in configs:
        place = json.dumps([environment_of(config), config["num_seeds"]])
        if place not in known:
            try:
                known[place] = random_return(config)
            except InputError as error:
                known[place] = None
                print(f"no random policy was played, so late collapse is not known: {error}", file=sys.stderr)
        played.append(known[place])
    return played


def random_return(record: Record) -> float:
    """Plays whole episodes at random where a run's evaluations are played, and returns their mean return.

    Args:
      record: the run's config, as its file has it.

    Raises:
      InputError: where the environment cannot be made.
    """
    # Not at the top: these start jax.
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dqn_jax.envs import env_of, eval_env_of
    from dqn_jax.evaluation import make_evaluate, stepping
    from dqn_jax.federated.config import FederatedConfig
    from dqn_jax.federated.heterogeneity import draw_all
    from dqn_jax.networks import Network, QValues
    from dqn_jax.types import Params

    names = ("env", "env_kwargs", "wrappers", "max_episode_steps")
    values = {name: record[name] for name in names if name in record}
    runner = {"eval_wrappers": record.get("runner", {}).get("eval_wrappers")}
    config = with_values(Experiment(), values | {"runner": runner}, CONFIG)
    env = env_of(config, on_host=True)
    if "federated" in record:
        names = ("num_clients", "heterogeneity", "heterogeneity_level", "env_seed")
        values = {name: record["federated"][name] for name in names if name in record["federated"]}
        clients = with_values(FederatedConfig(), values | {"unseen_envs": 0}, CONFIG)
        count = record["num_seeds"] * clients.num_clients
        params = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), draw_all(env, clients, record["num_seeds"]).seen)
    else:
        count = REPETITIONS
        params = jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), env.params)
    env = eval_env_of(config, env)

    def ignored(params: Params, obs: jax.Array, key: jax.Array | None, carry: object = None) -> QValues:
        return QValues(jnp.zeros(env.spec.num_actions))

    evaluate = make_evaluate(env, Network(lambda key: {}, ignored), EPISODES, epsilon=1.0)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), jnp.arange(count))
    play = stepping(env).over_seeds(lambda key, params: evaluate(key, {}, params).returns)
    return float(np.mean(play(keys, params)))


def print_rows(rows: list[Record]) -> None:
    """Prints the table, a column for each run, without the lines that no run has a value for."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column()
    for row in rows:
        table.add_column(row["run"], justify="right", overflow="fold")
    cells = [_cells(row) for row in rows]
    for name in cells[0]:
        values = [of[name] for of in cells]
        if set(values) != {"-"}:
            table.add_row(name, *values)
    # What is not a terminal has no width.
    console = Console()
    Console(width=None if console.is_terminal else 60 * (1 + len(rows))).print(table)


def _cells(row: Record) -> dict[str, str]:
    low, high = _short(row["final_ci95_low"]), _short(row["final_ci95_high"])
    return {
        "seeds": str(row["seeds"]),
        "final return, mean": _short(row["final_mean"]),
        "interquartile mean": _short(row["final_iqm"]),
        "95% interval": "-" if low == "-" else f"{low} to {high}",
        "area under the curve": _short(row["area"]),
        "threshold": _short(row["threshold"]),
        "reached by": _short(row["threshold_share"], "{:.0%}"),
        "frames to it": _short(row["frames_to_threshold"], "{:,.0f}"),
        "seconds to it": _short(row["seconds_to_threshold"]),
        "random policy": _short(row["random_return"]),
        "late collapse": _short(row["late_collapse"], "{:.0%}"),
    }


def _short(value: float | None, form: str = "") -> str:
    return "-" if value is None else (form or ("{:,.1f}" if abs(value) >= 10 else "{:.3g}")).format(value)


def main() -> int:
    """Runs the command and returns its exit status."""
    return exit_code_of(compare)
