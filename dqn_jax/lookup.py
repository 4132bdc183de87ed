"""Lookup of the parts that a config names: built-in ones, or a user's `module:attribute`, either with numbers.

`huber`, `huber:0.5`, `mine:munchausen`, `mine:munchausen:0.03:0.9`. Built-in names are listed in the parts' own modules.
"""

import contextlib
import difflib
import importlib
import inspect
import math
import platform
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from dqn_jax.config import InputError, require

_NOT_THE_USERS = (Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")))
"""Folders of this package, of Python and of libraries."""


class Found(NamedTuple):
    """What a name in a config stands for."""

    part: Any
    numbers: tuple[float, ...]
    """Those after the name, in order."""


def is_users(spec: str) -> bool:
    """Tells whether a name is a user's `module:attribute`, with numbers or without."""
    return ":" in divided(spec)[0]


def lookup(argument: str, spec: str, named: Mapping[str, Any], usable: Callable[[Any], bool] = callable) -> Found:
    """Finds what `spec` stands for: a key of `named`, or an attribute of an importable module.

    Args:
      argument: the config field it comes from, for messages.
      spec: a name or "module:attribute", then numbers, all divided by colons.
      named: built-in parts by name, which come before modules.
      usable: whether an attribute is of the kind wanted.

    Returns:
      The value or attribute, and the numbers.

    Raises:
      InputError: if there is no such thing, it is of another kind, or its module fails when it is imported.
    """
    name, numbers = divided(spec)
    if name in named:
        return Found(named[name], numbers)
    module_name, _, attribute = name.partition(":")
    require(module_name not in named, f"{argument} is {spec!r}: after {module_name} give finite numbers, as {module_name}:0.1")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        close = difflib.get_close_matches(name, named, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(named)}, or give module:attribute"
        raise InputError(f"{argument} is {spec!r}, which has no meaning here: {hint}")
    with blamed_on(argument, spec):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise InputError(
                f"{argument} is {spec!r}, and host {platform.node()} has no module {module_name}: start in its folder, or set "
                "PYTHONPATH"
            ) from None
    found = getattr(module, attribute, None)
    if not usable(found):
        raise InputError(f"{argument} is {spec!r}, and module {module_name} has nothing of that name to use: correct it")
    return Found(found, numbers)


def function_of(argument: str, spec: str, found: Found, num_args: int) -> Callable:
    """Wraps a part: the numbers of its name are passed after the arguments, and a user's errors become InputErrors.

    Args:
      argument: the config field it comes from, for messages.
      spec: its name.
      found: what that stands for.
      num_args: positional arguments it will be called with.

    Raises:
      InputError: where it does not take so many arguments and numbers.
    """
    try:
        inspect.signature(found.part).bind(*[None] * num_args, *found.numbers)
    except (TypeError, ValueError) as error:
        # ValueError: of some built-in functions Python does not know the arguments.
        raise InputError(
            f"{argument} is {spec!r}, called with {num_args} argument(s) and then its {len(found.numbers)} number(s), which do "
            f"not fit it ({error}): correct them"
        ) from None

    def function(*args: Any, **options: Any) -> Any:
        with blamed_on(argument, spec):
            return found.part(*args, *found.numbers, **options)

    return function


def record_of(argument: str, spec: str, found: Found, kind: type) -> Any:
    """Returns a part that is a record of type `kind`, or that a function makes from the numbers of its name.

    Raises:
      InputError: where the numbers do not fit, or something else is made.
    """
    made = found.part
    if not isinstance(made, kind):
        made = function_of(argument, spec, found, 0)()
    else:
        require(not found.numbers, f"{argument} is {spec!r}, which takes no numbers: leave them out")
    check_kind(argument, spec, made, kind, f"a {kind.__name__}")
    return made


def check_kind(argument: str, spec: str, made: Any, kind: type, wanted: str) -> None:
    """Raises InputError unless `made` is of type `kind`, which `wanted` names in words."""
    require(isinstance(made, kind), f"{argument} is {spec!r}, which makes a {type(made).__name__}: make {wanted}")


def named_numbers(argument: str, spec: str, found: Found) -> dict[str, jax.Array]:
    """Reads the numbers of a part that declares defaults, as `part.numbers = {"delta": 1.0}`; given ones replace the first.

    Returns:
      {name: [] float32}, arrays so that a sweep may vary them. Those of built-in parts must be above 0.

    Raises:
      InputError: for more than it has, or others than it may have.
    """
    defaults: Mapping[str, float] = getattr(found.part, "numbers", {})
    require(
        isinstance(defaults, Mapping) and all(isinstance(value, (int, float)) for value in defaults.values()),
        f"{argument} is {spec!r}, whose attribute numbers is {defaults!r}: give numbers by name, as {{'delta': 1.0}}",
    )
    takes = f"takes {len(defaults)} ({', '.join(defaults)})" if defaults else "takes none"
    require(len(found.numbers) <= len(defaults), f"{argument} is {spec!r}, which {takes}: leave out the rest")
    numbers = {**defaults, **dict(zip(defaults, found.numbers, strict=False))}
    require(is_users(spec) or all(value > 0 for value in numbers.values()), f"{argument} is {spec!r}: give numbers above 0")
    return {name: jax.numpy.float32(value) for name, value in numbers.items()}


def strong(x: Any) -> jax.Array:
    """Drops the weak type that Python numbers leave behind: where reset and step differ in it, a loop is traced twice."""
    x = jax.numpy.asarray(x)
    return x if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, x.dtype)


def check_like(argument: str, spec: str, made: Any, like: Any) -> None:
    """Raises InputError unless `made` has the structure and shapes of `like`. It works on traced arrays."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): jax.numpy.shape(leaf) for path, leaf in leaves}

    found, wanted = shapes(made), shapes(like)
    wrong = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if wrong:
        one = f"its{wrong[0]}" if wrong[0] else "it"
        raise InputError(f"{argument} is {spec!r}, and {one} has shape {found.get(wrong[0])}: give {wanted.get(wrong[0])}")


@contextlib.contextmanager
def blamed_on(argument: str, spec: str) -> Iterator[None]:
    """Turns an error of a user's code in the body into an InputError with file and line; built-in parts raise as they are."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not is_users(spec):
            raise
        words = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
        raise InputError(f"{argument} is {spec!r}, which fails{_place_of(error)} with {reason}") from error


def divided(spec: str) -> tuple[str, tuple[float, ...]]:
    """Splits a spec into (name, numbers at its end)."""
    parts = spec.split(":")
    numbers: list[float] = []
    while len(parts) > 1 and _is_number(parts[-1]):
        numbers.insert(0, float(parts.pop()))
    return ":".join(parts), tuple(numbers)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _place_of(error: Exception) -> str:
    """Finds where in the user's own code an error was raised."""
    if isinstance(error, SyntaxError):
        return f" at {error.filename}:{error.lineno}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.suffix == ".py" and not any(path.is_relative_to(folder) for folder in _NOT_THE_USERS):
            return f" at {frame.filename}:{frame.lineno}"
    return ""
