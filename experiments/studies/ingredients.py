"""What is each part of Rainbow for, and what are DQN's replay and target for? On CartPole and Acrobot.

    python experiments/studies/ingredients.py               # tunes and trains every arm, then draws
    python experiments/studies/ingredients.py --only-draw   # draws again from the committed rows

Rainbow without one of its parts at a time; DQN without replay, and with its target copied every C updates. Every arm has the
learning rate with the best returns on tuning seeds. Beside the return, how far a policy overestimates itself: the value that
its network gives the state an episode begins in, less the discounted return that the episode then has.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from dqn_jax import runtime
from dqn_jax.algorithms import fields_of
from dqn_jax.commands.cells import Cell, make_cell, train_together, tune, without_row
from dqn_jax.commands.scoreboard import BUDGETS
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.runner.scoreboard import Row, add_origin, append_rows, paired, paired_text, read_rows
from dqn_jax.tuned import shared_fields

ENVS = ("CartPole", "Acrobot")
SEEDS = range(10)
EPISODES = 200
RESULTS = Path(__file__).parents[1] / "results" / "ingredients"
_EXPLORES = {"network.noisy": False, "agent.exploration": "epsilon-greedy"}
WITHOUT: dict[str, dict[str, Any]] = {
    "rainbow": {},
    "without double": {"agent.double_q": False},
    "without dueling": {"network.head": "categorical"},
    "without n_step": {"agent.n_step": 1},
    "without prioritised": {"agent.memory": "uniform"},
    "without noisy": _EXPLORES,
    "without c51": {"agent.loss": "squared", "network.head": "dueling"},
}
"""What is set instead; the support of C51 comes after its head's name."""
DQN: dict[str, dict[str, Any]] = {
    **{f"C = {period}": {"agent.target_period": period} for period in (1, 10, 100, 1000)},
    "double, C = 100": {"agent.target_period": 100, "agent.double_q": True},
    "no replay, C = 100": {"agent.target_period": 100, "agent.memory": "newest"},
}
ARMS = {**{arm: ("rainbow", fields) for arm, fields in WITHOUT.items()}, **{arm: ("dqn", own) for arm, own in DQN.items()}}
VALUES = ("arm", "env", "settings", "seed", "predicted", "discounted")


def main(envs: tuple[str, ...] = ENVS, arms: tuple[str, ...] = tuple(ARMS), only_draw: bool = False) -> None:
    """Tunes and trains every arm, then draws.

    Args:
      envs: environments to train in.
      arms: arms to train.
      only_draw: draw again from the committed rows.
    """
    if not only_draw:
        keep_compiled(True)
        runtime.setup(None)
        add_origin(RESULTS / "origins.json")
        for env in envs:
            for arm in arms:
                report(cell_of(arm, env))
    draw()


def cell_of(arm: str, env: str) -> Cell:
    """Returns the cell of an arm: the settings that its algorithm shares with all in that environment, and its own."""
    algorithm, own = ARMS[arm]
    budget = BUDGETS[env]
    fields = {"env": budget.env, "env_kwargs": budget.env_kwargs, "total_frames": budget.frames}
    fields |= shared_fields(algorithm, budget.env) | own
    if fields["network.head"] == "categorical":
        fields["network.head"] = fields_of("c51", budget.env)["network.head"]
    return make_cell(arm, env, fields)


def report(cell: Cell) -> None:
    """Tunes a cell, trains its seeds that have no row, and measures their values."""
    rate = tune(cell, RESULTS / "tuning.csv")
    lanes = without_row(cell, [(rate, seed) for seed in SEEDS], RESULTS / "rows.csv")
    if lanes:
        rows, curves = train_together(cell, lanes)
        predicted, discounted = values_of(cell, [seed for _, seed in lanes], curves.params)
        _append_values(rows, predicted, discounted)
        append_rows(RESULTS / "rows.csv", rows)


def values_of(cell: Cell, seeds: list[int], params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Measures, for parameters [S, ...]: (values of the first states, discounted returns from them), means [S]."""
    import jax
    import jax.numpy as jnp

    from dqn_jax.build import build
    from dqn_jax.evaluation import make_evaluate, stepping
    from dqn_jax.mapping import evaluation_key

    env, network = build(cell.config)
    evaluate = make_evaluate(env, network, EPISODES, discount=cell.config.agent.discount)

    def one(key: jax.Array, params: Any) -> tuple[jax.Array, jax.Array]:
        # The streams of the evaluation's episodes, so the states that they begin in.
        streams = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(EPISODES))
        _, obs = stepping(env).reset(streams, env.params)
        q_values = jax.vmap(lambda obs: network.apply(params, obs, None).q_values)(obs)
        return jnp.mean(jnp.max(q_values, axis=1)), jnp.mean(evaluate(key, params).returns)

    keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(seeds), 0)
    predicted, discounted = jax.jit(jax.vmap(one))(keys, params)
    return np.asarray(predicted), np.asarray(discounted)


def _append_values(rows: list[Row], predicted: np.ndarray, discounted: np.ndarray) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "values.csv"
    begun = path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not begun:
            writer.writerow(VALUES)
        for row, value, got in zip(rows, predicted, discounted, strict=True):
            writer.writerow([row.algorithm, row.env, row.settings, row.seed, f"{value:.6g}", f"{got:.6g}"])


def final_rows(env: str, arm: str) -> list[Row]:
    """Reads the rows of an arm's cell as it is today."""
    settings = cell_of(arm, env).settings
    return [row for row in read_rows(RESULTS / "rows.csv") if (row.algorithm, row.env, row.settings) == (arm, env, settings)]


def overestimates(env: str, arm: str) -> list[float]:
    """Reads by how much each seed of an arm overestimates."""
    settings = cell_of(arm, env).settings
    with open(RESULTS / "values.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["arm"], line["env"]) == (arm, env)]
    return [float(line["predicted"]) - float(line["discounted"]) for line in lines if line["settings"] == settings]


def base_of(arm: str) -> str:
    """Returns the arm that another is compared with."""
    return "rainbow" if arm in WITHOUT else "C = 100"


def table() -> str:
    """Writes what each arm reached, its difference from the arm that it changes, and by how much it overestimates."""
    parts = []
    for env in ENVS:
        lines = [
            f"## {env}\n",
            "| arm | learning rate | seeds | final return | difference | overestimate |",
            "|---|---|---|---|---|---|",
        ]
        for arm in ARMS:
            rows, base = final_rows(env, arm), base_of(arm)
            if not rows:
                lines.append(f"| {arm} | not trained so far | | | | |")
                continue
            difference = None if arm == base else paired(rows, final_rows(env, base))
            final, over = (np.mean(x) for x in ([row.returns[-1] for row in rows], overestimates(env, arm)))
            cells = [arm, f"{rows[0].learning_rate:g}", str(len(rows)), f"{final:.1f}", paired_text(difference), f"{over:.3g}"]
            lines.append("| " + " | ".join(cells) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def draw() -> None:
    """Writes the table, and draws final returns and overestimates of every arm: a dot a seed, the bar their mean."""
    (RESULTS / "table.md").write_text(table())
    figure = Figure(figsize=(12, 3.3 * len(ENVS)), layout="constrained")
    for (left, right), env in zip(figure.subplots(len(ENVS), 2, sharey=True, squeeze=False), ENVS, strict=True):
        for height, arm in enumerate(ARMS):
            finals = [row.returns[-1] for row in final_rows(env, arm)]
            for axes, numbers in ((left, finals), (right, overestimates(env, arm))):
                axes.plot(numbers, [height] * len(numbers), "o", color="tab:blue", alpha=0.4, markersize=4)
                if numbers:
                    axes.plot(np.mean(numbers), height, "|", color="black", markersize=11)
        left.set_yticks(range(len(ARMS)), ARMS)
        left.set(title=env, xlabel="final greedy return", ylim=(len(ARMS) - 0.5, -0.5))
        right.set(title=env, xlabel="value of an episode's first state, less its discounted return")
        right.axvline(0, color="0.5", linewidth=1)
        for axes in (left, right):
            axes.axhline(len(WITHOUT) - 0.5, color="0.5", linewidth=1)
            axes.grid(alpha=0.3)
    figure.savefig(RESULTS / "ingredients.png", dpi=150)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
