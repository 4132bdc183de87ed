"""Best return, later decay and time to a threshold, from a run's metrics. Not here: the final returns."""

import numpy as np

from dqn_jax.config import Record


def milestones(lines: list[Record], final: np.ndarray, threshold: float | None) -> Record:
    """Computes the milestones of a run, one entry per seed.

    Args:
      lines: those of `metrics.jsonl`.
      final: [S] returns of the final parameters, the evaluation at the last line.
      threshold: the return to reach; None leaves its entries out.

    Returns:
      `best_returns`, and `late_decay`, by how much the final return is below it. With a threshold: `to_threshold`, for each
      seed the frames (or rounds) of the first evaluation that reached it, and of a federated run the bytes sent by then, None
      where none did; and `threshold_share`, the share of seeds that did.
    """
    evaluated = [line for line in lines[:-1] if line["eval_return"] is not None] + lines[-1:]
    returns = np.array([*(line["eval_return"] for line in evaluated[:-1]), final])
    best = returns.max(axis=0)
    result: Record = {"best_returns": best, "late_decay": best - final}
    if threshold is None:
        return result
    unit = "rounds" if "rounds" in lines[0] else "frames"
    reached = returns >= threshold
    first = [int(column.argmax()) if column.any() else None for column in reached.T]
    to_threshold: dict[str, list] = {unit: [None if at is None else evaluated[at][unit] for at in first]}
    if unit == "rounds":
        sent = [_bytes_until(lines, rounds, seed) for seed, rounds in enumerate(to_threshold["rounds"])]
        to_threshold["bytes"] = sent
    share = float(np.mean([at is not None for at in first]))
    return result | {"threshold": threshold, "to_threshold": to_threshold, "threshold_share": share}


def _bytes_until(lines: list[Record], rounds: int | None, seed: int) -> int | None:
    if rounds is None:
        return None
    return sum(line["bytes"][seed] for line in lines if line["rounds"] <= rounds)
