"""Four clients that see one image game differently: does one policy do for all, or does each need a head of its own?

    python experiments/studies/image_clients.py                     # tunes and trains every arm without rows, then draws
    python experiments/studies/image_clients.py --arms federated    # one of them
    python experiments/studies/image_clients.py --only-draw         # draws again from the committed rows

Breakout of MinAtar, as it is, mirrored, dimmed, and with actions that stick (wrapper view). Arms: one policy of all, and a
trunk of all with a head of each client. Afterwards every policy plays every client's game: who plays what how well.
"""

import csv
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from dqn_jax import runtime
from dqn_jax.commands.cells import Cell, Lane, train, tune
from dqn_jax.config import AgentConfig, NetworkConfig, RunnerConfig
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.records import read_metrics, read_returns
from dqn_jax.runner.scoreboard import Row, add_origin, digest_of, read_rows

RESULTS = Path(__file__).parents[1] / "results" / "image_clients"
MATRIX = ("arm", "settings", "learning_rate", "seed", "policy", "view", "return")
VIEWS = ("as it is", "mirrored", "dimmed", "sticky")
"""The clients, in the order of the distribution `views`."""
ENV = "Breakout-MinAtar"
SEEDS, TUNING_SEEDS = range(5), range(1_000, 1_002)
RATES = (3e-4, 1e-3, 3e-3)
EPISODES = 30
ARMS: dict[str, dict[str, Any]] = {
    "federated": {},
    "own heads": {"personal": "head"},
}
BASE = FederatedExperiment(
    env=ENV,
    wrappers=("view",),
    rounds=100,
    num_devices=1,
    agent=AgentConfig(
        num_envs=16,
        updates_per_step=2,
        batch_size=32,
        replay_capacity=100_000,
        learning_starts=5_000,
        target_period=500,
        epsilon_end=0.05,
        epsilon_decay_frames=50_000,
    ),
    network=NetworkConfig(hidden_sizes=(128,)),
    runner=RunnerConfig(log_every=10, eval_every=10, eval_episodes=EPISODES, checkpoint_every=1_000),
)
"""Rounds of 1,600 frames and 200 updates a client; the agent of the scoreboard, but for faster decay of exploration."""


def main(arms: tuple[str, ...] = tuple(ARMS), only_draw: bool = False) -> None:
    """Tunes and trains the arms, then draws.

    Args:
      arms: arms to train.
      only_draw: draw again from the committed rows.
    """
    if not only_draw:
        keep_compiled(True)
        runtime.setup(1)
        add_origin(RESULTS / "origins.json")
        for cell in map(cell_of, arms):
            rate = tune(cell, RESULTS / "tuning.csv", train_clients, RATES, TUNING_SEEDS)
            train(cell, [(rate, seed) for seed in SEEDS], RESULTS / "rows.csv", train_clients)
    draw()


def config_of(arm: str) -> FederatedExperiment:
    """Returns what an arm trains."""
    federated = FederatedConfig(num_clients=len(VIEWS), local_steps=100, heterogeneity="views", unseen_envs=0, **ARMS[arm])
    return dataclasses.replace(BASE, federated=federated)


def cell_of(arm: str) -> Cell:
    """Returns the cell of an arm."""
    config = config_of(arm)
    fields = config_dict(config)
    names = ("env", "wrappers", "rounds", "agent", "network", "federated")
    return Cell(arm, ENV, config, digest_of({name: fields[name] for name in names}))


def train_clients(cell: Cell, lanes: Sequence[Lane]) -> list[Row]:
    """Trains lanes, those of one learning rate together, and lets every policy play every client's game, but while tuning."""
    rates = sorted({rate for rate, _ in lanes})
    return [row for rate in rates for row in _train(cell, rate, [seed for own, seed in lanes if own == rate])]


def _train(cell: Cell, rate: float, seeds: list[int]) -> list[Row]:
    from dqn_jax.federated.driver import from_config
    from dqn_jax.runner.loop import run

    with tempfile.TemporaryDirectory() as run_dir:
        agent = dataclasses.replace(BASE.agent, learning_rate=rate)
        config = dataclasses.replace(
            config_of(cell.arm), seed=seeds[0], num_seeds=len(seeds), run_dir=Path(run_dir), agent=agent
        )
        assert list(config.seeds) == seeds
        driver, evaluator = from_config(config)
        run(driver, config, evaluator)
        lines = [line for line in read_metrics(config.run_dir) if line["eval_return"] is not None]
        own = own_returns(config)
        if seeds[0] in SEEDS:
            _append_matrix(cell, rate, config)
    frames, updates = (tuple(float(np.ravel(line[name])[0]) for line in lines) for name in ("frames", "updates"))
    seconds = tuple(line["wall_seconds"] / len(seeds) for line in lines)
    return [
        Row(cell.arm, ENV, cell.settings, rate, seed, np.nan, frames, updates, seconds, tuple(curve))
        for seed, curve in zip(seeds, own, strict=True)
    ]


def own_returns(config: FederatedExperiment) -> list[list[float]]:
    """Reads what clients reach at their own games with what they are served: means over them [S][T]."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in read_returns(config.run_dir):
        if row["split"] == "seen":
            found.setdefault((row["seed"], row["rounds"]), []).append(row["return"])
    return [[float(np.mean(x)) for (of, _), x in sorted(found.items()) if of == seed] for seed in config.seeds]


def _append_matrix(cell: Cell, rate: float, config: FederatedExperiment) -> None:
    """Plays: each policy of each seed, in the game of every client."""
    import jax

    from dqn_jax.evaluation import make_evaluate
    from dqn_jax.federated.heterogeneity import draw_envs
    from dqn_jax.play.load import load

    begun = (RESULTS / "matrix.csv").exists()
    with open(RESULTS / "matrix.csv", "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not begun:
            writer.writerow(MATRIX)
        for seed in config.seeds:
            for policy in policies_of(cell.arm):
                loaded = load(config.run_dir, seed, VIEWS.index(policy) if policy in VIEWS else None)
                envs = draw_envs(loaded.env, "views", 0, len(VIEWS), 0).seen
                play = jax.vmap(make_evaluate(loaded.env, loaded.network, EPISODES), in_axes=(0, None, 0))
                result = jax.jit(play)(jax.random.split(loaded.key, len(VIEWS)), loaded.params, envs)
                for view, value in zip(VIEWS, np.mean(result.returns, axis=1), strict=True):
                    writer.writerow([cell.arm, cell.settings, rate, seed, policy, view, f"{value:.6g}"])


def policies_of(arm: str) -> tuple[str, ...]:
    """Returns the policies that an arm makes: one, or one of each client."""
    return ("everybody's",) if arm == "federated" else VIEWS


def matrix_of(arm: str) -> np.ndarray:
    """Reads the final returns of an arm [S, policies, views]; S is 0 where it was not trained."""
    places, views = policies_of(arm), len(VIEWS)
    path = RESULTS / "matrix.csv"
    lines = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    own = [line for line in lines if (line["arm"], line["settings"]) == (arm, cell_of(arm).settings)]
    returns = {(int(line["seed"]), line["policy"], line["view"]): float(line["return"]) for line in own}
    seeds = sorted({seed for seed, _, _ in returns})
    values = [returns[seed, policy, view] for seed in seeds for policy in places for view in VIEWS]
    return np.reshape(values, (len(seeds), len(places), views))


def at_home(arm: str) -> np.ndarray:
    """Returns the final returns of an arm [S, views]: each client with what it is served."""
    matrix = matrix_of(arm)
    return matrix[:, 0] if matrix.shape[1] == 1 else np.diagonal(matrix, axis1=1, axis2=2)


def rows_of(arm: str) -> list[Row]:
    """Reads the rows of an arm as it is trained today."""
    return [row for row in read_rows(RESULTS / "rows.csv") if (row.algorithm, row.settings) == (arm, cell_of(arm).settings)]


def summary() -> dict[str, Any]:
    """Returns what the page says: of each arm its learning rate, every seed's mean over clients, each client's mean."""
    trained = [arm for arm in ARMS if rows_of(arm)]
    return {
        arm: {
            "learning_rate": rows_of(arm)[0].learning_rate,
            "seeds": at_home(arm).mean(axis=1).tolist(),
            "clients": dict(zip(VIEWS, at_home(arm).mean(axis=0).tolist(), strict=True)),
        }
        for arm in trained
    }


def draw() -> None:
    """Writes the summary and the figure: curves of every seed, and a heat map of each arm."""
    (RESULTS / "summary.json").write_text(json.dumps(summary(), indent=2) + "\n")
    figure = Figure(figsize=(4 + 3.4 * len(ARMS), 3.6), layout="constrained")
    first, *maps = figure.subplots(1, 1 + len(ARMS), width_ratios=(1.3, *[1] * len(ARMS)))
    highest = max((float(matrix_of(arm).mean(axis=0).max()) for arm in summary()), default=1.0)
    for color, arm in enumerate(ARMS):
        for row in rows_of(arm):
            label = arm if row.seed == SEEDS[0] else ""
            first.plot(np.array(row.frames) / 1e3 / len(VIEWS), row.returns, f"C{color}", alpha=0.7, label=label)
    first.set(xlabel="frames of a client, thousands", ylabel="return at its own game", title="mean of clients, each seed")
    first.legend(frameon=False)
    for axes, arm in zip(maps, ARMS, strict=True):
        matrix = matrix_of(arm)
        axes.set(title=arm, xlabel="plays")
        axes.set_xticks(range(len(VIEWS)), VIEWS, rotation=30)
        axes.set_yticks(range(matrix.shape[1]), policies_of(arm))
        if len(matrix):
            mean = matrix.mean(axis=0)
            axes.imshow(mean, vmin=0, vmax=highest, cmap="viridis")
            for (row, column), value in np.ndenumerate(mean):
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="w" if value < highest / 2 else "k")
    maps[0].set_ylabel("policy")
    figure.savefig(RESULTS / "image_clients.png", dpi=120)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
