"""Loggers beside `metrics.jsonl`: TensorBoard and Weights & Biases get what is in that file, seed by seed.

A resumed run has cut the file back to its checkpoint. A logger that lacks lines up to there is given them again, and none gets
a step twice. Not here: what is measured.
"""

import contextlib
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dqn_jax.config import LOGGERS, Experiment, Record, not_installed
from dqn_jax.runner import peers
from dqn_jax.runner.records import jsonable, read_metrics
from dqn_jax.runner.wandb_run import WandbRun

_SUFFIX = ".dqn_jax"
"""End of the names of our event files: those of other programs are left alone."""


def check_installed(names: Sequence[str]) -> None:
    """Raises InputError unless the packages of all named loggers are installed."""
    for name in names:
        spec = importlib.util.find_spec(LOGGERS[name])
        # A mere directory of that name, as wandb leaves one where it runs, is found too, but has no origin.
        if spec is None or spec.origin is None:
            raise not_installed(f"runner.loggers has {name}", LOGGERS[name], name)


@contextlib.contextmanager
def opened(config: Experiment, settings: Record, unit: str, say: Callable[[str], None]) -> Iterator[Callable[[Record], None]]:
    """Opens the run's loggers while the body runs, in the first of several processes, and gives them the lines on disk.

    Args:
      config: what is being run; it names the loggers and the run directory.
      settings: the same as JSON values, for Weights & Biases to show.
      unit: what a line's step is: "frames" or "rounds".
      say: prints one line.

    Yields:
      A function that logs a further line.

    Raises:
      InputError: in all processes, if what an earlier start has left cannot be read.
    """
    names = config.runner.loggers if peers.is_first() else ()
    lines = read_metrics(config.run_dir) if names else []
    done = lines[-1][unit] if lines else 0
    # Times are those of training, also of lines that are given again.
    began = time.time() - (lines[-1]["wall_seconds"] if lines else 0.0)
    loggers: list[_TensorBoard | WandbRun] = []
    with contextlib.ExitStack() as stack:

        def start() -> None:
            if "tensorboard" in names:
                loggers.append(_TensorBoard(config.run_dir))
                stack.push(loggers[-1].close)
            if "wandb" in names:
                loggers.append(WandbRun(config, settings, done, unit, say))
                stack.push(loggers[-1].close)

        def log(line: Record) -> None:
            values = _scalars(jsonable(line), config.seeds, unit) if loggers else {}
            for logger in loggers:
                logger.log(line[unit], values, began + line["wall_seconds"])

        peers.agreed(start, "loggers")
        for line in lines:
            log(line)
        yield log


def _scalars(line: Record, seeds: Sequence[int], unit: str) -> dict[str, float]:
    """Names the numbers of a line, as "return/seed_3" where each seed has one; leaves out None, histograms and the step."""
    named: Record = {}
    for name, value in line.items():
        per_seed = isinstance(value, list) and len(value) == len(seeds)
        named |= {f"{name}/seed_{seed}": one for seed, one in zip(seeds, value, strict=True)} if per_seed else {name: value}
    return {name: float(value) for name, value in named.items() if isinstance(value, (int, float)) and name != unit}


class _TensorBoard:
    """An event file, written anew at every start."""

    def __init__(self, run_dir: Path) -> None:
        # Not SummaryWriter, which writes in a thread, and would wait for it for ever on a full disk.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        directory = run_dir / "tensorboard"
        directory.mkdir(exist_ok=True)
        for old in directory.glob(f"*{_SUFFIX}"):
            old.unlink()
        self._writer = EventsWriter(str(directory / "events"), _SUFFIX)
        # A TensorBoard that is running forgets what it has read of the old file.
        self._writer.write_event(Event(wall_time=time.time(), step=0, session_log=SessionLog(status=SessionLog.START)))

    def log(self, step: int, values: dict[str, float], wall_time: float) -> None:
        """Writes a line; its time is in seconds since 1970."""
        summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._writer.write_event(self._event(wall_time=wall_time, step=step, summary=summary))
        self._writer.flush()

    def close(self, *_: object) -> None:
        """Closes the file."""
        # Each line was flushed: only one that was refused, on a full disk, can be left.
        with contextlib.suppress(OSError):
            self._writer.close()
