"""What the tests of whole runs share: what a run directory says, and a driver that something happens to."""

import json
from pathlib import Path

import numpy as np

from dqn_jax.runner import checkpoint
from dqn_jax.runner.records import CHECKPOINTS, METRICS, RETURNS, SUMMARY, read_metrics


def at(driver, chunk: int, act):
    """The driver, with `act` applied to the state that goes into a chunk (from 1)."""
    calls = []

    def step(state):
        calls.append(1)
        return driver.step(act(state) if len(calls) == chunk else state)

    return driver._replace(step=step)


def without_times(values: dict) -> dict:
    return {name: value for name, value in values.items() if not name.endswith(("_seconds", "_per_second"))}


def results(run_dir: Path) -> dict:
    """All that a run directory says, apart from how long it took: by name, so that a difference is named."""
    newest, complaints = checkpoint.newest_valid(run_dir / CHECKPOINTS)
    assert complaints == []
    with np.load(newest.path / checkpoint.ARRAYS) as arrays:
        state = {leaf["name"]: (leaf["dtype"], arrays[f"arr_{i}"].tobytes()) for i, leaf in enumerate(newest.leaves)}
    return state | {
        METRICS: [without_times(line) for line in read_metrics(run_dir)],
        RETURNS: (run_dir / RETURNS).read_text(),
        SUMMARY: without_times(json.loads((run_dir / SUMMARY).read_text())),
        "progress": (newest.path.name, *(newest.progress[name] for name in ("done", "frames", "updates"))),
    }


def differences(run_dir: Path, other: Path) -> set[str]:
    a, b = results(run_dir), results(other)
    return {name for name in a.keys() | b.keys() if a.get(name) != b.get(name)}


def saved(run_dir: Path) -> list[int]:
    return [int(path.name.removeprefix("step_")) for path in sorted((run_dir / CHECKPOINTS).glob("step_*"))]
