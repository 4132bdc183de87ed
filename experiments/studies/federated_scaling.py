"""What do more clients cost, and what do they bring? 1, 10, 100 and 1000 clients on CartPoles with poles of different lengths.

    python experiments/studies/federated_scaling.py                # trains every arm, then draws
    python experiments/studies/federated_scaling.py --only-draw    # draws again from the committed rows

Once with the same frames for each client, however many there are, and once with the same frames for all of them together.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

import tyro

from dqn_jax import runtime
from dqn_jax.config import Record
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.presets import HETEROGENEOUS
from dqn_jax.runner.command_line import exit_code_of

CLIENTS = (1, 10, 100, 1000)
LOCAL_STEPS = 50
ROUNDS = 60
"""Rounds, where every client has as many frames."""
TOTAL = 7_000
"""Rounds and warm-ups of all clients, where they have as many frames together; a warm-up is as long as a round."""
AGENT = dataclasses.replace(HETEROGENEOUS.agent, replay_capacity=2_000, learning_starts=LOCAL_STEPS, epsilon_decay_frames=1_500)
SEEDS = range(2)
OUT = Path(__file__).parents[1] / "results" / "federated_scaling.json"


def rounds_of(clients: int, equal: str) -> int:
    """Returns an arm's rounds."""
    return ROUNDS if equal == "frames per client" else TOTAL // clients - 1


def main(only_draw: bool = False) -> None:
    """Trains every arm, then draws.

    Args:
      only_draw: draw again from the committed rows.
    """
    if not only_draw:
        runtime.setup()
        rows = [train(clients) for clients in CLIENTS]
        from dqn_jax.runner.records import provenance

        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(provenance() | {"local_steps": LOCAL_STEPS, "rows": rows}, indent=2) + "\n")
    draw(json.loads(OUT.read_text())["rows"])


def train(clients: int) -> Record:
    """Measures a round's time, and greedy returns on unseen environments after the rounds of each comparison."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dqn_jax.federated.driver import from_config
    from dqn_jax.mapping import evaluation_key

    budgets = {equal: rounds_of(clients, equal) for equal in ("frames per client", "frames in all")}
    config = dataclasses.replace(
        HETEROGENEOUS,
        num_seeds=len(SEEDS),
        rounds=max(budgets.values()),
        agent=AGENT,
        federated=FederatedConfig(num_clients=clients, local_steps=LOCAL_STEPS, unseen_envs=8),
        runner=dataclasses.replace(HETEROGENEOUS.runner, log_every=1),
    )
    driver, evaluator = from_config(config)
    state = driver.init()
    seconds: list[float] = []
    returns: Record = {}
    history: list[Record] = []
    points = {max(1, round(budget * part / 6)) for budget in budgets.values() for part in range(1, 7)}
    for rounds in range(1, config.rounds + 1):
        began = time.perf_counter()
        state, _ = driver.step(state)
        seconds.append(time.perf_counter() - began)
        if rounds in points:
            keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.array(SEEDS), rounds)
            found = evaluator.describe(evaluator.play(keys, driver.params(state))[0])
            history.append({"rounds": rounds, "inside": found["eval_inside"].tolist(), "seen": found["eval_return"].tolist()})
            returns |= {equal: history[-1] for equal, budget in budgets.items() if budget == rounds}
    per_client = float(np.median(seconds[1:])) / clients / len(SEEDS)
    row = {
        "clients": clients,
        "seconds_per_round": float(np.median(seconds[1:])) / len(SEEDS),
        "microseconds_per_client_step": 1e6 * per_client / LOCAL_STEPS,
        "returns": returns,
        "history": history,
    }
    print(f"{clients} clients: {row['microseconds_per_client_step']:.1f} us per client and step, {returns}", flush=True)
    return row


def draw(rows: list[Record]) -> None:
    """Draws return over a client's frames and over all frames, and the time of a client's step."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for number, row in enumerate(rows):
        frames = (1 + np.array([point["rounds"] for point in row["history"]])) * LOCAL_STEPS
        inside = np.array([np.mean(point["inside"]) for point in row["history"]])
        within = frames <= (1 + ROUNDS) * LOCAL_STEPS
        shared = frames * row["clients"] <= TOTAL * LOCAL_STEPS
        label = f"{row['clients']} client{'s' if row['clients'] > 1 else ''}"
        left.plot(frames[within], inside[within], "o-", color=f"C{number}", markersize=3, label=label)
        middle.plot(frames[shared] * row["clients"], inside[shared], "o-", color=f"C{number}", markersize=3, label=label)
    left.set(xlabel="frames of each client", ylabel="greedy return, unseen environments", title="equal frames per client")
    middle.set(xlabel="frames of all clients", title="equal frames in all", xscale="log")
    right.plot([row["clients"] for row in rows], [row["microseconds_per_client_step"] for row in rows], "o-", color="black")
    right.set(
        xlabel="clients", ylabel="microseconds", title="time of one local step of one client", xscale="log", ylim=(0, None)
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.savefig(OUT.with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    sys.exit(exit_code_of(lambda: tyro.cli(main)))
