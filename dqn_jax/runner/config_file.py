"""Configs as `config.json` has them: nested dicts of JSON values, read back into dataclasses.

Imports no jax: flags are parsed with what stands here. Not here: which differences a run may be resumed with (checkpoint).
"""

import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, TypeVar

from dqn_jax.config import AgentConfig, InputError, Record, require

Config = TypeVar("Config")

CONFIG = "config.json"
ASIDE = ("versions", "history")
"""Entries of the file that are no part of the config: what ran it, and which numbers changed when it was resumed."""
NUMBERS = tuple(f"agent.{name}" for name in AgentConfig.NUMBERS)
"""Dotted names of the fields that are numbers in the agent's state, and may change when a run is resumed."""


def config_dict(config: Any) -> Record:
    """Converts a config dataclass to nested dicts of JSON values, as read back from a file."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def flatten(config: Record, prefix: str = "") -> Record:
    """Returns {"agent.num_envs": 16, ...} for nested dicts."""
    flat: Record = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def nest(flat: Record) -> Record:
    """Undoes `flatten`."""
    config: Record = {}
    for name, value in flat.items():
        *sections, field = name.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return config


def read_config(path: Path) -> Record:
    """Reads a file with a config, or with a part of one, without what is aside.

    Raises:
      InputError: if it cannot be read, or holds something else.
    """
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"config {path} cannot be read ({error.strerror}): name a file") from None
    except ValueError:
        raise InputError(f"{path} is damaged (not JSON): restore it or use a new run directory") from None
    require(isinstance(config, dict), f"{path} is damaged (no config): restore it or use a new run directory")
    return {name: value for name, value in config.items() if name not in ASIDE}


def with_values(config: Config, values: Record, source: str | None = None) -> Config:
    """Returns a config dataclass with some fields replaced.

    Args:
      config: what to start from.
      values: fields and their values, nested dicts of JSON values.
      source: where they come from, for messages, if that is worth saying.

    Raises:
      InputError: for a name that is no field, or values that cannot be used.
    """
    try:
        return _replaced(config, values, "")
    except (InputError, TypeError) as error:
        raise InputError(f"in {source}, {error}" if source else str(error)) from None


def _replaced(config: Any, values: Record, section: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    new = {}
    for name, value in values.items():
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {section}{close[0]}?" if close else f"it has {', '.join(names)}"
        require(name in names, f"{section}{name} is no field of a {type(config).__name__}: {hint}")
        before = getattr(config, name)
        if dataclasses.is_dataclass(before):
            require(isinstance(value, dict), f"{section}{name} is {value!r}: give its fields by name")
            new[name] = _replaced(before, value, f"{section}{name}.")
        else:
            new[name] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(config, **new)
