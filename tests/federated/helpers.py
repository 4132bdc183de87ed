"""What the federated tests share: what they ask of a refusal, and a compiler in a hurry."""

import functools
import re

import jax
import pytest

from dqn_jax.config import InputError

# For programs that run once or twice: compiling them well takes longer than running them badly.
jit_in_a_hurry = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def one_line(build):
    """The message of the InputError that `build` must raise, on one line; the words of somebody else's error may be in it."""
    with pytest.raises(InputError) as refused:
        build()
    message = str(refused.value)
    assert "\n" not in message
    return message


def refusal(build):
    """The message of the InputError that `build` must raise: one sentence, which says what is wrong and then what to do."""
    message = one_line(build)
    # A full stop inside a number or a file name is not the end of a sentence.
    assert re.search(r"[.!?](\s|$)", message.removesuffix("?")) is None, message
    assert re.fullmatch(r"\S.*: \S.*", message), message
    return message
