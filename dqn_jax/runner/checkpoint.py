"""Atomic checkpoints: written under a temporary name, checksummed, renamed into place, verified when read.

A checkpoint is a directory `step_<frames, or rounds>` with `arrays-<process>.npz` and `replay-<process>.npz` (every leaf of the
state, as that process has it), `policy.npz` (the parameters alone, to be played), and `manifest.json` (checksums and shapes of
the arrays, progress, and the config). A damaged one is reported and the one before it is used. Of several processes each writes
and reads its own arrays, and the first writes the rest when all are done; all accept or reject a checkpoint together.

Replays may be left out, and large ones are kept in the newest checkpoint alone.

Not here: when to save.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import InputError, Record
from dqn_jax.lookup import divided
from dqn_jax.replay import ReplayState
from dqn_jax.runner import peers
from dqn_jax.runner.config_file import NUMBERS, flatten
from dqn_jax.runner.policy import POLICY, write_policy
from dqn_jax.types import Params

ARRAYS, REPLAY = "arrays-{}.npz", "replay-{}.npz"
"""Names of a process's arrays, and of those of its replays, by its number."""
MANIFEST = "manifest.json"
_MAY_CHANGE = (
    *("total_frames", "rounds", "run_dir", "resume"),
    *("runner.threshold", "runner.compilation_cache", "runner.loggers", "runner.checkpoint_replay", "patience", "ray_address"),
)
"""What is no part of the state, and changes nothing before the checkpoint."""
_REMEDY = "move this checkpoint away to go on from the one before it"
_BODY: dict[str, Any] = {"progress": dict, "config": dict, "leaves": list, "arrays_sha256": (list, str)}
_REPLAY_BODY: dict[str, Any] = {"replay_sha256": (list, type(None)), "replay_may_go": bool}
"""Entries of a manifest, and their types: one text for all arrays was an older version's."""
_NAMES = ("agent.loss", "agent.exploration")
"""Names of parts whose numbers, after a colon, are in the state too."""


class DamagedCheckpoint(Exception):
    """A checkpoint that must not be used. The message says which and why, in a few words."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its manifest, with the arrays still on disk."""

    path: Path
    progress: Record
    """Progress of the run, as given to `save`."""
    config: Record
    leaves: list[Record]
    has_replay: bool
    """Whether all replays are there; else `restore` leaves the template's."""

    def restore(self, template: chex.ArrayTree, new_numbers: bool = False) -> chex.ArrayTree:
        """Reads the saved state, each leaf placed as the template's is.

        Args:
          template: a state of the same run; its replays are gone then, where the checkpoint has replays.
          new_numbers: whether to take the numbers of the config, `NUMBERS`, from the template.

        Raises:
          InputError: if the template has other leaves, shapes or dtypes.
        """
        expected = [_describe(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(template)]
        if self.leaves != expected:
            pairs = itertools.zip_longest(self.leaves, expected)
            saved, wanted = next((_words(saved), _words(wanted)) for saved, wanted in pairs if saved != wanted)
            raise InputError(f"{self.path} has {saved} where this program has {wanted}: resume with the version that wrote it")
        leaves, structure = jax.tree.flatten(template)
        names = {index: leaf["name"] for index, leaf in enumerate(expected)}
        of_replays = _are_replays(template)
        for file, of_replay in ((ARRAYS, False), (REPLAY, True)):
            if of_replay and not (self.has_replay and any(of_replays)):
                continue
            those = [index for index in names if of_replays[index] == of_replay]
            those = [index for index in those if not (new_numbers and _is_number(names[index]))]
            for index in those if of_replay else ():
                leaves[index].delete()
            for index, value in self._arrays(file, those):
                if not _is_like(value, leaves[index]):
                    raise InputError(f"{self.path} has another {_words(expected[index])} than its {MANIFEST} says: {_REMEDY}")
                leaves[index] = _to_device(value, leaves[index])
        return jax.tree.unflatten(structure, leaves)

    def _arrays(self, file: str, indices: list[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Reads leaves of this process, one by one: a replay may be larger than the memory for two."""
        name = _own(file)
        try:
            with np.load(self.path / name, allow_pickle=False) as arrays:
                for index in indices:
                    yield index, arrays[f"arr_{index}"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.path / name} cannot be read ({type(error).__name__}): {_REMEDY}") from None


def save(
    directory: Path,
    state: chex.ArrayTree,
    params: Params,
    done: int,
    progress: Record,
    config: Record,
    keep: int,
    replays: Literal["all", "newest", "none"] = "all",
) -> Path:
    """Writes `directory/step_<done>` atomically and removes all but the `keep` newest.

    Args:
      directory: where checkpoints are kept.
      state: arrays and random keys.
      params: what of it is played, as `Driver.params` gives it.
      done: frames of one seed, or rounds, so far: the checkpoint's number.
      progress: JSON values that resuming needs.
      config: JSON values that must not change on resuming.
      keep: checkpoints kept.
      replays: which of them have the replays.

    Returns:
      The checkpoint's path. One that is there already, and whole, is left as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / f"step_{done:012d}"
    if all(peers.gather(_is_valid(final), "checkpoint")):
        return final
    aside = directory / f".writing_{final.name}"
    if peers.is_first():
        for leftover in directory.glob(".writing_*"):
            shutil.rmtree(leftover)
        aside.mkdir()
    peers.wait("checkpoint")
    with_paths = jax.tree_util.tree_leaves_with_path(state)
    of_replays = _are_replays(state)
    digests: dict[str, list[str]] = {}
    for name in [ARRAYS, *([REPLAY] if any(of_replays) and replays != "none" else [])]:
        with open(aside / _own(name), "wb") as file:
            those = [index for index, of_replay in enumerate(of_replays) if of_replay == (name == REPLAY)]
            arrays: dict[str, Any] = {f"arr_{index}": _to_host(with_paths[index][1]) for index in those}
            np.savez(file, **arrays)
            _flush(file)
        digests[name] = peers.gather(_digest_of(aside / _own(name)), "checkpoint")
    if peers.is_first():
        leaves = [_describe(path, leaf) for path, leaf in with_paths]
        with open(aside / POLICY, "wb") as file:
            write_policy(file, params, config, done)
            _flush(file)
        body: Record = {"progress": progress, "config": config, "leaves": leaves, "arrays_sha256": digests[ARRAYS]}
        body |= {"replay_sha256": digests.get(REPLAY), "replay_may_go": any(of_replays) and replays != "all"}
        body["policy_sha256"] = _digest_of(aside / POLICY)
        _publish(aside, final, body)
        # Later ones are damaged, or the run would have gone on from them: they must not crowd out good ones.
        for old in [path for path in _numbered(directory) if path <= final][:-keep]:
            shutil.rmtree(old)
        if replays != "all":
            for old in [path for path in _numbered(directory) if path < final]:
                for replay in old.glob(REPLAY.format("*")):
                    replay.unlink()
    peers.wait("checkpoint")
    return final


def _publish(aside: Path, final: Path, body: Record) -> None:
    """Writes the manifest, and renames the checkpoint into place."""
    with open(aside / MANIFEST, "w") as file:
        json.dump({"sha256": _sha256(json.dumps(body).encode()), "body": body}, file)
        _flush(file)
    # There is something to remove only when a resumed run passes a damaged checkpoint again.
    shutil.rmtree(final, ignore_errors=True)
    os.rename(aside, final)
    _flush_directory(final.parent)


def newest_valid(directory: Path) -> tuple[Checkpoint | None, list[str]]:
    """Finds the newest undamaged checkpoint, or None where there are none at all, with a sentence about each damaged one.

    Raises:
      InputError: if there are checkpoints and all are damaged, or one is of another number of processes.
    """
    problems: list[str] = []
    names = peers.gather([path.name for path in _numbered(directory)], "checkpoints")[0]
    for name in reversed(names):
        found, problem = None, None
        try:
            found = read(directory / name)
        except DamagedCheckpoint as damage:
            problem = str(damage)
        damaged = [words for words in peers.gather(problem, "checkpoints") if words is not None]
        if not damaged:
            return found, problems
        problems.append(damaged[0])
    if problems:
        raise InputError(f"no checkpoint in {directory} can be used: {'; '.join(problems)}")
    return None, problems


def newest_policy(directory: Path) -> Path:
    """Finds the policy of the newest undamaged checkpoint, by however many processes it was written.

    Raises:
      InputError: if there is none, or an older version wrote the checkpoint.
    """
    problems = []
    for path in reversed(_numbered(directory)):
        try:
            digest = _read_manifest(path).get("policy_sha256")
            if digest is None:
                raise InputError(f"{path} is of an older version, without {POLICY}: load it with the one that wrote it")
            _check(path, POLICY, digest)
        except DamagedCheckpoint as damage:
            problems.append(str(damage))
        else:
            return path / POLICY
    if problems:
        raise InputError(f"no checkpoint in {directory} can be used: {'; '.join(problems)}")
    raise InputError(f"{directory} has no checkpoint yet: wait for the first, or name another run directory")


def read(path: Path) -> Checkpoint:
    """Verifies one checkpoint: its manifest, its policy and this process's arrays.

    Raises:
      DamagedCheckpoint: if a file is missing or not what was written.
      InputError: if it was written by another number of processes, or another version of this program.
    """
    body = _read_manifest(path)
    digests, now = body["arrays_sha256"], jax.process_count()
    if not isinstance(digests, list):
        raise InputError(f"{path} was written by another version: resume with that one or use a new run directory")
    if not all(isinstance(body.get(name), kind) for name, kind in _REPLAY_BODY.items()):
        raise InputError(f"{path} was written by an older version: resume with that one or use a new run directory")
    if len(digests) != now:
        raise InputError(f"{path} was written by {len(digests)} process(es), and there are {now}: resume with as many")
    _check(path, _own(ARRAYS), digests[jax.process_index()])
    of_replay = body["replay_sha256"]
    has_replay = of_replay is not None and not (body["replay_may_go"] and not (path / _own(REPLAY)).exists())
    if has_replay:
        _check(path, _own(REPLAY), of_replay[jax.process_index()])
    # Checkpoints of older versions have no policy.
    if "policy_sha256" in body:
        _check(path, POLICY, body["policy_sha256"])
    return Checkpoint(path, body["progress"], body["config"], body["leaves"], has_replay or not body["replay_may_go"])


def _read_manifest(path: Path) -> Record:
    """Reads the body of a manifest; raises DamagedCheckpoint unless it is what was written."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        body = manifest["body"]
        intact = manifest["sha256"] == _sha256(json.dumps(body).encode())
        whole = all(isinstance(body[name], kind) for name, kind in _BODY.items())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path.name} is damaged ({MANIFEST} cannot be read: {type(error).__name__})") from None
    if not intact:
        raise DamagedCheckpoint(f"{path.name} is damaged ({MANIFEST} is not what was written)")
    if not (whole and all(isinstance(leaf, dict) and leaf.keys() == {"name", "shape", "dtype"} for leaf in body["leaves"])):
        raise DamagedCheckpoint(f"{path.name} is damaged ({MANIFEST} is not a checkpoint's)")
    return body


def _check(path: Path, name: str, digest: str) -> None:
    """Raises DamagedCheckpoint unless a file of a checkpoint is what was written."""
    try:
        found = _digest_of(path / name)
    except OSError as error:
        raise DamagedCheckpoint(f"{path.name} is damaged ({name} cannot be read: {type(error).__name__})") from None
    if found != digest:
        raise DamagedCheckpoint(f"{path.name} is damaged ({name} is not what was written)")


def _is_valid(path: Path) -> bool:
    try:
        read(path)
    except DamagedCheckpoint:
        return False
    return True


def check_same_config(saved: Record, current: Record) -> Record:
    """Compares the config of a run (nested dicts) with the one it is resumed with.

    Returns:
      The `NUMBERS` that have changed: {name: [before, now]}.

    Raises:
      InputError: field by field, where anything else differs that would change the run.
    """
    before, now = flatten(saved), flatten(current)
    differ = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    changes = {name: [before.get(name), now.get(name)] for name in differ if name not in _MAY_CHANGE}
    refused = "; ".join(words_of({name: change}) for name, change in changes.items() if not _are_numbers(name, *change))
    if refused:
        raise InputError(f"the run directory holds another config ({refused}): undo that or use a new run directory")
    return changes


def words_of(changes: Record) -> str:
    """Says which numbers changed."""
    return "; ".join(f"{name} was {before} and is {now}" for name, (before, now) in changes.items())


def _is_number(name: str) -> bool:
    """Tells whether a leaf of the state, by its path, holds a number of the config; that of a restarted decay does not."""
    return not name.endswith(".epsilon_first_frame") and re.search(r"\.(loss_)?hyperparams\b", name) is not None


def _are_numbers(name: str, before: Any, now: Any) -> bool:
    """Tells whether two values of a field, given by its dotted name, differ in numbers of the state alone."""
    return name in NUMBERS or (name in _NAMES and divided(before)[0] == divided(now)[0])


def _describe(path: Any, leaf: jax.Array) -> Record:
    return {"name": jax.tree_util.keystr(path), "shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _words(leaf: Record | None) -> str:
    return "{name} {dtype} {shape}".format(**leaf) if leaf else "nothing"


def _is_like(value: np.ndarray, leaf: jax.Array) -> bool:
    """Tells whether a saved array has the shape and dtype of what a leaf is saved as."""
    like = jax.eval_shape(jax.random.key_data, leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return value.shape == like.shape and value.dtype == like.dtype


def _to_host(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def _to_device(value: np.ndarray, like: jax.Array) -> jax.Array:
    if jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(like)), like.sharding)
    return jax.device_put(value, like.sharding)


def _own(name: str) -> str:
    return name.format(jax.process_index())


def _are_replays(state: chex.ArrayTree) -> list[bool]:
    """Tells which leaves of a state are those of a replay."""

    def all_of(node: Any) -> Any:
        return jax.tree.map(lambda _: isinstance(node, ReplayState), node)

    return jax.tree.leaves(jax.tree.map(all_of, state, is_leaf=lambda node: isinstance(node, ReplayState)))


def _numbered(directory: Path) -> list[Path]:
    """Lists checkpoints from oldest to newest, damaged or not."""
    return sorted(directory.glob("step_*"))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of(path: Path) -> str:
    """Hashes a file block by block: that of a replay may be larger than the memory that is left."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
