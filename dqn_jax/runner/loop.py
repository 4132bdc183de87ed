"""The run loop that serves every on-device driver: train, log, evaluate, save, resume, summarise.

Not here: what a step of training is (the driver), what files look like (records, checkpoint).

Shapes: S seeds, E episodes.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import ExperimentConfig, TrainingError
from dqn_jax.evaluation import Evaluation
from dqn_jax.mapping import evaluation_key
from dqn_jax.runner import checkpoint
from dqn_jax.runner.plots import save_learning_curve
from dqn_jax.runner.progress import Display
from dqn_jax.runner.records import CHECKPOINTS, Records, config_dict, jsonable
from dqn_jax.runner.signals import Stopped, StopRequest
from dqn_jax.runner.statistics import bootstrap_ci95, interquartile_mean
from dqn_jax.types import Driver, Info


@dataclasses.dataclass
class _Progress:
    """Where a run stands, over all the processes it took. Saved with every checkpoint."""

    frames: int
    """Of each seed."""
    updates: int = 0
    wall_seconds: float = 0.0
    compile_seconds: float = 0.0
    """What each process's start and first chunk took beyond the time of its second chunk."""
    timed_frames: int = 0
    """Frames, of all seeds, of the chunks whose time is in `timed_seconds`: all but each process's first, which compiles."""
    timed_seconds: float = 0.0


def run(
    driver: Driver, config: ExperimentConfig, evaluate: Callable[[jax.Array, chex.ArrayTree], Evaluation]
) -> dict[str, Any]:
    """Trains until every seed has had its frames, and leaves a complete run directory.

    Args:
      driver: the way of training.
      config: what is being run, where its files go, and how often things happen.
      evaluate: (key, params of one seed) -> Evaluation with leaves [E].

    Returns:
      The summary, as in `summary.json`.

    Raises:
      InputError: for a run directory or checkpoint that cannot be used; nothing on disk has changed then.
      Stopped: after SIGINT or SIGTERM, once the state is saved.
      TrainingError: naming the seeds, if a loss or parameter is not finite (that state is never saved), or if the driver's own
        check of its state fails.
    """
    return _Run(driver, config, evaluate).to_the_end()


class _Run:
    """One process's part of a run."""

    def __init__(self, driver: Driver, config: ExperimentConfig, evaluate: Callable) -> None:
        self.driver, self.config, self.run_dir = driver, config, config.run_dir
        # The number of devices that None stood for: the state is divided over them.
        self.config_dict = config_dict(config) | {"num_devices": len(driver.devices)}
        self.checkpoints = self.run_dir / CHECKPOINTS
        self.seeds = np.array(config.seeds)
        self.evaluate = jax.jit(jax.vmap(evaluate))
        self.complaints: list[str] = []
        self.records = Records(self.run_dir, config.resume)
        self.found = self._find_checkpoint() if config.resume else None
        self.last_saved = self.found.path if self.found else None
        saved: dict[str, Any] = dict(self.found.progress) if self.found else {"frames": driver.initial_frames, "sizes": {}}
        self.sizes = saved.pop("sizes")
        self.progress = _Progress(**saved)
        self.elapsed_before = self.progress.wall_seconds
        self.chunks = 0

    def _find_checkpoint(self) -> checkpoint.Checkpoint | None:
        """The checkpoint to go on from. Refuses before anything on disk is changed."""
        found, self.complaints = checkpoint.newest_valid(self.checkpoints)
        if found is not None:
            checkpoint.check_same_config(found.config, self.config_dict)
        elif (written := self.records.read_config()) is not None:
            checkpoint.check_same_config(written, self.config_dict)
        return found

    def to_the_end(self) -> dict[str, Any]:
        runner = self.config.runner
        self.started = time.perf_counter()
        with StopRequest() as stop:
            with Display(self.config.total_frames, self.progress.frames) as display:
                self._greet(display)
                state = self._start()
                while self.progress.frames < self.config.total_frames and stop.signum is None:
                    before = self.progress.frames
                    state, info = self._step(state)
                    line = self._line(info)
                    if _crossed(runner.eval_every, before, self.progress.frames):
                        line |= self._evaluation(state)
                    self.records.append_metrics(line)
                    display.update(line)
                    self._refuse_non_finite(info["finite"])
                    done = self.progress.frames >= self.config.total_frames
                    if done or _crossed(runner.checkpoint_every, before, self.progress.frames):
                        self._save(state)
                if stop.signum is not None and self.progress.frames < self.config.total_frames:
                    path = self._save(state)
                    raise Stopped(
                        f"stopped at {self.progress.frames:,} frames, saved in {path}: --resume continues", stop.signum
                    )
            return self._finish(state)

    def _start(self) -> Any:
        state = self.driver.init()
        if self.found is not None:
            state = self.found.restore(state)
        self.records.cut(self.sizes)
        self.records.write_config(self.config_dict)
        return state

    def _greet(self, display: Display) -> None:
        for complaint in self.complaints:
            display.say(f"warning: {complaint}; using the one before")
        if self.found is not None:
            display.say(f"resuming {self.run_dir} at {self.progress.frames:,} frames")
        display.say(f"{self.config.num_seeds} seed(s) on {', '.join(self.driver.devices)}")

    def _step(self, state: Any) -> tuple[Any, Info]:
        begin = time.perf_counter()
        state, info = self.driver.step(state)
        info = {name: np.asarray(values) for name, values in info.items()}
        self.seconds = time.perf_counter() - begin
        self.progress.frames += self.driver.frames_per_step
        self.progress.updates += self.driver.updates_per_step
        self.chunks += 1
        if self.chunks == 1:
            self.progress.compile_seconds += time.perf_counter() - self.started
        else:
            self.progress.compile_seconds -= self.seconds if self.chunks == 2 else 0.0
            self.progress.timed_frames += self.driver.frames_per_step * self.config.num_seeds
            self.progress.timed_seconds += self.seconds
        return state, info

    def _line(self, info: Info) -> dict[str, Any]:
        """One line of metrics, its keys always the same; lists have one entry per seed.

        `frames` and `updates` are those of each seed, `env_steps` are of all of them.
        """
        info = dict(info)
        episodes, return_sum = info["episodes"], info.pop("return_sum")
        env_steps = self.driver.frames_per_step * self.config.num_seeds
        return {
            "frames": self.progress.frames,
            "env_steps": self.progress.frames * self.config.num_seeds,
            "updates": self.progress.updates,
            "return": np.divide(return_sum, episodes, out=np.full(len(episodes), np.nan), where=episodes > 0),
            **{name: info[name] for name in sorted(info)},
            "eval_return": None,
            "eval_unfinished": None,
            "chunk_seconds": self.seconds,
            # The first chunk's time is mostly compilation.
            "env_steps_per_second": env_steps / self.seconds if self.chunks > 1 else None,
            "wall_seconds": self._elapsed(),
        }

    def _evaluation(self, state: Any) -> dict[str, Any]:
        """Greedy returns of every seed, for the metrics, and as rows of `returns.csv`."""
        result = self._play(state)
        means = np.asarray(result.returns).mean(axis=1)
        self._write_returns(means)
        return {"eval_return": means, "eval_unfinished": np.sum(~np.asarray(result.finished), axis=1)}

    def _play(self, state: Any) -> Evaluation:
        keys = jax.vmap(evaluation_key, in_axes=(0, None))(jnp.asarray(self.seeds), self.progress.frames)
        return self.evaluate(keys, self.driver.params(state))

    def _write_returns(self, means: np.ndarray) -> None:
        limit = self.config.max_episode_steps
        shared = {
            "client": 0,
            "env_params": json.dumps({} if limit is None else {"max_steps_in_episode": limit}),
            "frames": self.progress.frames,
            "updates": self.progress.updates,
        }
        self.records.append_returns(
            [shared | {"seed": seed, "return": float(mean)} for seed, mean in zip(self.seeds, means, strict=True)]
        )

    def _refuse_non_finite(self, finite: np.ndarray) -> None:
        if finite.all():
            return
        kept = f"the last good checkpoint is {self.last_saved}" if self.last_saved else "no checkpoint had been saved yet"
        raise TrainingError(
            f"seed(s) {self.seeds[~finite].tolist()}: a loss or parameter is not finite after {self.progress.frames} frames; "
            f"{kept}; lower agent.learning_rate or set agent.max_grad_norm"
        )

    def _save(self, state: Any) -> Path:
        self.driver.check(state)
        self.progress.wall_seconds = self._elapsed()
        progress = dataclasses.asdict(self.progress) | {"sizes": self.records.sizes()}
        keep = self.config.runner.keep_checkpoints
        self.last_saved = checkpoint.save(self.checkpoints, state, self.progress.frames, progress, self.config_dict, keep)
        return self.last_saved

    def _elapsed(self) -> float:
        return self.elapsed_before + time.perf_counter() - self.started

    def _finish(self, state: Any) -> dict[str, Any]:
        """Plays the final parameters, writes the summary and the plot."""
        result = self._play(state)
        returns = np.asarray(result.returns).mean(axis=1)
        if not _crossed(
            self.config.runner.eval_every, self.progress.frames - self.driver.frames_per_step, self.progress.frames
        ):
            self._write_returns(returns)
        low, high = bootstrap_ci95(returns)
        progress = self.progress
        summary: dict[str, Any] = {
            "final_return_mean": returns.mean(),
            "final_return_iqm": interquartile_mean(returns),
            "final_return_ci95": [low, high],
            "final_return_min": returns.min(),
            "final_returns": returns,
            "final_unfinished_episodes": int(np.sum(~np.asarray(result.finished))),
            "frames_per_seed": progress.frames,
            "env_steps": progress.frames * self.config.num_seeds,
            "updates_per_seed": progress.updates,
            "updates": progress.updates * self.config.num_seeds,
            "env_steps_per_second": progress.timed_frames / progress.timed_seconds if progress.timed_seconds else None,
            "compile_seconds": progress.compile_seconds,
            "wall_seconds": self._elapsed(),
            "devices": list(self.driver.devices),
        }
        summary = jsonable(summary)
        self.records.write_summary(summary)
        save_learning_curve(self.run_dir)
        return summary


def _crossed(period: int, before: int, now: int) -> bool:
    """Whether a multiple of `period` lies in (before, now]; so periods hold whatever the size of a chunk."""
    return now // period > before // period
