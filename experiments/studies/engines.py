"""Threads against Ray on one host: a parameter server and an actor-learner, CartPole to the optimum on each.

    python experiments/studies/engines.py                # trains every arm, seed by seed, then prints and draws
    python experiments/studies/engines.py --only-draw    # prints and draws again from the committed summaries

Every run is the command of `parameter_server.py` or `actor_learner.py` in a process of its own; what is there already is not
trained again. Frames/s leave out each process's first chunk, which compiles.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import tyro

from dqn_jax.config import Record
from dqn_jax.runner.command_line import exit_code_of

ARMS: dict[str, tuple[str, ...]] = {
    "parameter server, threads": ("parameter_server.py", "--preset", "cartpole", "--backend", "threads"),
    "parameter server, ray": ("parameter_server.py", "--preset", "cartpole", "--backend", "ray"),
    "actor-learner, threads": ("actor_learner.py", "--backend", "threads"),
    "actor-learner, ray": ("actor_learner.py", "--backend", "ray"),
    "actor-learner, threads, one shared epsilon": (
        "actor_learner.py",
        "--backend",
        "threads",
        "--actors.exploration",
        "shared",
    ),
}
HERE = Path(__file__).parents[1]
RESULTS = HERE / "results"
THRESHOLD = 475.0


def main(num_seeds: int = 5, run_dir: Path = Path("runs/engines"), only_draw: bool = False) -> None:
    """Trains every arm, then prints and draws.

    Args:
      num_seeds: runs of each arm.
      run_dir: directory of all of them.
      only_draw: print and draw again from the committed summaries.
    """
    if not only_draw:
        runs = [train(arm, seed, run_dir) for seed in range(num_seeds) for arm in ARMS]
        from dqn_jax.runner.records import provenance

        (RESULTS / "engines.json").write_text(json.dumps(provenance() | {"runs": runs}, indent=2) + "\n")
    report(json.loads((RESULTS / "engines.json").read_text())["runs"])


def train(arm: str, seed: int, run_dir: Path) -> Record:
    """Returns what is kept of a run."""
    own = run_dir / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
    if not (own / "summary.json").exists():
        print(f"{arm}, seed {seed}", flush=True)
        script, *options = ARMS[arm]
        command = [sys.executable, str(HERE / script), *options, "--seed", str(seed), "--run-dir", str(own), "--resume"]
        subprocess.run(command, check=True)
    summary = json.loads((own / "summary.json").read_text())
    lines = [json.loads(line) for line in (own / "metrics.jsonl").read_text().splitlines()]
    # The first line's time is mostly compilation.
    seconds, waited = (sum(line[name] if name[0] == "c" else line[name][0] for line in lines[1:]) for name in TIMES)
    return {
        "arm": arm,
        "seed": seed,
        "return": summary["final_returns"][0],
        "frames_per_second": summary["env_steps_per_second"],
        "wait_share": waited / seconds,
        "lag": sum(line["lag"][0] for line in lines) / len(lines),
        "lag_histogram": [sum(counts) for counts in zip(*(line["lag_histogram"][0] for line in lines), strict=True)],
        "workers_lost": sum(line["workers_lost"][0] for line in lines),
        "curve": [(line["frames"], line["eval_return"][0]) for line in lines if line["eval_return"] is not None],
    }


TIMES = ("chunk_seconds", "wait_seconds")


def lags_of(arm: str) -> tuple[Any, int]:
    """Finds the middle of each bin [32] of an arm's histogram of lags, and the width of a bin, both in updates."""
    import numpy as np

    from dqn_jax.distributed.presets import APEX, CARTPOLE_SERVER
    from dqn_jax.distributed.roles import lag_bin

    # Every update makes a version; the typical lags are those that the drivers give `lag_info`.
    served = arm.startswith("parameter server")
    width = lag_bin(CARTPOLE_SERVER.server.num_workers if served else APEX.actors.num_actors * APEX.updates_per_block)
    return width * np.arange(32) + (width - 1) / 2, width


def report(runs: list[Record]) -> None:
    """Prints one line for each arm, and draws greedy returns and lags."""
    import numpy as np
    from matplotlib.figure import Figure

    from dqn_jax.runner.plots import band

    print("| | mean final return | seeds at 475 | frames/s | learner waits | lag |")
    figure = Figure(figsize=(4 * len(ARMS), 6.5), layout="constrained")
    panels = figure.subplots(2, len(ARMS), sharey="row")
    for number, arm in enumerate(ARMS):
        own = [run for run in runs if run["arm"] == arm]
        finals = [run["return"] for run in own]
        means = [float(np.median([run[name] for run in own])) for name in ("frames_per_second", "wait_share", "lag")]
        reached = sum(value >= THRESHOLD for value in finals)
        print(
            f"| {arm} | {np.mean(finals):.1f} | {reached} of {len(own)} | {means[0]:,.0f} | {means[1]:.0%} | {means[2]:.1f} |"
        )
        times = np.array([frames for frames, _ in own[0]["curve"]])
        returns = np.array([[value for _, value in run["curve"]] for run in own])
        above, below = panels[0][number], panels[1][number]
        band(above, times / 1000, returns, f"C{number}", arm, thin=True)
        above.set(title=arm.replace(", one", ",\none"), xlabel="thousand frames of all workers", ylabel="greedy return")
        counts = np.sum([run["lag_histogram"] for run in own], axis=0)
        middles, width = lags_of(arm)
        bars = below.bar(middles, counts / counts.sum(), 0.8 * width, color=f"C{number}")
        bars[-1].set(color="grey")
        below.set(xlabel=f"lag in updates (bars of {width}; grey: {31 * width} or more)", ylabel="share")
        for axes in (above, below):
            axes.grid(alpha=0.3)
    figure.savefig(RESULTS / "engines.png", dpi=120)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
