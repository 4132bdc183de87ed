"""A name stands for what is there by name or for an attribute of a module, and everything else is refused in one sentence."""

import json
import os.path

import pytest
from federated.helpers import refusal

from dqn_jax.federated.lookup import lookup

NAMED = {"mean": 1, "median": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mean", 1),
        ("median", 2),
        ("json:dumps", json.dumps),
        ("os.path:join", os.path.join),
        ("json.decoder:JSONDecoder", json.JSONDecoder),
    ],
)
def test_names_and_attributes(spec, expected):
    assert lookup("field", spec, NAMED) is expected


def test_what_is_named_comes_first():
    assert lookup("field", "json:dumps", {"json:dumps": 3}) == 3


def test_a_value_that_is_false_is_a_value():
    assert lookup("field", "nothing", {"nothing": None}) is None


def test_a_users_module(folder):
    (folder / "lookup_users_part.py").write_text("def halve(x):\n    return x / 2\n")
    assert lookup("field", "lookup_users_part:halve", NAMED)(3) == 1.5


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("meann", "which has no meaning here: did you mean mean?"),
        # What is no identifier on either side of one colon cannot be imported; trying would raise errors of importlib's own.
        *(
            (spec, "which has no meaning here: choose one of mean, median, or give module:attribute")
            for spec in (
                "MEDIAN_OF",
                "",
                ":",
                ":thing",
                ".x:thing",
                "x.:thing",
                "..:thing",
                "json:",
                "json:dumps:more",
                "a b:c",
            )
        ),
        ("nomodule:thing", "and module nomodule is not found: set PYTHONPATH"),
        # Its parent is there, and it is not.
        ("json.nothing:thing", "and module json.nothing is not found: set PYTHONPATH"),
        # Its parent is there, and can have no modules inside.
        ("json.decoder.nothing:thing", "and module json.decoder.nothing is not found: set PYTHONPATH"),
        ("nomodule.inside:thing", "and module nomodule.inside is not found: set PYTHONPATH"),
        ("json:nothing", "and module json has nothing of that name to use: correct it"),
        # It is there, and cannot be called.
        ("json.decoder:NaN", "and module json.decoder has nothing of that name to use: correct it"),
        ("json:decoder", "and module json has nothing of that name to use: correct it"),
    ],
)
def test_refusals(spec, remedy):
    assert refusal(lambda: lookup("federated.field", spec, NAMED)) == f"federated.field is {spec!r}, {remedy}"


def test_a_module_that_itself_imports_what_is_not_there_says_so(folder):
    """Else its user would look for a module that is where it should be."""
    (folder / "lookup_needs_more.py").write_text("import lookup_not_installed\n")
    with pytest.raises(ModuleNotFoundError, match="lookup_not_installed"):
        lookup("field", "lookup_needs_more:thing", NAMED)


def test_a_module_that_needs_a_module_with_a_name_like_its_own_says_so(folder):
    """A name that begins alike is not a parent's; nor is a module inside the user's package the package."""
    (folder / "lookup_outer.py").write_text("import lookup_out\n")
    with pytest.raises(ModuleNotFoundError, match="'lookup_out'"):
        lookup("field", "lookup_outer:thing", NAMED)
    (folder / "lookup_package").mkdir()
    (folder / "lookup_package" / "__init__.py").write_text("import lookup_package.inside\n")
    with pytest.raises(ModuleNotFoundError, match=r"'lookup_package\.inside'"):
        lookup("field", "lookup_package:thing", NAMED)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("1 / 0", ZeroDivisionError),
        # Else its user would be told that `thing` is missing, and it is there.
        ("import json\njson.nothing\nthing = print", AttributeError),
        ("from json import nothing", ImportError),
        # Without the name of a module, as code may raise it.
        ("raise ModuleNotFoundError('of its own')", ModuleNotFoundError),
        ("thing = (", SyntaxError),
    ],
)
def test_a_module_with_an_error_says_so(folder, source, error):
    name = f"lookup_raises_{error.__name__}"
    (folder / f"{name}.py").write_text(source + "\n")
    with pytest.raises(error) as raised:
        lookup("field", f"{name}:thing", NAMED)
    assert type(raised.value) is error


def test_what_is_usable_is_the_callers_to_say(folder):
    (folder / "lookup_numbers.py").write_text("three = 3\nzero = 0\n")
    is_number = lambda found: isinstance(found, int)  # noqa: E731
    assert lookup("field", "lookup_numbers:three", NAMED, is_number) == 3
    assert lookup("field", "lookup_numbers:zero", NAMED, usable=is_number) == 0
    wrong_kind = "and module json has nothing of that name to use: correct it"
    assert refusal(lambda: lookup("field", "json:dumps", NAMED, is_number)) == f"field is 'json:dumps', {wrong_kind}"
    # What has a name is of the kind wanted.
    assert lookup("field", "mean", NAMED, usable=lambda found: False) == 1
