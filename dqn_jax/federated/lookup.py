"""A user's own part by name: `module:attribute`. Not here: the parts that have names of their own."""

import difflib
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from dqn_jax.config import InputError


def lookup(argument: str, spec: str, named: Mapping[str, Any], usable: Callable[[Any], bool] = callable) -> Any:
    """What `spec` stands for: a key of `named`, or an attribute of an importable module.

    Args:
      argument: the config field it comes from, for messages.
      spec: a name, or "module:attribute".
      named: what there is by name.
      usable: whether an attribute is of the kind wanted.

    Returns:
      The value or attribute.

    Raises:
      InputError: if there is no such thing, or it is of another kind.
    """
    if spec in named:
        return named[spec]
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
        close = difflib.get_close_matches(spec, named, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(named)}, or give module:attribute"
        raise InputError(f"{argument} is {spec!r}, which has no meaning here: {hint}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"{argument} is {spec!r}, and module {module_name} is not found: set PYTHONPATH") from None
    found = getattr(module, attribute, None)
    if not usable(found):
        raise InputError(f"{argument} is {spec!r}, and module {module_name} has nothing of that name to use: correct it")
    return found
