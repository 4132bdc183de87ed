"""What should happen at a merge? Each choice against keeping everything, at equal numbers of updates.

    python experiments/studies/federated_merge_ablation.py                # trains every cell, then draws
    python experiments/studies/federated_merge_ablation.py --only-draw    # draws again from the committed rows

One choice is changed at a time, for K in {10, 100, 1000} and two levels of heterogeneity. The learning rate is chosen in every
cell by tuning seeds, which are not reported. Reported is the area under the curve of the server's parameters on unseen
environments from the training range, and the difference to keeping everything with the same seed and the same environments.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import tyro

from dqn_jax import runtime
from dqn_jax.config import Record
from dqn_jax.federated.config import FederatedConfig, MergeConfig
from dqn_jax.federated.presets import HETEROGENEOUS
from dqn_jax.runner.command_line import exit_code_of

KEEP = "keep everything"
CHOICES: dict[str, Record] = {
    KEEP: {},
    "moments: reset": {"moments": "reset"},
    "moments: average": {"moments": "average"},
    "target: copy of global": {"target": "global"},
    "target: average": {"target": "average"},
    "replay: clear": {"replay": "clear"},
    "epsilon: restart": {"epsilon": "restart"},
    "initial: per client": {"initial": "per_client"},
    "budget: episodes": {},
}
LOCAL_STEPS = (10, 100, 1000)
LEVELS = (0.25, 1.0)
RATES = (5e-4, 1e-3, 2e-3)
CLIENTS = 4
UPDATES = 4_000
EVALUATIONS = 4
EPISODE_STEPS = 100
"""Local steps for each episode of a budget in episodes."""
TUNING, REPORTING = range(2000, 2002), range(3000, 3006)
RESULTS = Path(__file__).parents[1] / "results"
ROWS, SUMMARY, FIGURE = (RESULTS / f"federated_merge_ablation.{kind}" for kind in ("csv", "json", "png"))
COLUMNS = ("choice", "local_steps", "level", "learning_rate", "seed", "area", "final", "updates", "frames")


def main(only_draw: bool = False) -> None:
    """Trains every cell, then draws.

    Args:
      only_draw: draw again from the committed rows.
    """
    if not only_draw:
        runtime.setup()
        train_all()
    with open(ROWS, newline="") as file:
        rows = [
            {name: value if name == "choice" else float(value) for name, value in row.items()} for row in csv.DictReader(file)
        ]
    effects = effects_of(rows)
    origin = json.loads(SUMMARY.read_text())
    SUMMARY.write_text(json.dumps(origin | {"effects": effects}, indent=2) + "\n")
    draw(effects)


def train_all() -> None:
    """Trains the cells that have no rows yet, so that a stopped run goes on."""
    import jax

    from dqn_jax.runner.records import provenance

    # Tuning and reporting are the same program with other numbers.
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[2] / ".cache" / "experiments"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if not ROWS.exists():
        ROWS.write_text(",".join(COLUMNS) + "\n")
        SUMMARY.write_text(json.dumps(provenance(), indent=2) + "\n")
    with open(ROWS, newline="") as file:
        done = {(row["choice"], int(row["local_steps"])) for row in csv.DictReader(file)}
    for local_steps in LOCAL_STEPS:
        for choice in CHOICES:
            if (choice, local_steps) in done:
                continue
            rows = train(choice, local_steps)
            with open(ROWS, "a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerows(rows)
            # A process can hold only so many compiled programs.
            jax.clear_caches()


def config_of(choice: str, local_steps: int) -> FederatedConfig:
    """Builds the federation of a cell."""
    episodes = max(1, local_steps // EPISODE_STEPS) if choice.startswith("budget") else None
    merge = MergeConfig(**CHOICES[choice])
    return FederatedConfig(num_clients=CLIENTS, local_steps=local_steps, local_episodes=episodes, merge=merge)


def train(choice: str, local_steps: int) -> list[Record]:
    """Returns rows of one choice: reporting seeds at the learning rate that did best on tuning seeds, for each level."""
    config = config_of(choice, local_steps)
    areas, _ = run(config, [(level, rate, seed) for level in LEVELS for rate in RATES for seed in TUNING])
    by_rate = areas.reshape(len(LEVELS), len(RATES), len(TUNING)).mean(axis=2)
    best = {level: RATES[column] for level, column in zip(LEVELS, by_rate.argmax(axis=1), strict=True)}
    lanes = [(level, best[level], seed) for level in LEVELS for seed in REPORTING]
    areas, rest = run(config, lanes)
    print(f"K = {local_steps}, {choice}: rates {best}, area {areas.reshape(len(LEVELS), -1).mean(axis=1)}", flush=True)
    return [
        dict(zip(COLUMNS, (choice, local_steps, level, rate, seed, float(area), *values), strict=True))
        for (level, rate, seed), area, values in zip(lanes, areas, rest, strict=True)
    ]


def run(config: FederatedConfig, lanes: list[tuple[float, float, int]]) -> tuple[Any, list[tuple[float, int, int]]]:
    """Trains (level, learning rate, seed) lanes at once: (areas, [(final return, updates, frames)]).

    A budget in episodes takes more rounds for as many updates, at most three times as many: a lane that has not made them by
    then counts as it is.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dqn_jax.envs import make_env
    from dqn_jax.federated.driver import make_federated
    from dqn_jax.federated.evaluation import make_evaluator
    from dqn_jax.federated.heterogeneity import draw_envs
    from dqn_jax.mapping import evaluation_key, local_devices
    from dqn_jax.networks import make_network

    env = make_env(HETEROGENEOUS.env, HETEROGENEOUS.max_episode_steps)
    network = make_network(HETEROGENEOUS.network, env.spec)
    unseen = config.unseen_envs
    drawn = [draw_envs(env, config.heterogeneity, seed, CLIENTS, unseen, level) for level, _, seed in lanes]
    envs = jax.tree.map(lambda *x: np.stack(x), *drawn)
    devices = local_devices(None)
    seeds = [seed for _, _, seed in lanes]
    driver = make_federated(
        env,
        network,
        HETEROGENEOUS.agent,
        config,
        env_params=envs.seen,
        seeds=seeds,
        devices=devices,
        rounds_per_step=max(1, UPDATES // EVALUATIONS // config.local_steps),
    )
    evaluator = make_evaluator(env, network, config, envs, 32, devices)
    state = with_rates(driver.init(), np.array([rate for _, rate, _ in lanes], np.float32))
    updates = np.zeros(len(lanes), int)
    frames = np.full(len(lanes), driver.initial_frames)
    returns: list[Any] = []
    done: list[Any] = []
    while not done or (done[-1].min() < UPDATES and len(done) < 3 * EVALUATIONS):
        state, info = driver.step(state)
        updates, frames = updates + info["updates"], frames + info["frames"]
        done.append(updates / CLIENTS)
        keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(seeds), len(done))
        returns.append(evaluator.describe(evaluator.play(keys, driver.params(state))[0])["eval_inside"])
    # Every lane at the same numbers of its own updates, however many rounds those took.
    grid = np.linspace(UPDATES / EVALUATIONS, UPDATES, EVALUATIONS)
    curves = np.array([np.interp(grid, *lane) for lane in zip(np.array(done).T, np.array(returns).T, strict=True)])
    return curves.mean(axis=1), list(zip(curves[:, -1].tolist(), updates.tolist(), frames.tolist(), strict=True))


def with_rates(state, rates):
    """Gives each lane of a state its own learning rate."""
    import jax
    import numpy as np

    learner = state.clients.agent.learner
    old = learner.hyperparams.learning_rate
    new = np.broadcast_to(rates.reshape(old.shape[:2])[:, :, None], old.shape)
    hyperparams = learner.hyperparams._replace(learning_rate=jax.device_put(new, old.sharding))
    agent = state.clients.agent.replace(learner=learner.replace(hyperparams=hyperparams))
    return state.replace(clients=state.clients.replace(agent=agent))


def effects_of(rows: list[Record]) -> list[Record]:
    """Computes the mean difference to keeping everything, paired by seed, with interval: by cell, and over all (main)."""
    import numpy as np

    from dqn_jax.runner.statistics import bootstrap_ci95

    area = {(row["choice"], row["local_steps"], row["level"], row["seed"]): row["area"] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    cells = [(steps, level) for steps in LOCAL_STEPS for level in LEVELS]

    def entry(choice: str, over: list[tuple[int, float]], **where: Any) -> Record:
        own = np.array([[area[choice, *cell, seed] for cell in over] for seed in seeds]).mean(axis=1)
        base = np.array([[area[KEEP, *cell, seed] for cell in over] for seed in seeds]).mean(axis=1)
        low, high = bootstrap_ci95(own - base)
        return {"choice": choice, **where, "area": own.mean(), "effect": (own - base).mean(), "ci95": [float(low), float(high)]}

    main_effects = [entry(choice, cells, local_steps="all", level="all") for choice in CHOICES]
    return main_effects + [entry(choice, [cell], local_steps=cell[0], level=cell[1]) for cell in cells for choice in CHOICES]


def draw(effects: list[Record]) -> None:
    """Draws the effect of each choice: over all cells, and for each K and level."""
    from matplotlib.figure import Figure

    choices = [choice for choice in CHOICES if choice != KEEP]
    panels = [("all", "all"), *((steps, level) for steps in LOCAL_STEPS for level in LEVELS)]
    figure = Figure(figsize=(15, 3.6), layout="constrained")
    for axes, (steps, level) in zip(figure.subplots(1, len(panels), sharey=True, sharex=True), panels, strict=True):
        for height, choice in enumerate(choices):
            found = next(e for e in effects if (e["choice"], e["local_steps"], e["level"]) == (choice, steps, level))
            sure = found["ci95"][0] > 0 or found["ci95"][1] < 0
            axes.plot(found["ci95"], [height, height], color="C3" if sure else "grey", linewidth=2)
            axes.plot(found["effect"], height, "o", color="C3" if sure else "grey")
        base = next(e for e in effects if (e["choice"], e["local_steps"], e["level"]) == (KEEP, steps, level))
        name = "all cells" if steps == "all" else f"K = {steps}, level {level:g}"
        axes.set(title=f"{name}\nkeep everything: {base['area']:.0f}")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.grid(alpha=0.3)
        axes.set_yticks(range(len(choices)), choices)
    axes.invert_yaxis()
    figure.supxlabel("difference in area under the curve, unseen environments (95% interval; red where it excludes 0)")
    figure.savefig(FIGURE, dpi=150)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
