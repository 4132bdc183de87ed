"""What does asynchrony cost, and which remedy helps? A parameter server in virtual time on CartPole.

    python experiments/studies/staleness.py               # trains every arm, then draws
    python experiments/studies/staleness.py --only-draw   # draws again from the committed rows

All arms take the same frames and the same gradient samples, and together have the same replay, warm-up and exploration. They
differ in the number of workers, in how they synchronise, and in how late pushes are treated. Every arm is trained at a learning
rate chosen for it on tuning seeds, and once more at the rate chosen for one worker.
"""

import csv
import dataclasses
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from dqn_jax import runtime
from dqn_jax.config import AgentConfig, Record
from dqn_jax.distributed.config import ServerConfig
from dqn_jax.presets import QUICKSTART
from dqn_jax.runner.command_line import exit_code_of

BASE = QUICKSTART.agent
FRAMES = 240_000
EVALUATIONS = 12
RATES = tuple(BASE.learning_rate * factor for factor in (0.25, 1.0, 4.0, 16.0))
TUNING = range(2_000, 2_004)
REPORTING = range(8)
NUMBERS = ("frames", "gradient_samples", "virtual_time", "updates", "lag", "return")
COLUMNS = ("arm", "workers", "rates", "learning_rate", "seed", *NUMBERS)
RESULTS = Path(__file__).parents[1] / "results"

ARMS = {
    "one worker": ServerConfig(num_workers=1),
    **{f"barrier, {w}": ServerConfig(num_workers=w, mode="barrier") for w in (4, 16)},
    **{f"bounded, {w}": ServerConfig(num_workers=w, mode="bounded") for w in (4, 16)},
    **{f"asynchronous, {w}": ServerConfig(num_workers=w) for w in (4, 16, 64)},
    **{f"drop beyond W, {w}": ServerConfig(num_workers=w, lag_limit=w) for w in (16, 64)},
    **{f"scale by lag, {w}": ServerConfig(num_workers=w, lag_scaling=True) for w in (16, 64)},
}
"""All with exponential service times."""


def main(only_draw: bool = False) -> None:
    """Trains every arm, then draws.

    Args:
      only_draw: draw again from the committed rows.
    """
    if not only_draw:
        runtime.setup(2)
        import jax

        jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
        rows: list[Record] = []
        fixed = None
        for arm, server in ARMS.items():
            best = tune(server)
            # The first arm's, for all that follow.
            fixed = best if fixed is None else fixed
            found = {rate: train(server, [rate] * len(REPORTING), REPORTING) for rate in {best, fixed}}
            for kind, rate in (("tuned", best), ("fixed", fixed)):
                own = {"arm": arm, "workers": server.num_workers, "rates": kind}
                rows += [own | row for row in found[rate]]
                print(f"{arm}, {kind} rate {rate:g}: area {area_of(found[rate]):.1f}", flush=True)
        write(rows)
    draw()


def agent_of(workers: int) -> AgentConfig:
    """Makes the agent of one of W workers, which together have the base's sizes."""
    per_worker = BASE.replay_capacity // workers // BASE.num_envs * BASE.num_envs
    return dataclasses.replace(
        BASE,
        replay_capacity=per_worker,
        learning_starts=max(BASE.learning_starts // workers, BASE.batch_size),
        epsilon_decay_frames=BASE.epsilon_decay_frames // workers,
    )


def tune(server: ServerConfig) -> float:
    """Finds the rate with the largest area on the tuning seeds."""
    lanes = [(rate, seed) for rate in RATES for seed in TUNING]
    rows: list[Record] = []
    for first in range(0, len(lanes), len(REPORTING)):
        rates, seeds = zip(*lanes[first : first + len(REPORTING)], strict=True)
        rows += train(server, rates, seeds)
    return max(RATES, key=lambda rate: area_of([row for row in rows if row["learning_rate"] == rate]))


def train(server: ServerConfig, rates: Sequence[float], seeds: Sequence[int]) -> list[Record]:
    """Trains; returns a row for each lane (a learning rate and a seed) and evaluation."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dqn_jax.distributed.parameter_server import make_parameter_server
    from dqn_jax.envs import make_env
    from dqn_jax.evaluation import make_evaluate
    from dqn_jax.mapping import evaluation_key, local_devices
    from dqn_jax.networks import make_network

    # Many programs in one process exhaust the memory for their code; the cache on disk brings an arm's back.
    jax.clear_caches()
    env = make_env(QUICKSTART.env)
    network = make_network(QUICKSTART.network, env.spec)
    agent, workers = agent_of(server.num_workers), server.num_workers
    pushes = (FRAMES - workers * agent.warm_up_frames) // agent.frames_per_step // EVALUATIONS // workers * workers
    driver = make_parameter_server(env, network, agent, server, seeds=seeds, devices=local_devices(2), pushes_per_chunk=pushes)
    evaluate = jax.jit(jax.vmap(make_evaluate(env, network, 32)))
    state = driver.init()
    # The rate is an array of the state, one for each lane.
    old = state.server.hyperparams.learning_rate
    lanes = jax.device_put(np.array(rates, np.float32).reshape(old.shape), old.sharding)
    state = state.replace(server=state.server.replace(hyperparams=state.server.hyperparams._replace(learning_rate=lanes)))
    rows: list[Record] = []
    updates, time = np.zeros(len(seeds)), np.zeros(len(seeds))
    for number in range(1, EVALUATIONS + 1):
        state, info = driver.step(state)
        updates, time = updates + info["updates"], time + info["virtual_time"]
        keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(seeds), number)
        returns = np.asarray(evaluate(keys, driver.params(state)).returns).mean(axis=1)
        counts = (driver.initial_frames + number * driver.per_step, number * pushes * agent.batch_size)
        for lane, (rate, seed) in enumerate(zip(rates, seeds, strict=True)):
            values = (*counts, time[lane], updates[lane], info["lag"][lane], returns[lane])
            numbers = dict(zip(NUMBERS, (float(value) for value in values), strict=True))
            rows.append({"learning_rate": rate, "seed": seed, **numbers})
    return rows


def area_of(rows: list[Record]) -> float:
    """Computes the mean return over seeds and evaluations."""
    return sum(row["return"] for row in rows) / len(rows)


def write(rows: list[Record]) -> None:
    """Writes the rows, and their origin."""
    from dqn_jax.runner.records import provenance

    with open(RESULTS / "staleness.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows([{name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()} for row in rows])
    settings = {"rates_tried": RATES, "tuning_seeds": list(TUNING), "reporting_seeds": list(REPORTING), "frames": FRAMES}
    (RESULTS / "staleness.json").write_text(json.dumps(provenance() | settings, indent=2) + "\n")


def read() -> list[Record]:
    """Reads the committed rows, numbers as numbers."""
    words = ("arm", "rates")
    with open(RESULTS / "staleness.csv", newline="") as file:
        return [{name: x if name in words else float(x) for name, x in row.items()} for row in csv.DictReader(file)]


def table_of(rows: list[Record]) -> list[Record]:
    """Summarises each arm and rate: area by frames, its paired difference to one worker, return, lag, virtual time."""
    import numpy as np

    from dqn_jax.runner.statistics import bootstrap_ci95

    def by_seed(arm: str, kind: str, name: str) -> Any:
        chosen = [row for row in rows if (row["arm"], row["rates"]) == (arm, kind)]
        seeds = sorted({row["seed"] for row in chosen})
        return np.array([[row[name] for row in chosen if row["seed"] == seed] for seed in seeds])

    table = []
    for kind in ("tuned", "fixed"):
        base = by_seed("one worker", kind, "return").mean(axis=1)
        for arm in ARMS:
            returns = by_seed(arm, kind, "return")
            difference = returns.mean(axis=1) - base
            table.append(
                {
                    "arm": arm,
                    "rates": kind,
                    "learning_rate": by_seed(arm, kind, "learning_rate")[0, 0],
                    "area": returns.mean(),
                    "difference": difference.mean(),
                    "ci95": bootstrap_ci95(difference),
                    "last": returns[:, -1].mean(),
                    "lag": by_seed(arm, kind, "lag").mean(),
                    "updates": by_seed(arm, kind, "updates")[:, -1].mean(),
                    "virtual_time": by_seed(arm, kind, "virtual_time")[:, -1].mean(),
                }
            )
    return table


def draw() -> None:
    """Prints the table and draws return against frames and virtual time, and what each arm loses."""
    import numpy as np
    from matplotlib.figure import Figure

    from dqn_jax.runner.statistics import bootstrap_ci95

    rows = read()
    table = table_of(rows)
    print("| arm | rate | area | minus one worker | last | lag | updates | virtual time |")
    for line in table:
        low, high = line["ci95"]
        print(
            f"| {line['arm']} | {line['rates']} {line['learning_rate']:g} | {line['area']:.0f} | {line['difference']:.0f} "
            f"[{low:.0f}, {high:.0f}] | {line['last']:.0f} | {line['lag']:.1f} | {line['updates']:,.0f} | "
            f"{line['virtual_time']:,.0f} |"
        )
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    panels = figure.subplots(2, 3)
    for panel, kind in zip(panels, ("tuned", "fixed"), strict=True):
        for number, arm in enumerate(ARMS):
            chosen = [row for row in rows if (row["arm"], row["rates"]) == (arm, kind)]
            seeds = sorted({row["seed"] for row in chosen})
            grid = {
                name: np.array([[row[name] for row in chosen if row["seed"] == seed] for seed in seeds])
                for name in ("frames", "virtual_time", "return")
            }
            style = {
                "color": f"C{number}" if number < 10 else ("black", "magenta")[number - 10],
                "label": arm,
                "linewidth": 1.4,
            }
            for axes, name in zip(panel, ("frames", "virtual_time"), strict=False):
                axes.plot(grid[name].mean(axis=0), grid["return"].mean(axis=0), **style)
            areas = grid["return"].mean(axis=1)
            low, high = bootstrap_ci95(areas)
            panel[2].plot([low, high], [number, number], color=style["color"], linewidth=2)
            panel[2].plot(areas.mean(), number, "o", color=style["color"])
        of = "chosen for each arm" if kind == "tuned" else "of one worker for all"
        panel[0].set(xlabel="frames of all workers (gradient samples: 8 a frame)", ylabel="greedy return", title=f"rate {of}")
        panel[1].set(xlabel="virtual time (a push takes 1 on average)", xscale="log", title=f"rate {of}")
        panel[2].set(xlabel="mean return over the run, 95% interval over seeds", title=f"rate {of}")
        panel[2].set_yticks(range(len(ARMS)), list(ARMS))
        panel[2].invert_yaxis()
        for axes in panel:
            axes.grid(alpha=0.3)
    panels[0][0].legend(frameon=False, fontsize="x-small", ncols=2)
    figure.savefig(RESULTS / "staleness.png", dpi=130)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
