"""Does data-parallel training learn faster, and at what cost? CartPole on 1, 2 and 4 devices.

    python experiments/studies/scaling.py                # trains every arm, then draws
    python experiments/studies/scaling.py --only-draw    # draws again from the committed rows

Once with the global batch fixed (more devices share the same work) and once with the batch, environments and replay of each
device fixed (more devices do more work an update), the latter with the learning rate times 1, sqrt(D) and D.
"""

import csv
import dataclasses
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import tyro

from dqn_jax import runtime
from dqn_jax.config import AgentConfig
from dqn_jax.presets import QUICKSTART
from dqn_jax.runner.command_line import exit_code_of

BASE = QUICKSTART.agent
SEEDS = range(8)
THRESHOLD = 475.0
MAX_UPDATES = 31_250
UPDATES_PER_CHUNK = 625
TIMED_TURNS = 7
RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = ("arm", "devices", "learning_rate", "seed", "reached", "frames", "updates", "seconds", "updates_per_second")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One line of the comparison."""

    name: str
    devices: int
    config: AgentConfig


def arms() -> list[Arm]:
    """Lists the arms, that on a single device first."""
    result = [Arm("one device", 1, BASE)]
    result += [Arm("global batch fixed", devices, BASE) for devices in (2, 4)]
    for devices in (2, 4):
        wider = {
            name: getattr(BASE, name) * devices for name in ("num_envs", "batch_size", "replay_capacity", "learning_starts")
        }
        # Epsilon falls over the same number of updates.
        wider["epsilon_decay_frames"] = BASE.epsilon_decay_frames * devices
        for label, factor in (("x 1", 1.0), ("x sqrt D", math.sqrt(devices)), ("x D", float(devices))):
            config = dataclasses.replace(BASE, learning_rate=BASE.learning_rate * factor, **wider)
            result.append(Arm(f"batch a device fixed, rate {label}", devices, config))
    return result


def main(only_draw: bool = False) -> None:
    """Trains every arm, then draws.

    Args:
      only_draw: draw again from the committed rows.
    """
    if not only_draw:
        runtime.setup(4)
        pace = seconds_per_update()
        rows = []
        for arm in arms():
            per_update = pace[arm.devices, arm.config.batch_size]
            speed = {"updates_per_second": 1 / per_update}
            rows += [row | {"seconds": row["updates"] * per_update} | speed for row in train(arm)]
        write(rows)
    draw()


def make_driver(arm: Arm) -> tuple[Any, Any]:
    """Builds (driver, evaluation of every seed) of an arm."""
    import jax

    from dqn_jax.distributed.data_parallel import make_data_parallel
    from dqn_jax.envs import make_env
    from dqn_jax.evaluation import make_evaluate
    from dqn_jax.mapping import local_devices
    from dqn_jax.networks import make_network

    env = make_env("CartPole-v1")
    network = make_network(QUICKSTART.network, env.spec)
    devices = local_devices(arm.devices)
    driver = make_data_parallel(env, network, arm.config, seeds=SEEDS, devices=devices, steps_per_chunk=UPDATES_PER_CHUNK)
    return driver, jax.jit(jax.vmap(make_evaluate(env, network, 32)))


def train(arm: Arm) -> list[dict]:
    """Trains an arm until every seed has stayed at the threshold for two evaluations, or has had its updates.

    Returns one row per seed, which counts to the first of the two: one evaluation alone is too much a matter of luck.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dqn_jax.mapping import evaluation_key

    driver, evaluate = make_driver(arm)
    state = driver.init()
    above = np.zeros(len(SEEDS), bool)
    reached: dict[int, int] = {}
    chunk = 0
    while chunk < MAX_UPDATES // UPDATES_PER_CHUNK and len(reached) < len(SEEDS):
        chunk += 1
        state, _ = driver.step(state)
        keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(SEEDS), chunk)
        before, above = above, np.asarray(evaluate(keys, driver.params(state)).returns).mean(axis=1) >= THRESHOLD
        for seed in np.array(SEEDS)[before & above].tolist():
            reached.setdefault(seed, chunk - 1)
    print(f"{arm.name}, {arm.devices} device(s): {len(reached)} of {len(SEEDS)} seeds reached {THRESHOLD:.0f}", flush=True)

    def row(seed: int) -> dict:
        chunks = reached.get(seed, chunk)
        return {
            "arm": arm.name,
            "devices": arm.devices,
            "learning_rate": arm.config.learning_rate,
            "seed": seed,
            "reached": seed in reached,
            "frames": driver.initial_frames + chunks * driver.per_step,
            "updates": chunks * UPDATES_PER_CHUNK,
        }

    return [row(seed) for seed in SEEDS]


def seconds_per_update() -> dict[tuple[int, int], float]:
    """Times {(devices, batch size): median seconds of an update of all seeds}, contestants taking turns."""
    shapes = {(arm.devices, arm.config.batch_size): arm for arm in arms()}
    drivers = {shape: make_driver(arm)[0] for shape, arm in shapes.items()}
    states = {shape: driver.step(driver.init())[0] for shape, driver in drivers.items()}
    seconds: dict[tuple[int, int], list[float]] = {shape: [] for shape in shapes}
    for _ in range(TIMED_TURNS):
        for shape, driver in drivers.items():
            began = time.perf_counter()
            states[shape], _ = driver.step(states[shape])
            seconds[shape].append((time.perf_counter() - began) / UPDATES_PER_CHUNK)
    return {shape: statistics.median(values) for shape, values in seconds.items()}


def write(rows: list[dict]) -> None:
    """Writes the rows and where they come from."""
    from dqn_jax.runner.records import provenance

    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / "scaling.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    (RESULTS / "scaling.json").write_text(json.dumps(provenance(), indent=2) + "\n")


def draw() -> None:
    """Draws frames, updates and seconds to the threshold from the rows: one dot per seed, hollow where it was not reached."""
    import numpy as np
    from matplotlib.figure import Figure

    with open(RESULTS / "scaling.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = list(dict.fromkeys((row["arm"], row["devices"]) for row in rows))
    figure = Figure(figsize=(11, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (column, unit) in zip(
        panels, (("frames", "thousands"), ("updates", "thousands"), ("seconds", "seconds")), strict=True
    ):
        scale = 1 if column == "seconds" else 1000
        for height, label in enumerate(labels):
            mine = [row for row in rows if (row["arm"], row["devices"]) == label]
            values = np.array([float(row[column]) for row in mine]) / scale
            reached = np.array([row["reached"] == "True" for row in mine])
            axes.plot(values[reached], np.full(reached.sum(), height), "o", color="tab:blue", alpha=0.5)
            axes.plot(values[~reached], np.full((~reached).sum(), height), "o", markerfacecolor="none", color="tab:red")
            axes.plot(np.median(values), height, "|", color="black", markersize=18)
        axes.set(xlabel=column if column == unit else f"{column} ({unit})", xlim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_yticks(range(len(labels)), [f"{arm}, D = {devices}" for arm, devices in labels])
    panels[0].invert_yaxis()
    figure.suptitle(
        f"What it takes to reach a greedy return of {THRESHOLD:.0f} on CartPole: one dot per seed, the bar their median"
    )
    figure.savefig(RESULTS / "scaling.png", dpi=150)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
