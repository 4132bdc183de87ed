"""Command lines of the experiments: flags from a config dataclass, presets, and errors as one sentence.

Not here: jax. Flags are parsed before it starts.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from dqn_jax.config import InputError, TrainingError
from dqn_jax.runner.signals import Stopped

Config = TypeVar("Config")

_DEBUG = "--debug"


def parse(presets: Mapping[str, Config], description: str, args: Sequence[str] | None = None) -> Config:
    """Reads a config from the command line.

    Args:
      presets: configs by name, the default first; flags change single fields of the one that `--preset` names.
      description: what `--help` says first.
      args: arguments; None takes those of the process.

    Returns:
      The config. A flag that is unknown, or whose value cannot be used, ends the process with status 2 and a message.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # Read by `_explain`, not part of any config.
    first.add_argument(_DEBUG, action="store_true")
    first.add_argument("--preset", choices=list(presets), default=next(iter(presets)))
    chosen, rest = first.parse_known_args(list(sys.argv[1:] if args is None else args))
    preset = presets[chosen.preset]
    text = f"{description}\n\n--preset {{{','.join(presets)}}} sets the defaults below (shown: {chosen.preset}). "
    text += f"{_DEBUG} shows the traceback of an error that is otherwise one sentence."
    return tyro.cli(type(preset), default=preset, args=rest, description=text)


def exit_code_of(main: Callable[[], None]) -> int:
    """Runs a script's `main` and returns its exit status: 2 after bad input, 1 after a failed run, 128 + signal if stopped.

    Errors that a user can act on become one sentence on stderr, after their traceback if the flag --debug is given; anything
    else keeps its traceback. The working directory is searched for modules, as by `python -m`: a config may name a user's own.
    """
    sys.path.insert(0, os.getcwd())
    try:
        main()
    except InputError as error:
        return _explain(error, 2)
    except Stopped as stop:
        return _explain(stop, stop.exit_code)
    except TrainingError as error:
        return _explain(error, 1)
    return 0


def _explain(error: Exception, code: int) -> int:
    if _DEBUG in sys.argv:
        traceback.print_exception(error)
    print(error, file=sys.stderr)
    return code
