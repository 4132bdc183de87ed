"""Command lines of the experiments: flags from a config dataclass, presets, and errors as one sentence.

Not here: jax. Flags are parsed before it starts.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import tyro

from dqn_jax.config import InputError, TrainingError
from dqn_jax.runner.signals import Stopped

Config = TypeVar("Config")


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
    first.add_argument("--preset", choices=list(presets), default=next(iter(presets)))
    chosen, rest = first.parse_known_args(list(sys.argv[1:] if args is None else args))
    preset = presets[chosen.preset]
    text = f"{description}\n\n--preset {{{','.join(presets)}}} sets the defaults below (shown: {chosen.preset})."
    return tyro.cli(type(preset), default=preset, args=rest, description=text)


def exit_code_of(main: Callable[[], None]) -> int:
    """Runs a script's `main` and returns its exit status: 2 after bad input, 1 after a failed run, 128 + signal if stopped.

    Errors that a user can act on become one sentence on stderr; anything else keeps its traceback.
    """
    try:
        main()
    except InputError as error:
        return _complain(error, 2)
    except Stopped as stop:
        return _complain(stop, stop.exit_code)
    except TrainingError as error:
        return _complain(error, 1)
    return 0


def _complain(error: Exception, code: int) -> int:
    print(error, file=sys.stderr)
    return code
