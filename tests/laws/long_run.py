"""`killed_run.py` with a larger budget, for faults at random moments: its processes, and a run that nothing happens to.

Not here: what happens to a run (`hit_run`, `damaged_run`), and how often (`faults.py`, which is also the script that trains).
"""

import contextlib
import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from laws import killed_run
from laws.run_files import differences

from dqn_jax.config import InputError
from dqn_jax.runner.config_file import CONFIG
from dqn_jax.runner.records import CHECKPOINTS

SCRIPT = Path(__file__).parents[1] / "faults.py"
# Driver: (its config in killed_run.py, how many times that budget). The longest first.
DRIVERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "hosts": (killed_run.hosts_config_of, 3),
    "federated": (killed_run.federated_config_of, 20),
    "server": (killed_run.server_config_of, 10),
    "data_parallel": (killed_run.config_of, 15),
}
LIMIT_SECONDS = 300
"""A process that takes longer hangs."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A run that nothing happened to."""

    driver: str
    run_dir: Path
    times_longer: int
    seconds: float = 0.0
    """What it took with compiled programs at hand."""
    training_seconds: float = 0.0
    """The part of it after the file that is written when all is ready to train."""


def start(reference: Reference, run_dir: Path) -> subprocess.Popen:
    """Starts or resumes a run in a process of its own, or in two and their launcher."""
    launcher = ["-m", "dqn_jax.runner.launch", "--num-processes", "2"] if reference.driver == "hosts" else []
    script = [str(SCRIPT), "train", reference.driver, str(reference.times_longer), str(run_dir)]
    with open(run_dir.with_suffix(".log"), "a") as log:
        return subprocess.Popen([sys.executable, *launcher, *script], stdout=log, stderr=log)


def train(driver: str, times_longer: str, run_dir: str, *flags: str) -> None:
    """What these processes do: killed_run.py with a larger budget."""
    make = functools.partial(config_of, driver, int(times_longer))
    setattr(killed_run, DRIVERS[driver][0].__name__, make)
    sys.argv = [sys.argv[0], run_dir, "", driver, *flags]
    killed_run.main()


def config_of(driver: str, times_longer: int, run_dir: Path) -> Any:
    """The driver's config with so many times the budget."""
    config = DRIVERS[driver][0](run_dir)
    budget = "rounds" if driver == "federated" else "total_frames"
    return dataclasses.replace(config, **{budget: times_longer * config.budget})


def end_of(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit status, None if it is not done by then."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


def last_end_of(process: subprocess.Popen) -> int | None:
    """The exit status; None if it hung, and was ended."""
    status = end_of(process, LIMIT_SECONDS)
    if status is None:
        for pid in [*children_of(process), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
    return status


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Waits until a condition holds, or the process is done or hangs."""
    limit = time.monotonic() + LIMIT_SECONDS
    while not condition() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)


def children_of(process: subprocess.Popen) -> list[int]:
    """Ids of the processes that a launcher has started."""
    with contextlib.suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    return []


def make_reference(driver: str, work: Path, length: float) -> Reference:
    """Runs two that nothing happens to: the first one compiles, the second one's time counts."""
    times_longer = max(1, round(DRIVERS[driver][1] * length))
    first, second = (work / f"{driver}-reference-{number}" for number in (1, 2))
    for run_dir in (first, second):
        began = time.time()
        status = last_end_of(start(Reference(driver, run_dir, times_longer), run_dir))
        assert status == 0, run_dir.with_suffix(".log").read_text()
    ended = time.time()
    assert compare(first, second) == [], f"two runs of {driver} are not the same: there is nothing to compare with"
    return Reference(driver, second, times_longer, ended - began, ended - changed_at(second / CONFIG))


def compare(run_dir: Path, other: Path) -> list[str]:
    """Names of all that differs, but for which checkpoints are left: that depends on where a run was stopped."""
    try:
        return sorted(differences(run_dir, other) - {CHECKPOINTS})
    except (AssertionError, InputError, KeyError, OSError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]


def changed_at(path: Path) -> float:
    """When a file was changed last, 0 where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0
