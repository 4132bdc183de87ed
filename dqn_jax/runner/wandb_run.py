"""One run of Weights & Biases, the same after a resume; offline where nobody is logged in or nothing answers. It never asks.

What it has got cannot be taken back, so a step that it has is not sent again. `wandb/run.json` in the run directory has its id
and, once it has ended in order, its last step: what is written offline lies in memory until then, and a kill loses it.

Not here: what is logged (loggers).
"""

import json
import os
import secrets
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from dqn_jax.config import Experiment, InputError, Record

_LIMITS = {"init_timeout": 30.0, "finish_timeout": 60.0}
"""Seconds that it may take to answer at first, and at the end to take what it has not got yet."""


class _Kept(NamedTuple):
    id: str | None = None
    step: int | None = None


class WandbRun:
    """Takes lines as they come, until something fails."""

    def __init__(self, config: Experiment, settings: Record, done: int, unit: str, say: Callable[[str], None]) -> None:
        """Begins the run or continues it.

        Args:
          config: what is being run.
          settings: the same as JSON values, to be shown.
          done: the last step that `metrics.jsonl` has, 0 where it has none.
          unit: what a step is: "frames" or "rounds".
          say: prints one line.

        Raises:
          InputError: if `wandb/run.json` cannot be read, or not even a run offline be begun.
        """
        self._config, self._settings, self._say = config, settings, say
        self._path = config.run_dir / "wandb" / "run.json"
        kept = self._read() if config.resume else _Kept()
        self._path.parent.mkdir(exist_ok=True)
        try:
            self._run, self._last = self._begin(kept)
        except Exception as error:
            raise InputError(f"runner.loggers has wandb, which fails ({_words(error)}): mend that or leave it out") from error
        if self._last > done:
            say(f"W&B has this run up to {self._last:,} {unit}, and keeps that: what is trained anew up to there is not sent")
        self._write(None)

    def _begin(self, kept: _Kept) -> tuple[Any, int]:
        """Goes online if it can, and says what became of that: (the run, the last step that it has got, or -1)."""
        import wandb

        mode = wandb.setup().settings.mode
        reason = "as its settings say"
        if mode != "offline":
            # Whatever is wrong with a login or a network, it is no reason not to train.
            try:
                if mode == "disabled" or wandb.login(prompt=False, verify=False):
                    run = self._init(mode, kept.id)
                    self._say(f"W&B: {run.url or mode}")
                    return run, run.step - 1
                reason = "nobody is logged in"
            except Exception as error:
                reason = _words(error)
                # Else the id would be in use.
                wandb.teardown()
        run = self._init("offline", None if kept.step is None else kept.id)
        self._say(f"W&B is offline ({reason}): wandb sync {self._config.run_dir}/wandb/offline-run-* sends what it has")
        return run, -1 if kept.step is None else kept.step

    def _init(self, mode: Any, run_id: str | None) -> Any:
        import wandb

        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "dqn_jax"),
            name=self._config.run_dir.resolve().name,
            dir=self._config.run_dir,
            config=self._settings,
            id=run_id or secrets.token_hex(4),
            resume="allow",
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", **_LIMITS),
        )

    def log(self, step: int, values: dict[str, float], wall_time: float) -> None:
        """Sends a line, unless its step is there already; its time is that of sending."""
        if self._run is None or step <= self._last:
            return
        try:
            self._run.log(values, step=step, commit=True)
            self._last = step
        except Exception as error:
            self._give_up(error)

    def close(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends the run, as one that has failed if there is an exception of some kind."""
        if self._run is None:
            return
        try:
            self._run.finish(exit_code=int(kind is not None))
            self._write(self._last)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._say(f"warning: W&B has failed ({_words(error)}): the run goes on without, metrics.jsonl has it all")
        self._run = None

    def _read(self) -> _Kept:
        try:
            kept = json.loads(self._path.read_text())
            return _Kept(str(kept["id"]), None if kept["step"] is None else int(kept["step"]))
        except FileNotFoundError:
            return _Kept()
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self._path} cannot be read: remove it, and W&B gets the run anew") from None

    def _write(self, step: int | None) -> None:
        aside = self._path.with_name(".run.json")
        aside.write_text(json.dumps({"id": self._run.id, "step": step}))
        os.replace(aside, self._path)


def _words(error: Exception) -> str:
    return textwrap.shorten(str(error), 200)
