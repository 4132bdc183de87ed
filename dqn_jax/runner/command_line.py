"""Command lines of the experiments: flags from a config dataclass, presets, files, and errors as one sentence.

A field has the value of a flag; else that of the run that is resumed; else that of `--config`; else that of `--algorithm`,
`--tuned` or not; else that of the preset, fitted to a short run. Not here: jax. Flags are parsed before it starts.
"""

import argparse
import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from dqn_jax.algorithms import ALGORITHMS, fields_of
from dqn_jax.config import Experiment, InputError, Record, TrainingError, require
from dqn_jax.runner.config_file import CONFIG, NUMBERS, config_dict, flatten, nest, read_config, with_values
from dqn_jax.runner.fitting import FITTED, fitted
from dqn_jax.runner.signals import Stopped, ended_by_interrupts
from dqn_jax.tuned import tuned_fields

Config = TypeVar("Config", bound=Experiment)
Options = TypeVar("Options")

_DEBUG = "--debug"
_HELP = ("-h", "--help")
_OF_THE_RUN = ("run_dir", "resume", "num_devices")
"""Fields that a run's config does not give to another run."""
_KEPT = ("num_devices", "total_frames", *FITTED, *NUMBERS)
"""Fields that a resumed run keeps although a preset or a file is named: fitted once, or changed at another resume."""


@dataclasses.dataclass(frozen=True)
class NoFlags:
    """The options of a command that has none."""


class _Parser(argparse.ArgumentParser):
    """A parser of some of the flags, whose errors are sentences."""

    def __init__(self) -> None:
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(message.replace("argument ", "", 1))


def parse(presets: Mapping[str, Config], description: str, args: Sequence[str] | None = None) -> Config:
    """Reads a config from the command line.

    Args:
      presets: configs by name, the default first; flags change single fields of the one that `--preset` names.
      description: what `--help` says first.
      args: arguments; None takes those of the process.

    Returns:
      The config.

    Raises:
      InputError: for a flag that is unknown, or whose value cannot be used.
    """
    first = _Parser()
    # Read by `_explain`, not part of any config.
    first.add_argument(_DEBUG, action="store_true")
    first.add_argument("--preset", choices=list(presets))
    first.add_argument("--algorithm", choices=list(ALGORITHMS))
    first.add_argument("--tuned", action="store_true")
    first.add_argument("--config", type=Path)
    chosen, rest = first.parse_known_args(list(sys.argv[1:] if args is None else args))
    name = chosen.preset or next(iter(presets))
    text = f"{description}\n\n--preset {{{','.join(presets)}}} sets the defaults below (shown: {name}). "
    text += f"--algorithm {{{','.join(ALGORITHMS)}}} sets fields of agent and network, "
    text += "with --tuned also those tuned for the environment. "
    text += "--config FILE takes a run's config.json, or part of one, instead. "
    text += f"{_DEBUG} shows the traceback of an error that is otherwise one sentence."
    try:
        start = _start(presets[name], chosen, rest)
    except InputError as error:
        raise InputError(with_flags(str(error), presets[name])) from error
    return options(start, text, rest)


def _start(preset: Config, chosen: argparse.Namespace, args: Sequence[str]) -> Config:
    """Returns the config that flags change: of the run to be resumed, of a file, or of the preset, fitted."""
    given = _given(preset, args)
    config = preset
    require(chosen.algorithm is not None or not chosen.tuned, "--tuned has no --algorithm beside it: name one")
    if chosen.algorithm is not None:
        fields = tuned_fields if chosen.tuned else fields_of
        config = _with(config, fields(chosen.algorithm, str(given.get("env", config.env))), given, args)
    if chosen.config is not None:
        values = {name: value for name, value in read_config(chosen.config).items() if name not in _OF_THE_RUN}
        config = with_values(config, values, str(chosen.config))
    run_dir = Path(given.get("run_dir", config.run_dir))
    saved = _saved(run_dir) if "resume" in given else None
    if saved is None:
        return _said(config, fitted(config, given), given)
    if any(name is not None for name in (chosen.preset, chosen.algorithm, chosen.config)):
        # All else is compared with the run's, and refused where it differs.
        saved = nest({name: value for name, value in flatten(saved).items() if name in _KEPT})
    # Where it is now: a directory may have been moved.
    return with_values(config, saved | {"run_dir": run_dir}, "the run directory")


def _with(config: Config, fields: Record, given: Record, args: Sequence[str]) -> Config:
    """Sets fields by dotted name; where they do not fit the others, with the flags that are given, which may make them fit."""
    try:
        return with_values(config, nest(fields))
    except InputError as error:
        flags = flatten(config_dict(options(config, "", args)))
        try:
            return with_values(config, nest(fields | {name: flags[name] for name in given}))
        except InputError:
            raise error from None


def _given(config: Experiment, args: Sequence[str]) -> Record:
    """Returns values of flags that name a field, by the field's name: whole numbers, else text; "" where there is none."""
    fields = {_flag(name): name for name in flatten(config_dict(config))}
    given: Record = {}
    for place, arg in enumerate(args, start=1):
        flag, equals, text = arg.partition("=")
        following = args[place] if place < len(args) else ""
        if flag in fields:
            given[fields[flag]] = text = text if equals else "" if following.startswith("--") else following
            with contextlib.suppress(ValueError):
                given[fields[flag]] = _whole(text)
    return given


def _said(before: Config, after: Config, given: Record) -> Config:
    """Returns the second config, and says on stderr what was fitted."""
    old, new = flatten(config_dict(before)), flatten(config_dict(after))
    changes = ", ".join(f"{_flag(name)} {new[name]}" for name in FITTED if new[name] != old[name] and name not in given)
    if changes:
        print(f"fitted to {new['total_frames']:,} frames: {changes}", file=sys.stderr)
    return after


def _saved(run_dir: Path) -> Record | None:
    """Reads the config of a run; None where there is none, or one that the run itself must judge."""
    with contextlib.suppress(InputError):
        return read_config(run_dir / CONFIG)
    return None


def options(start: Options, description: str, args: Sequence[str] | None = None) -> Options:
    """Changes single fields of a dataclass by flags.

    Args:
      start: values without flags, which `--help` shows.
      description: what `--help` says first.
      args: arguments; None takes those of the process.

    Raises:
      InputError: for a flag that is unknown, or whose value cannot be used.
    """
    args = list(sys.argv[1:] if args is None else args)
    said, shown, group = io.StringIO(), io.StringIO(), _asked_for(args)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            config, unknown = tyro.cli(
                type(start), default=start, args=args, description=description, return_unknown_args=True, registry=_REGISTRY
            )
    except InputError as error:
        raise InputError(with_flags(str(error), start)) from error
    except SystemExit as ended:
        if ended.code:
            raise InputError(_sentence(said.getvalue())) from None
        print(_help(shown.getvalue(), group))
        raise
    if unknown:
        flag = unknown[0].partition("=")[0]
        close = difflib.get_close_matches(flag, _all_flags(start), n=1)
        raise InputError(f"{flag} is no flag of this command: " + (f"did you mean {close[0]}?" if close else "see --help"))
    return config


def _asked_for(args: list[str]) -> str | None:
    """Takes the word after `--help`, if there is one, out of the arguments."""
    place = next((place for place, arg in enumerate(args) if arg in _HELP), len(args))
    return args.pop(place + 1) if args[place + 1 : place + 2] and not args[place + 1].startswith("-") else None


def _help(text: str, group: str | None) -> str:
    """Returns the part of a help text that is asked for: the flags of one group, all, or the first ones, which are common."""
    usage, common, *parts = re.split(r"(?m)^(?=[^\w\n]*(?:[\w.]+ )?options\b)", text)
    groups = {re.findall(r"[\w.]+", part)[0]: part.rstrip() for part in parts}
    if group == "all" or not groups:
        return text.rstrip()
    require(group is None or group in groups, f"--help {group}: there is {', '.join(groups)}, or all")
    return groups[group] if group else f"{usage}{common.rstrip()}\n\n More flags: --help {'|'.join(groups)}, or --help all."


def _whole(text: str) -> int:
    """Reads a whole number, also one written as 1e3."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError, OverflowError):
        if int(float(text)) == float(text):
            return int(float(text))
    raise ValueError(f"{text!r} is not a whole number")


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _whole_numbers(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: _whole(texts[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def _sentence(box: str) -> str:
    """Returns the first part of a message that is drawn in a box, in whichever characters."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    rules = [place for place, line in enumerate(lines) if re.search("[─-]{4}", line)]
    words = " ".join(lines[rules[0] + 1 : rules[1]] if len(rules) > 1 else lines)
    return words.removeprefix("Error parsing ").strip().removesuffix(".")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _all_flags(config: Any) -> list[str]:
    values = flatten(config_dict(config))
    negated = [_flag(".no-".join(name.rsplit(".", 1)) if "." in name else f"no-{name}") for name in values]
    return [*map(_flag, values), *negated, "--preset", "--algorithm", "--tuned", "--config", _DEBUG]


def with_flags(message: str, config: Any) -> str:
    """Names flags instead of fields: `--agent.learning-rate` for agent.learning_rate.

    A name of one word is a flag only at the beginning, as in "env is 'x'": elsewhere it is a word.
    """
    names = flatten(config_dict(config))
    for name in sorted(names, key=len, reverse=True):
        begin = r"(?<![\w.'-])" if "." in name or "_" in name else "^"
        message = re.sub(rf"{begin}{re.escape(name)}(?![\w.'-])", _flag(name), message)
    return message


def exit_code_of(main: Callable[[], None], presets: Mapping[str, Experiment] | None = None) -> int:
    """Runs a script's `main` and returns its exit status: 2 after bad input, 1 after a failed run, 128 + signal if stopped.

    Errors that a user can act on become one sentence on stderr, after their traceback if the flag --debug is given; anything
    else keeps its traceback. The working directory is searched for modules, as by `python -m`: a config may name a user's own.

    Args:
      main: what to run.
      presets: those of its flags, which errors then name.
    """
    sys.path.insert(0, os.getcwd())
    config = next(iter(presets.values())) if presets else None
    try:
        with ended_by_interrupts():
            main()
    except InputError as error:
        return _explain(error, 2, config)
    except Stopped as stop:
        return _explain(stop, stop.exit_code)
    except TrainingError as error:
        return _explain(error, 1, config)
    except BrokenPipeError:
        # Nobody reads on, as after `| head`; nor will what Python writes when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _explain(error: Exception, code: int, config: Experiment | None = None) -> int:
    if _DEBUG in sys.argv:
        traceback.print_exception(error)
    print(with_flags(str(error), config) if config else error, file=sys.stderr)
    return code
