"""What a finished run's directory says apart from how long it took, for comparisons to the last bit. Reads; runs nothing."""

import hashlib
import json
from pathlib import Path

import numpy as np

from dqn_jax.runner.checkpoint import MANIFEST
from dqn_jax.runner.records import CHECKPOINTS, METRICS, RETURNS, SUMMARY, read_metrics


def saved(run_dir: Path) -> list[int]:
    """Frames or rounds of all checkpoints, from the oldest to the newest."""
    return sorted(int(path.parent.name.removeprefix("step_")) for path in run_dir.glob(f"{CHECKPOINTS}/step_*/{MANIFEST}"))


def manifest_of(run_dir: Path) -> dict:
    """What the newest checkpoint's manifest says."""
    return json.loads((_newest(run_dir) / MANIFEST).read_text())["body"]


def arrays_of(run_dir: Path) -> dict[str, np.ndarray]:
    """The leaves of the newest checkpoint, of which every byte is as it was written; rows from all processes' shards."""
    body, path = manifest_of(run_dir), _newest(run_dir)
    shards = []
    for process, digest in enumerate(body["arrays_sha256"]):
        digests = {f"arrays-{process}.npz": digest}
        if body["replay_sha256"] is not None:
            digests[f"replay-{process}.npz"] = body["replay_sha256"][process]
        found = {}
        for name, digest in digests.items():
            assert hashlib.sha256((path / name).read_bytes()).hexdigest() == digest, f"{name} is not what was written"
            with np.load(path / name) as arrays:
                found |= arrays
        shards.append([found[f"arr_{index}"] for index in range(len(body["leaves"]))])
    leaves = shards[0] if len(shards) == 1 else [np.concatenate(rows) for rows in zip(*shards, strict=True)]
    return {leaf["name"]: values for leaf, values in zip(body["leaves"], leaves, strict=True)}


def without_times(values: dict) -> dict:
    """A line of metrics or a summary but for what a clock said."""
    return {name: value for name, value in values.items() if not name.endswith(("_seconds", "_per_second")) and name != "time"}


def results(run_dir: Path) -> dict:
    """All that a run directory says, by name, so that a difference is named."""
    body = manifest_of(run_dir)
    dtypes = {leaf["name"]: leaf["dtype"] for leaf in body["leaves"]}
    state = {name: (dtypes[name], values.shape, values.tobytes()) for name, values in arrays_of(run_dir).items()}
    return state | {
        METRICS: [without_times(line) for line in read_metrics(run_dir)],
        RETURNS: (run_dir / RETURNS).read_bytes(),
        SUMMARY: without_times(json.loads((run_dir / SUMMARY).read_text())),
        "progress": (_newest(run_dir).name, *(body["progress"][name] for name in ("done", "frames", "updates"))),
        CHECKPOINTS: sorted(path.name for path in (run_dir / CHECKPOINTS).iterdir()),
    }


def differences(run_dir: Path, other: Path) -> set[str]:
    """Names of all that is not bitwise the same in two finished runs."""
    one, two = results(run_dir), results(other)
    return {name for name in one.keys() | two.keys() if one.get(name) != two.get(name)}


def _newest(run_dir: Path) -> Path:
    return max(run_dir.glob(f"{CHECKPOINTS}/step_*"))
