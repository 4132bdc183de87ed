"""The run loop that serves every on-device driver: train, log, evaluate, save, resume, summarise.

Not here: what a step of training is (the driver), what files look like (records, checkpoint).

Shapes: S seeds, E episodes.
"""

import contextlib
import dataclasses
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import Experiment, InputError, Record, TrainingError, require
from dqn_jax.evaluation import Evaluator
from dqn_jax.mapping import evaluation_key
from dqn_jax.runner import checkpoint, loggers, peers
from dqn_jax.runner.config_file import config_dict
from dqn_jax.runner.lock import locked
from dqn_jax.runner.memory import GIB, SHOWN, check_replays, free_bytes
from dqn_jax.runner.milestones import milestones
from dqn_jax.runner.plots import draw_run
from dqn_jax.runner.progress import Display, describe_end
from dqn_jax.runner.records import ALONE, CHECKPOINTS, jsonable, open_records, read_metrics
from dqn_jax.runner.signals import Stopped, StopRequest
from dqn_jax.runner.statistics import bootstrap_ci95, interquartile_mean
from dqn_jax.types import Driver, Info


@dataclasses.dataclass
class _Progress:
    """Progress of a run, over all its restarts. Saved with every checkpoint."""

    done: int
    """Frames of each seed, or rounds: the driver's unit."""
    frames: list[int]
    """Frames of each seed."""
    updates: list[int]
    """Updates of each seed."""
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    """Seconds of the start and first chunk, less those of the second chunk, summed over restarts."""
    timed_frames: int = 0
    """Frames, of all seeds, of the chunks timed in `timed_seconds`: all but the first after each start, which compiles."""
    timed_seconds: float = 0.0
    history: list[Record] = dataclasses.field(default_factory=list)
    """Numbers of the config that changed when the run was resumed: [{"frames": 1000, "agent.learning_rate": [before, now]}]."""


def run(driver: Driver, config: Experiment, evaluator: Evaluator) -> Record:
    """Trains for the whole budget, and leaves a complete run directory.

    Several processes (`runner.hosts`) run it side by side: all do the same, the first one writes, and each saves its own part
    of the state.

    Args:
      driver: the way of training.
      config: what is being run, where its files go, and how often things happen.
      evaluator: how the driver's parameters are played.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      InputError: for a run directory that another run uses, or that cannot be used, such a checkpoint, or a logger that is not
        installed; no result on disk has changed then.
      Stopped: after SIGINT, SIGTERM or SIGHUP, once the state is saved.
      TrainingError: naming the learners, if the driver reports a problem, as parameters that are not finite (that state is
        never saved), if its own check of its state fails, or if the disk is full.
    """
    try:
        with peers.together():
            peers.agreed(lambda: loggers.check_installed(config.runner.loggers), "loggers")
            with locked(config.run_dir):
                return _Run(driver, config, evaluator).to_the_end()
    finally:
        driver.close()


class _Run:
    """One process's part of a run."""

    def __init__(self, driver: Driver, config: Experiment, evaluator: Evaluator) -> None:
        self.driver, self.config, self.run_dir = driver, config, config.run_dir
        require(
            config.runner.checkpoint_replay or driver.refill is not None,
            "runner.checkpoint_replay is False, and this way of training cannot fill its replays again: leave it out",
        )
        # The number of devices (of each process) that None stood for: the state is divided over them.
        self.config_dict = config_dict(config) | {"num_devices": len(driver.devices) // jax.process_count()}
        peers.check_same(self.config_dict)
        self.checkpoints = self.run_dir / CHECKPOINTS
        self.seeds = np.array(config.seeds)
        self.evaluator = evaluator
        self.problems: list[str] = []
        self.records = open_records(self.run_dir, config.resume)
        self.changes: Record = {}
        self.found = self._find_checkpoint() if config.resume else None
        self.last_saved = self.found.path if self.found else None
        begin = {"done": driver.initial, "frames": [driver.initial_frames] * len(self.seeds), "updates": [0] * len(self.seeds)}
        saved: Record = dict(self.found.progress) if self.found else begin | {"marks": {}}
        try:
            self.marks = saved.pop("marks")
            self.progress = _Progress(**saved)
        except (KeyError, TypeError):
            raise InputError(f"{self.last_saved} was written by another version: resume with that one") from None
        if self.changes:
            self.progress.history = [*self.progress.history, {driver.unit: self.progress.done, **self.changes}]
        self.elapsed_before = self.progress.wall_seconds
        self.chunks = 0
        columns = len(evaluator.columns[0])
        self.eval_names = [*evaluator.describe(np.zeros((len(self.seeds), columns))), "eval_unfinished"]

    def _find_checkpoint(self) -> checkpoint.Checkpoint | None:
        """Finds the checkpoint to resume from; raises before anything on disk is changed."""
        found, self.problems = checkpoint.newest_valid(self.checkpoints)
        if found is not None:
            self.changes = checkpoint.check_same_config(found.config, self.config_dict)
        elif (written := self.records.read_config()) is not None:
            checkpoint.check_same_config(written, self.config_dict)
            self._check_never_saved()
        return found

    def _check_never_saved(self) -> None:
        """Raises InputError where there is no checkpoint, but the other files show that there has been one."""
        step, period = self.driver.per_step, self.config.runner.checkpoint_every
        ends = itertools.count(self.driver.initial + step, step)
        # A run may be killed between the metrics of a chunk and its checkpoint.
        due = next(chunk for chunk, end in enumerate(ends, start=1) if _crossed(period, end - step, end))
        lines, finished = self.records.count_metrics(), self.records.read_summary() is not None
        if finished or lines > due:
            what = "a summary" if finished else f"metrics of {lines} chunks"
            raise InputError(
                f"run_dir {self.run_dir} has {what} and no checkpoint: restore its {CHECKPOINTS}, or name another directory"
            )

    def to_the_end(self) -> Record:
        runner = self.config.runner
        self.started = time.perf_counter()
        summary = self.records.read_summary()
        if self.found is not None and self.progress.done >= self.config.budget and summary is not None:
            peers.agreed(lambda: self.records.check(self.marks), "run directory")
            print(f"{self.run_dir} is complete: nothing is left to do", flush=True)
            return summary
        with StopRequest() as stop, contextlib.ExitStack() as stack:
            with Display(self.config.budget, self.progress.done, self.driver.unit) as display:
                self._greet(display)
                check_replays(self.driver.replay_bytes // jax.process_count(), free_bytes())
                state, signum = self._start(), None
                with self._on_disk():
                    opened = loggers.opened(self.config, self.config_dict, self.driver.unit, display.say)
                    log = stack.enter_context(opened)
                while self.progress.done < self.config.budget and (signum := _asked(stop)) is None:
                    before = self.progress.done
                    state, info = self._step(state)
                    line = self._line(info)
                    if _crossed(runner.eval_every, before, self.progress.done):
                        line |= self._evaluation(state)
                    with self._on_disk():
                        self.records.append_metrics(line)
                        log(line)
                    display.update(line)
                    self._refuse(self.driver.problem(info))
                    finished = self.progress.done >= self.config.budget
                    if finished or _crossed(runner.checkpoint_every, before, self.progress.done):
                        self._save(state)
                if signum is not None:
                    path = self._save(state)
                    raise Stopped(f"stopped at {self._position()}, saved in {path}: --resume continues", signum)
            return self._finish(state)

    def _start(self) -> Any:
        state = self.driver.init()
        if self.found is not None:
            state = self.found.restore(state, new_numbers=bool(self.changes))
            if not self.found.has_replay:
                assert self.driver.refill is not None
                state = self.driver.refill(state)
                self.progress.frames = [frames + self.driver.initial_frames for frames in self.progress.frames]
        peers.agreed(lambda: self.records.cut(self.marks), "run directory")
        with self._on_disk():
            self.records.write_config(self.config_dict, self.progress.history)
        return state

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Raises TrainingError where the body cannot write, as on a full disk."""
        try:
            yield
        except OSError as error:
            where = error.filename or self.run_dir
            raise TrainingError(
                f"after {self._position()}, {where} cannot be written ({error.strerror}); {self._way_back()}"
            ) from error

    def _greet(self, display: Display) -> None:
        for problem in self.problems:
            display.say(f"warning: {problem}; using the one before")
        if self.found is not None:
            display.say(f"resuming {self.run_dir} at {self._position()}")
            if not self.found.has_replay:
                display.say("its replays were not saved: they are filled again, so the run is not the same to the bit")
        if self.changes:
            display.say(f"from here {checkpoint.words_of(self.changes)}")
        display.say(f"{self.config.num_seeds} seed(s) on {', '.join(self.driver.devices)}")
        if self.driver.replay_bytes >= SHOWN:
            display.say(f"replay: {self.driver.replay_bytes / GIB:.2f} GiB")

    def _step(self, state: Any) -> tuple[Any, Info]:
        begin = time.perf_counter()
        with peers.chunk_limit():
            state, info = self.driver.step(state)
        info = {name: np.asarray(values) for name, values in info.items()}
        self.seconds = time.perf_counter() - begin
        self.progress.done += self.driver.per_step
        frames, updates = info["frames"].tolist(), info["updates"].tolist()
        self.progress.frames = [sum(pair) for pair in zip(self.progress.frames, frames, strict=True)]
        self.progress.updates = [sum(pair) for pair in zip(self.progress.updates, updates, strict=True)]
        self.env_steps = sum(frames)
        self.chunks += 1
        if self.chunks == 1:
            self.progress.compile_seconds += time.perf_counter() - self.started
        else:
            self.progress.compile_seconds -= self.seconds if self.chunks == 2 else 0.0
            self.progress.timed_frames += self.env_steps
            self.progress.timed_seconds += self.seconds
        return state, info

    def _line(self, info: Info) -> Record:
        """Builds one line of metrics, its keys always the same; lists have one entry per seed.

        `frames` and `updates` are those of each seed, `env_steps` are of all of them.
        """
        episodes = info["episodes"]
        counted = ("return_sum", "frames", "updates")
        shown = {name: info[name] for name in sorted(info) if name not in counted}
        shown = {name: values for name, values in shown.items() if values.ndim == 1 or name.endswith("_histogram")}
        return {
            **self._counts(),
            "env_steps": sum(self.progress.frames),
            "return": np.divide(info["return_sum"], episodes, out=np.full(len(episodes), np.nan), where=episodes > 0),
            **shown,
            **dict.fromkeys(self.eval_names),
            "chunk_seconds": self.seconds,
            # The first chunk's time is mostly compilation.
            "env_steps_per_second": self.env_steps / self.seconds if self.chunks > 1 else None,
            "wall_seconds": self._elapsed(),
        }

    def _counts(self) -> Record:
        """Returns frames and updates: one number where they are the same for all seeds."""
        frames, updates = self.progress.frames, self.progress.updates
        if self.driver.unit == "frames":
            return {"frames": frames[0], "updates": updates[0] if self.driver.lockstep else updates}
        return {self.driver.unit: self.progress.done, "frames": frames, "updates": updates}

    def _position(self) -> str:
        return f"{self.progress.done:,} {self.driver.unit}"

    def _evaluation(self, state: Any) -> Record:
        """Evaluates every seed greedily, for the metrics and as rows of `returns.csv`."""
        result, returns = self._play(state)
        self._write_returns(returns)
        return result

    def _play(self, state: Any) -> tuple[Record, np.ndarray]:
        """Plays the current parameters: (metrics of each seed, returns [S, C])."""
        keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.asarray(self.seeds), self.progress.done)
        returns, unfinished = (np.asarray(values) for values in self.evaluator.play(keys, self.driver.params(state)))
        return self.evaluator.describe(returns) | {"eval_unfinished": unfinished}, returns

    def _write_returns(self, returns: np.ndarray) -> None:
        rounds = self.progress.done if self.driver.unit == "rounds" else ""
        counts = zip(self.seeds, self.progress.frames, self.progress.updates, self.evaluator.columns, returns, strict=True)
        rows = [
            {
                **ALONE,
                **column,
                "seed": seed,
                "env_params": json.dumps(column["env_params"]),
                "rounds": rounds,
                "frames": frames,
                "updates": updates,
                "return": float(value),
            }
            for seed, frames, updates, columns, values in counts
            for column, value in zip(columns, values, strict=True)
        ]
        with self._on_disk():
            self.records.append_returns(rows)

    def _refuse(self, problem: str | None) -> None:
        if problem is None:
            return
        raise TrainingError(f"after {self._position()}, {problem}; {self._way_back()}")

    def _way_back(self) -> str:
        good = f"--resume goes on from the last good checkpoint, {self.last_saved}"
        return good if self.last_saved else "no checkpoint had been saved yet"

    def _save(self, state: Any) -> Path:
        peers.agreed(lambda: self.driver.check(state), "check before a checkpoint")
        params = self.driver.params(state)
        peers.check_equal(lambda: params, "parameters")
        self.progress.wall_seconds = self._elapsed()
        progress, keep = dataclasses.asdict(self.progress), self.config.runner.keep_checkpoints
        with self._on_disk():
            progress["marks"] = self.records.marks()
            saved = checkpoint.save(
                self.checkpoints,
                state,
                params,
                self.progress.done,
                progress,
                self.config_dict,
                keep,
                _replays_saved(self.driver, self.config),
            )
        self.last_saved = saved
        return saved

    def _elapsed(self) -> float:
        return self.elapsed_before + time.perf_counter() - self.started

    def _finish(self, state: Any) -> Record:
        """Plays the final parameters, writes the summary and the plot; all processes return the first one's summary."""
        result, table = self._play(state)
        return peers.gather(self._summarise(result, table) if peers.is_first() else None, "summary")[0]

    def _summarise(self, result: Record, table: np.ndarray) -> Record:
        progress, lines = self.progress, read_metrics(self.run_dir)
        if not _crossed(self.config.runner.eval_every, progress.done - self.driver.per_step, progress.done):
            self._write_returns(table)
        returns = result["eval_return"]
        low, high = bootstrap_ci95(returns)
        per_seed = {f"{name}_per_seed": count for name, count in self._counts().items()}
        summary: Record = {
            "final_return_mean": returns.mean(),
            "final_return_iqm": interquartile_mean(returns),
            "final_return_ci95": [low, high],
            "final_return_min": returns.min(),
            "final_returns": returns,
            **{f"final_{name.removeprefix('eval_')}": result[name] for name in self.eval_names[1:-1]},
            "final_unfinished_episodes": int(result["eval_unfinished"].sum()),
            **milestones(lines, returns, self.config.runner.threshold),
            # Of a federation: updates of each seed that were not finite.
            **({"left_out": np.sum([line["left_out"] for line in lines], axis=0)} if "left_out" in lines[0] else {}),
            **per_seed,
            "env_steps": sum(progress.frames),
            "updates": sum(progress.updates),
            "env_steps_per_second": progress.timed_frames / progress.timed_seconds if progress.timed_seconds else None,
            "compile_seconds": progress.compile_seconds,
            "wall_seconds": self._elapsed(),
            "devices": list(self.driver.devices),
        }
        summary = jsonable(summary)
        with self._on_disk():
            self.records.write_summary(summary)
            draw_run(self.run_dir)
        print(describe_end(summary, self.run_dir), flush=True)
        return summary


def _replays_saved(driver: Driver, config: Experiment) -> Literal["all", "newest", "none"]:
    """Tells which checkpoints have replays: of large ones that can be filled again, the newest."""
    if not config.runner.checkpoint_replay:
        return "none"
    return "newest" if driver.refill is not None and driver.replay_bytes >= SHOWN else "all"


def _asked(stop: StopRequest) -> int | None:
    """Returns the signal that any process was sent, if any: all stop after the same chunk."""
    return next((signum for signum in peers.gather(stop.signum, "next chunk") if signum is not None), None)


def _crossed(period: int, before: int, now: int) -> bool:
    """Tells whether a multiple of `period` lies in (before, now]; so periods hold whatever the size of a chunk."""
    return now // period > before // period
