"""Copies of a finished run of which one bit of a checkpoint is flipped, resumed in one process."""

import collections
import contextlib
import dataclasses
import functools
import io
import json
import random
import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from laws.long_run import Reference, compare, config_of

from dqn_jax import runtime
from dqn_jax.runner.checkpoint import MANIFEST
from dqn_jax.runner.command_line import exit_code_of
from dqn_jax.runner.records import CHECKPOINTS, SUMMARY


@dataclasses.dataclass(frozen=True)
class Damage:
    """One bit that is not what it was."""

    path: Path
    offset: int
    bit: int
    checkpoints: list[Path]
    """Those that the copy has, the newest last."""
    harmless: bool
    """Whether the file still says the same: E for e in a number, or a digit beyond its precision."""

    def outcome(self, status: int, said: str, reference: Reference) -> tuple[str, list[str]]:
        """(what came of it, what is wrong with that)."""
        newest = self.checkpoints[-1]
        in_the_way, named = newest == self.path.parent, f"{newest.name} is damaged" in said
        if status == 2:
            right = in_the_way and not self.harmless and named and len(self.checkpoints) == 1 and said.count("\n") == 1
            return "refused, none was left", [] if right else [f"refused: {said}"]
        if status != 0:
            return "failed", [f"status {status}: {said.splitlines()[-1]}"]
        wrong = compare(newest.parent.parent, reference.run_dir)
        if named != (in_the_way and not self.harmless):
            wrong.append("the damage is not named" if in_the_way else "what is whole is called damaged")
        if named:
            return "named, resumed from the one before", wrong
        return "harmless: reads as the same" if in_the_way else "in an older one, not read", wrong


def damage_all(reference: Reference, numbers: Sequence[int], seed: int, work: Path) -> tuple[collections.Counter, list[str]]:
    """Damages and resumes a copy of the reference for each number; returns as `try_all`."""
    config = config_of(reference.driver, reference.times_longer, reference.run_dir)
    runtime.setup(config.num_devices if reference.driver == "data_parallel" else 4)
    from dqn_jax.distributed import data_parallel, parameter_server
    from dqn_jax.federated import driver as federated
    from dqn_jax.runner import loop

    drivers: dict[str, Any] = {"federated": federated, "server": parameter_server, "data_parallel": data_parallel}
    driver, evaluator = drivers[reference.driver].from_config(config)
    counts: collections.Counter = collections.Counter()
    wrong = []
    for number in numbers:
        name = f"{reference.driver}, seed {seed}, trial {number}"
        copy = work / f"{reference.driver}-{number}"
        damage = damage_copy(reference, copy, random.Random(name))
        again = functools.partial(loop.run, driver, dataclasses.replace(config, run_dir=copy), evaluator)
        # What is drawn is not compared, and takes longer than all the rest.
        with mock.patch.object(loop, "draw_run"):
            status, said = quietly(again)
        outcome, found = damage.outcome(status, said, reference)
        counts.update(["resumed", outcome])
        if found:
            where = damage.path.relative_to(copy)
            wrong.append(f"{name}: {', '.join(found)}, after bit {damage.bit} of byte {damage.offset} of {where} was flipped")
        else:
            shutil.rmtree(copy)
    return counts, wrong


def quietly(run: Callable[[], Any]) -> tuple[int, str]:
    """(the exit status that a script would have, what it would have printed)."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            return exit_code_of(run), said.getvalue()
        except Exception:
            traceback.print_exc()
            return 1, said.getvalue()


def damage_copy(reference: Reference, copy: Path, rng: random.Random) -> Damage:
    """Copies the reference as it was at one of its checkpoints, with up to two older ones, and flips one bit of them."""
    shutil.copytree(reference.run_dir, copy)
    (copy / SUMMARY).unlink()
    steps = sorted((copy / CHECKPOINTS).glob("step_*"))
    newest = rng.randrange(len(steps))
    left = steps[max(0, newest - rng.randrange(3)) : newest + 1]
    for step in set(steps) - set(left):
        shutil.rmtree(step)
    path = rng.choice(sorted(file for step in left for file in step.iterdir()))
    before = path.read_bytes()
    offset, bit = rng.randrange(len(before)), rng.randrange(8)
    after = bytearray(before)
    after[offset] ^= 1 << bit
    path.write_bytes(after)
    return Damage(path, offset, bit, left, path.name == MANIFEST and reads_as(after) == reads_as(before))


def reads_as(data: bytes | bytearray) -> Any:
    """What a manifest says; None if it cannot be read."""
    with contextlib.suppress(ValueError):
        return json.loads(data)
    return None
