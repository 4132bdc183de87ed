"""Do DQN and PQN learn an Atari game and a CHIP-8 game from pixels, on a CPU, in less than half an hour a seed?

    python experiments/studies/arcade.py                            # trains every seed without a row, then draws
    python experiments/studies/arcade.py --games Boxing --algorithms pqn --seeds 1   # one of them: they may run side by side
    python experiments/studies/arcade.py --only-draw                # draws again from the committed rows

Boxing at 42 x 42 bytes, with actors and a learner on threads; pong of octax, inside the program. Beside them an agent that acts
at random, and the best of those that always take the same action. Needs the extras atari and octax.
"""

import csv
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from matplotlib.figure import Figure

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, DataParallelExperiment, Experiment, NetworkConfig, RunnerConfig
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.compiled import keep_compiled
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.records import read_metrics
from dqn_jax.runner.scoreboard import Row, add_origin, append_rows, digest_of, read_rows

RESULTS = Path(__file__).parents[1] / "results" / "arcade"
SEEDS = (0, 1, 2)
BASELINE_EPISODES = 30
AGENT = AgentConfig(
    num_envs=16,
    updates_per_step=4,
    batch_size=32,
    replay_capacity=100_000,
    learning_starts=5_000,
    learning_rate=3e-4,
    n_step=3,
    double_q=True,
    target_period=1_000,
    epsilon_end=0.02,
    epsilon_decay_frames=50_000,
    loss="huber:1",
)
"""Chosen by hand, on one run of each game with seed 100."""
PQN = dataclasses.replace(
    AGENT,
    memory="rollout",
    return_lambda=0.65,
    acts_per_step=32,
    batch_size=64,
    updates_per_step=16,
    learning_starts=0,
    n_step=1,
    double_q=False,
    optimizer="radam",
    max_grad_norm=10.0,
    learning_rate_decay_updates=300_000 // 512 * 16,
)
"""The same rate and exploration; two epochs, and lambda as in Gallici et al. (2025). Not chosen by any run."""
RUNNER = RunnerConfig(log_every=5_000, eval_every=50_000, eval_episodes=10, eval_epsilon=0.01, checkpoint_every=10_000_000)
COMMON: dict[str, Any] = {"num_seeds": 1, "num_devices": 1, "agent": AGENT, "runner": RUNNER, "total_frames": 300_000}
GAMES: dict[str, Experiment] = {
    "Boxing": ActorLearnerExperiment(
        env="atari:Boxing",
        env_kwargs=("img_height=42", "img_width=42"),
        network=NetworkConfig(trunk="nature", channels=16, hidden_sizes=(128,)),
        actors=ActorLearnerConfig(num_actors=2, exploration="shared"),
        **COMMON,
    ),
    "pong": DataParallelExperiment(env="octax:pong", network=NetworkConfig(trunk="mlp", hidden_sizes=(128,)), **COMMON),
}


LEARNERS = ("dqn", "pqn")


def config_of(game: str, algorithm: str) -> Experiment:
    """Returns what an algorithm trains in a game."""
    config = GAMES[game]
    if algorithm == "dqn":
        return config
    return dataclasses.replace(config, agent=PQN, network=dataclasses.replace(config.network, layer_norm=True))


def main(
    games: tuple[str, ...] = tuple(GAMES),
    algorithms: tuple[str, ...] = LEARNERS,
    seeds: tuple[int, ...] = SEEDS,
    only_draw: bool = False,
) -> None:
    """Trains what has no row, then draws.

    Args:
      games: games to train in.
      algorithms: who is trained.
      seeds: seeds to train.
      only_draw: draw again from the committed rows.
    """
    if not only_draw:
        keep_compiled(True)
        runtime.setup(1)
        add_origin(RESULTS / "origins.json")
        for game in games:
            if game not in baselines():
                append_baselines(game)
            for algorithm in algorithms:
                for seed in seeds:
                    if seed not in [row.seed for row in rows_of(game, algorithm)]:
                        append_rows(RESULTS / "rows.csv", [train(game, algorithm, seed)])
    draw()


def settings_of(game: str, algorithm: str) -> str:
    """Returns the digest of what an algorithm trains in a game."""
    fields = config_dict(config_of(game, algorithm))
    return digest_of({name: fields[name] for name in ("env", "env_kwargs", "total_frames", "agent", "network")})


def rows_of(game: str, algorithm: str) -> list[Row]:
    """Reads the rows of an algorithm in a game as it is trained today."""
    wanted = (algorithm, game, settings_of(game, algorithm))
    return [row for row in read_rows(RESULTS / "rows.csv") if (row.algorithm, row.env, row.settings) == wanted]


def train(game: str, algorithm: str, seed: int) -> Row:
    """Trains one seed, in a run directory that is thrown away."""
    from dqn_jax.runner import loop

    with tempfile.TemporaryDirectory() as run_dir:
        config = dataclasses.replace(config_of(game, algorithm), seed=seed, run_dir=Path(run_dir))
        loop.run(*parts_of(config))
        lines = [line for line in read_metrics(config.run_dir) if line["eval_return"] is not None]
    frames, returns, seconds = ([line[name] for line in lines] for name in ("frames", "eval_return", "wall_seconds"))
    updates = [np.ravel(line["updates"])[0] for line in lines]
    at_random = baselines()[game]["random"]
    final = [value[0] for value in returns]
    print(f"{game}, {algorithm}, seed {seed}: {final}", flush=True)
    rate = config.agent.learning_rate
    return Row(
        algorithm,
        game,
        settings_of(game, algorithm),
        rate,
        seed,
        at_random,
        *(tuple(x) for x in (frames, updates, seconds, final)),
    )


def parts_of(config: Experiment) -> tuple[Any, Experiment, Any]:
    """Builds what `loop.run` takes."""
    from dqn_jax.commands.workers import start
    from dqn_jax.distributed import actor_learner, actors, data_parallel

    if isinstance(config, ActorLearnerExperiment):
        engine = start(config, actors.make_job, config.actors.num_actors)
        driver, evaluator = actor_learner.from_config(config, engine)
    else:
        assert isinstance(config, DataParallelExperiment)
        driver, evaluator = data_parallel.from_config(config)
    return driver, config, evaluator


def append_baselines(game: str) -> None:
    """Plays at random, and with every action alone."""
    import jax
    import jax.numpy as jnp

    from dqn_jax.envs import env_of, eval_env_of
    from dqn_jax.evaluation import make_evaluate, stepping
    from dqn_jax.networks import Network, QValues

    config = GAMES[game]
    env = eval_env_of(config, env_of(config, on_host=True))

    def mean_return(network: Network, epsilon: float) -> float:
        evaluate = make_evaluate(env, network, BASELINE_EPISODES, epsilon=epsilon)
        play: Callable[..., Any] = stepping(env).over_seeds(lambda key: evaluate(key, {}).returns)
        return float(np.mean(play(jax.random.key(0)[None])))

    def always(action: int) -> Network:
        return Network(lambda key: {}, lambda *_: QValues(jax.nn.one_hot(action, env.spec.num_actions, dtype=jnp.float32)))

    returns = {"random": mean_return(always(0), 1.0)}
    returns |= {str(action): mean_return(always(action), 0.0) for action in range(env.spec.num_actions)}
    path = RESULTS / "baselines.csv"
    begun = path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not begun:
            writer.writerow(("game", "policy", "return"))
        writer.writerows([game, policy, f"{value:.6g}"] for policy, value in returns.items())


def baselines() -> dict[str, dict[str, float]]:
    """Reads the mean returns by game and policy: "random", or the number of the action that is always taken."""
    found: dict[str, dict[str, float]] = {}
    path = RESULTS / "baselines.csv"
    if path.exists():
        with open(path, newline="") as file:
            for line in csv.DictReader(file):
                found.setdefault(line["game"], {})[line["policy"]] = float(line["return"])
    return found


def summary() -> dict[str, dict[str, Any]]:
    """Returns what the page says of each game: the baselines, and every seed's last return and minutes with each algorithm."""

    def of(rows: list[Row]) -> dict[str, list[float]]:
        return {"final_returns": [row.returns[-1] for row in rows], "minutes": [row.seconds[-1] / 60 for row in rows]}

    return {
        game: {
            "random": policies["random"],
            "best_action": max(value for policy, value in policies.items() if policy != "random"),
            **{algorithm: of(rows) for algorithm in LEARNERS if (rows := rows_of(game, algorithm))},
        }
        for game, policies in baselines().items()
    }


def draw() -> None:
    """Writes the summary and the figure: every seed of every game, beside the baselines."""
    known = [game for game in baselines() if any(rows_of(game, algorithm) for algorithm in LEARNERS)]
    (RESULTS / "summary.json").write_text(json.dumps(summary(), indent=2) + "\n")
    figure = Figure(figsize=(4.5 * max(1, len(known)), 3.4), layout="constrained")
    for axes, game in zip(np.atleast_1d(figure.subplots(1, max(1, len(known)))), known, strict=False):
        for color, algorithm in zip(("C0", "C2"), LEARNERS, strict=True):
            for row in rows_of(game, algorithm):
                label = f"{algorithm}, each seed" if row.seed == 0 else ""
                axes.plot(np.array(row.frames) / 1_000, row.returns, color=color, marker=".", label=label)
        policies = baselines()[game]
        axes.axhline(policies["random"], color="C7", linestyle=":", label="at random")
        best = max(value for policy, value in policies.items() if policy != "random")
        axes.axhline(best, color="C1", linestyle="--", label="best constant action")
        axes.set(title=game, xlabel="frames of the agent, thousands", ylabel="return, 10 episodes")
        axes.legend(frameon=False)
    figure.savefig(RESULTS / "arcade.png", dpi=120)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
