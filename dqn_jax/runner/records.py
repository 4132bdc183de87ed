"""The files of a run directory, apart from checkpoints and plots. Not here: what is measured.

`metrics.jsonl` and `returns.csv` only grow; a checkpoint stores their sizes and digests, and resuming cuts them there.
"""

import csv
import datetime
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from dqn_jax.config import InputError, Record
from dqn_jax.runner import peers
from dqn_jax.runner.config_file import CONFIG, config_dict, read_config

METRICS = "metrics.jsonl"
RETURNS = "returns.csv"
SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
RETURNS_COLUMNS = ("seed", "policy", "split", "client", "env_params", "rounds", "frames", "updates", "return")
ALONE = {"policy": "global", "split": "seen", "client": 0}
"""Columns of `returns.csv` for a run with a single policy and a single environment."""
Marks: TypeAlias = Mapping[str, Sequence]
"""{file: (size in bytes, SHA-256 of what it holds)}."""
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "gymnax", "numpy")


class Records:
    """Writes one run's files."""

    def __init__(self, run_dir: Path, resume: bool) -> None:
        """Opens a run directory.

        Args:
          run_dir: the directory, made if it is not there.
          resume: whether to go on in a directory that already holds a run.

        Raises:
          InputError: if it cannot be written, or holds a run and `resume` is false. Nothing in it is changed then.
        """
        self.run_dir = run_dir
        try:
            if _holds_a_run(run_dir) and not resume:
                raise InputError(
                    f"run_dir {run_dir} already holds a run: add --resume to continue it, or name another directory"
                )
            run_dir.mkdir(parents=True, exist_ok=True)
            with open(run_dir / METRICS, "a"), open(run_dir / RETURNS, "a"):
                pass
        except OSError as error:
            raise InputError(f"run_dir {run_dir} cannot be written ({error.strerror}): name another directory") from None

    def marks(self) -> Marks:
        """Returns size and digest of each growing file, all of them safely on disk."""
        marks = {}
        for name in (METRICS, RETURNS):
            with open(self.run_dir / name, "rb") as file:
                os.fsync(file.fileno())
                written = file.read()
                marks[name] = (len(written), _sha256(written))
        return marks

    def check(self, marks: Marks) -> None:
        """Raises InputError if a growing file is shorter than at a checkpoint, or differs from what it was up to there."""
        for name, (size, digest) in marks.items():
            path = self.run_dir / name
            written = path.read_bytes()
            if len(written) < size:
                raise InputError(f"{path} has {len(written)} bytes, and the checkpoint was saved at {size}: restore the file")
            if _sha256(written[:size]) != digest:
                raise InputError(f"{path} has changed before byte {size}, where the checkpoint was saved: restore the file")

    def cut(self, marks: Marks) -> None:
        """Cuts the growing files back to what they were at a checkpoint (to nothing where a name is missing); see `check`."""
        self.check(marks)
        for name in (METRICS, RETURNS):
            os.truncate(self.run_dir / name, marks[name][0] if name in marks else 0)

    def write_config(self, config: Record, history: Sequence[Record] = ()) -> None:
        """Writes `config.json`: the config, which of its numbers changed when (see `runner.loop`), and the versions."""
        self._write(CONFIG, config | {"history": list(history), "versions": _versions()})

    def read_config(self) -> Record | None:
        """Reads the config of `config.json`; None where there is none.

        Raises:
          InputError: if it cannot be read.
        """
        path = self.run_dir / CONFIG
        return read_config(path) if path.exists() else None

    def read_summary(self) -> Record | None:
        """Reads `summary.json`; None where there is none that can be read, as before a run's end."""
        try:
            return json.loads((self.run_dir / SUMMARY).read_text())
        except (OSError, ValueError):
            return None

    def count_metrics(self) -> int:
        """Counts the whole lines of `metrics.jsonl`."""
        path = self.run_dir / METRICS
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def append_metrics(self, line: Record) -> None:
        """Appends one line to `metrics.jsonl`; what is not finite becomes null."""
        with open(self.run_dir / METRICS, "a") as file:
            file.write(json.dumps(jsonable(line)) + "\n")

    def append_returns(self, rows: list[Record]) -> None:
        """Appends rows to `returns.csv`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, RETURNS_COLUMNS, lineterminator="\n")
        if (self.run_dir / RETURNS).stat().st_size == 0:
            writer.writeheader()
        writer.writerows(rows)
        with open(self.run_dir / RETURNS, "a") as file:
            file.write(text.getvalue())

    def write_summary(self, summary: Record) -> None:
        """Writes `summary.json`, JSON values only."""
        self._write(SUMMARY, summary)

    def _write(self, name: str, value: Record) -> None:
        aside = self.run_dir / f".{name}"
        aside.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(aside, self.run_dir / name)


class ReadOnly(Records):
    """The records of a process that is not the first of its run: it reads, and writes nothing."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def marks(self) -> Marks:
        """Returns {}: the first process saves the marks."""
        return {}

    def check(self, marks: Marks) -> None:
        """Does nothing."""

    def cut(self, marks: Marks) -> None:
        """Does nothing."""

    def append_metrics(self, line: Record) -> None:
        """Does nothing."""

    def append_returns(self, rows: list[Record]) -> None:
        """Does nothing."""

    def _write(self, name: str, value: Record) -> None:
        """Does nothing."""


def open_records(run_dir: Path, resume: bool) -> Records:
    """Opens a run directory for all processes of a run: the first writes it, and all must see it.

    Raises:
      InputError: in all of them, as `Records` does, or where they do not share the directory.
    """
    records = peers.agreed(lambda: Records(run_dir, resume) if peers.is_first() else ReadOnly(run_dir), "run directory")
    peers.check_shared(run_dir)
    return records


def _holds_a_run(run_dir: Path) -> bool:
    written = any((run_dir / name).exists() for name in (CONFIG, CHECKPOINTS, SUMMARY))
    return written or any((run_dir / name).is_file() and (run_dir / name).stat().st_size for name in (METRICS, RETURNS))


def is_complete(run_dir: Path, config: Any) -> bool:
    """Tells whether a run directory holds a finished run of this config dataclass, on however many devices."""
    if not (run_dir / SUMMARY).exists():
        return False
    saved, wanted = read_config(run_dir / CONFIG), config_dict(config)
    return all(saved.get(name) == wanted[name] for name in wanted if name not in ("num_devices", "run_dir", "resume"))


def read_metrics(run_dir: Path) -> list[Record]:
    """Reads the lines of `metrics.jsonl`."""
    return [json.loads(line) for line in (run_dir / METRICS).read_text().splitlines()]


def read_returns(run_dir: Path) -> list[Record]:
    """Reads the rows of `returns.csv`, as `parse_row` does each."""
    with open(run_dir / RETURNS, newline="") as file:
        return [parse_row(row) for row in csv.DictReader(file)]


def parse_row(row: dict[str, str]) -> Record:
    """Parses a row of `returns.csv`: counts and returns as numbers, empty `client` and `rounds` as None.

    Raises:
      ValueError: where a number is none.
    """

    def number(name: str, text: str) -> Any:
        if name == "return":
            return float(text)
        return text if name in ("policy", "split", "env_params") else int(text) if text else None

    return {name: number(name, text) for name, text in row.items()}


def provenance() -> Record:
    """Returns the origin of a result: command, date, hardware and versions."""
    device = jax.local_devices()[0]
    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "device": f"{device.platform} {device.device_kind}",
        "cores": os.cpu_count(),
        "versions": _versions(),
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _versions() -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in _PACKAGES} | {"python": platform.python_version()}


def jsonable(value: Any) -> Any:
    """Converts arrays to lists, numpy scalars to Python's, and non-finite numbers to None."""
    if isinstance(value, dict):
        return {name: jsonable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
