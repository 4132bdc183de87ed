"""The policy that a run has learned, as one file: parameters by name and the config, and nothing else.

Every checkpoint has one, and `dqn-jax export` copies it. Reading needs neither the training's devices nor its state, and never
unpickles. Not here: the network that the parameters are of (`play`).

Shapes: S seeds.
"""

import json
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from dqn_jax.config import InputError, Record
from dqn_jax.types import Params, Tree

POLICY = "policy.npz"
"""Its name in a checkpoint."""
_ABOUT, _PARAMS = "about.json", "params/"


class PolicyFile(NamedTuple):
    """What the file says."""

    config: Record
    """The run's."""
    done: int
    """Frames of one seed, or rounds, so far."""
    arrays: dict[str, np.ndarray]
    """Leaves [S, ...] of what `Driver.params` gives, by their path, such as "trunk/Dense_0/kernel"."""


def write_policy(file: IO[bytes], params: Params, config: Record, done: int) -> None:
    """Writes to an open file; `params` has leaves [S, ...], or is several such by name."""
    about = json.dumps({"config": config, "done": done})
    arrays = {f"{_PARAMS}{name}": np.asarray(leaf) for name, leaf in by_name(params).items()}
    entries: dict[str, Any] = {_ABOUT: np.array(about), **arrays}
    np.savez(file, **entries)


def read_policy(path: Path) -> PolicyFile:
    """Reads the file.

    Raises:
      InputError: if it cannot be read, or is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as entries:
            about = json.loads(str(entries[_ABOUT]))
            arrays = {name.removeprefix(_PARAMS): entries[name] for name in entries if name.startswith(_PARAMS)}
        return PolicyFile(about["config"], about["done"], arrays)
    except FileNotFoundError:
        raise InputError(f"{path} is not there: name a run directory, or a file that dqn-jax export has written") from None
    except Exception as error:
        # An archive with some bits flipped fails in a dozen ways.
        kind = type(error).__name__
        raise InputError(f"{path} is damaged, or no policy that dqn-jax export has written ({kind}): export it again") from None


def copy_policy(source: Path, target: Path) -> PolicyFile:
    """Copies a file that is whole, and returns what it says.

    Raises:
      InputError: if it cannot be read, or the copy not be written.
    """
    policy = read_policy(source)
    try:
        target.write_bytes(source.read_bytes())
    except OSError as error:
        raise InputError(f"file {target} cannot be written ({error.strerror}): name another") from None
    return policy


def by_name(params: Tree) -> dict[str, Tree]:
    """Lists the leaves of a tree by their path, as "trunk/Dense_0/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
