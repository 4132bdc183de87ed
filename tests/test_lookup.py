"""A name stands for what is there by name or for an attribute of a module, and everything else is refused in one sentence."""

import json
import os.path
import platform

import jax.numpy as jnp
import pytest
from federated.helpers import refusal

from dqn_jax.config import InputError
from dqn_jax.lookup import Found, blamed_on, check_like, function_of, is_users, lookup, named_numbers, record_of

NAMED = {"mean": 1, "median": 2}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "part", "numbers"),
    [
        ("mean", 1, ()),
        ("median:0.5", 2, (0.5,)),
        ("mean:1:-2e-3:.5", 1, (1.0, -0.002, 0.5)),
        ("json:dumps", json.dumps, ()),
        ("json:dumps:3", json.dumps, (3.0,)),
        ("os.path:join:1:2", os.path.join, (1.0, 2.0)),
        ("json.decoder:JSONDecoder", json.JSONDecoder, ()),
    ],
)
def test_names_attributes_and_numbers(spec, part, numbers):
    assert lookup("field", spec, NAMED) == Found(part, numbers)
    assert is_users(spec) == (callable(part))


def test_what_is_named_comes_first():
    assert lookup("field", "json:dumps", {"json:dumps": 3}).part == 3


def test_a_value_that_is_false_is_a_value():
    assert lookup("field", "nothing", {"nothing": None}).part is None


def test_a_users_module(folder):
    (folder / "lookup_users_part.py").write_text("def halve(x, by=2):\n    return x / by\n")
    assert lookup("field", "lookup_users_part:halve", NAMED).part(3) == 1.5
    found = lookup("field", "lookup_users_part:halve:4", NAMED)
    assert function_of("field", "lookup_users_part:halve:4", found, 1)(3) == 0.75


@pytest.mark.parametrize(
    ("spec", "remedy"),
    [
        ("meann", "which has no meaning here: did you mean mean?"),
        ("meann:2", "which has no meaning here: did you mean mean?"),
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
                "1:2",
            )
        ),
        *(
            (f"{module}:thing", f"and host {platform.node()} has no module {module}: start in its folder, or set PYTHONPATH")
            # Of the second its parent is there, and it is not; the third's parent can have no modules inside.
            for module in ("nomodule", "json.nothing", "json.decoder.nothing", "nomodule.inside")
        ),
        ("json:nothing", "and module json has nothing of that name to use: correct it"),
        # A name that float() would take is a name.
        ("json:nan", "and module json has nothing of that name to use: correct it"),
        # It is there, and cannot be called.
        ("json.decoder:NaN", "and module json.decoder has nothing of that name to use: correct it"),
        ("json:decoder", "and module json has nothing of that name to use: correct it"),
    ],
)
def test_refusals(spec, remedy):
    assert refusal(lambda: lookup("federated.field", spec, NAMED)) == f"federated.field is {spec!r}, {remedy}"


@pytest.mark.parametrize(
    ("source", "place", "reason"),
    [
        ("\n1 / 0", 2, "ZeroDivisionError: division by zero"),
        # Else its user would be told that `thing` is missing, and it is there.
        ("import json\njson.nothing\nthing = print", 2, "AttributeError: module 'json' has no attribute 'nothing'"),
        ("thing = (", 1, "SyntaxError: '(' was never closed"),
        # Else its user would look for a module that is where it should be.
        ("import lookup_not_installed", 1, "ModuleNotFoundError: No module named 'lookup_not_installed'"),
        # A name that begins alike is not a parent's.
        ("import lookup_rais", 1, "ModuleNotFoundError: No module named 'lookup_rais'"),
        ("raise ModuleNotFoundError('of its own')", 1, "ModuleNotFoundError: of its own"),
        ("def f():\n    raise ValueError\nf()", 2, "ValueError"),
        # The user's innermost frame, not the library's.
        ("import json\njson.loads('{')", 2, "JSONDecodeError: Expecting property name"),
    ],
)
def test_a_module_with_an_error_says_where(folder, source, place, reason):
    name = f"lookup_raises_{abs(hash(source))}"
    file = folder / f"{name}.py"
    file.write_text(source + "\n")
    with pytest.raises(InputError) as refused:
        lookup("field", f"{name}:thing", NAMED)
    assert str(refused.value).startswith(f"field is '{name}:thing', which fails at {file}:{place} with {reason}")
    assert "\n" not in str(refused.value)


def test_what_a_users_function_raises_is_a_sentence_and_what_ours_raises_is_not():
    def fails(x):
        raise KeyError("delta")

    function = function_of("agent.loss", "mine:fails", Found(fails, ()), 1)
    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(InputError) as refused:
        function(3)
    assert str(refused.value) == f"agent.loss is 'mine:fails', which fails at {__file__}:{line} with KeyError: 'delta'"
    with pytest.raises(KeyError):
        function_of("agent.loss", "fails", Found(fails, ()), 1)(3)
    # What is a sentence already is not said twice.
    with pytest.raises(InputError, match=r"^enough: said$"), blamed_on("agent.loss", "mine:fails"):
        raise InputError("enough: said")


def test_numbers_that_do_not_fit():
    took = function_of("f", "mine:part:0.5", Found(lambda a, b, c=1.0: (a, b, c), (0.5,)), 2)("a", "b")
    assert took == ("a", "b", 0.5)
    for found, count in ((Found(lambda a: a, (1.0,)), 1), (Found(lambda a, b: a, ()), 1)):
        message = refusal(lambda found=found, count=count: function_of("f", "mine:part", found, count))
        assert message.startswith(f"f is 'mine:part', called with 1 argument(s) and then its {len(found.numbers)} number(s)")


def test_records_and_what_makes_them():
    made = Found((), ())
    assert record_of("f", "mine:part:1", Found(lambda x: Found(x, ()), (1.0,)), Found) == Found(1.0, ())
    assert record_of("f", "mine:part", Found(made, ()), Found) is made
    assert refusal(lambda: record_of("f", "part:1", Found(made, (1.0,)), Found)) == (
        "f is 'part:1', which takes no numbers: leave them out"
    )
    assert refusal(lambda: record_of("f", "mine:part", Found(lambda: 3, ()), Found)) == (
        "f is 'mine:part', which makes a int: make a Found"
    )


def test_numbers_by_name():
    def maker():
        pass

    assert named_numbers("f", "mine:part", Found(maker, ())) == {}
    assert refusal(lambda: named_numbers("f", "mine:part:1", Found(maker, (1.0,)))) == (
        "f is 'mine:part:1', which takes none: leave out the rest"
    )
    maker.numbers = {"tau": 0.03, "alpha": 0.9}
    assert named_numbers("f", "mine:part", Found(maker, ())) == {"tau": 0.03, "alpha": 0.9}
    assert named_numbers("f", "mine:part:0.5", Found(maker, (0.5,))) == {"tau": 0.5, "alpha": 0.9}
    assert named_numbers("f", "mine:part:1:2", Found(maker, (1.0, 2.0))) == {"tau": 1.0, "alpha": 2.0}
    assert "takes 2 (tau, alpha)" in refusal(lambda: named_numbers("f", "mine:part:1:2:3", Found(maker, (1.0, 2.0, 3.0))))
    assert maker.numbers == {"tau": 0.03, "alpha": 0.9}


def test_shapes_are_compared_by_name():
    like = {"w": jnp.zeros((2, 3)), "b": jnp.zeros(3)}
    check_like("f", "mine:part", {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, like)
    for made, words in (
        ({"w": jnp.zeros((3, 2)), "b": jnp.zeros(3)}, r"its\['w'\] has shape \(3, 2\): give \(2, 3\)"),
        ({"w": jnp.zeros((2, 3))}, r"its\['b'\] has shape None: give \(3,\)"),
        (like | {"c": 1.0}, r"its\['c'\] has shape \(\): give None"),
    ):
        with pytest.raises(InputError, match=rf"^f is 'mine:part', and {words}$"):
            check_like("f", "mine:part", made, like)


@pytest.mark.parametrize("spec", ["mean:x", "mean:nan", "mean:", "mean:1:x"])
def test_numbers_that_are_none(spec):
    assert refusal(lambda: lookup("f", spec, NAMED)) == f"f is {spec!r}: after mean give finite numbers, as mean:0.1"


def test_what_is_usable_is_the_callers_to_say(folder):
    (folder / "lookup_numbers.py").write_text("three = 3\nzero = 0\n")
    is_number = lambda found: isinstance(found, int)  # noqa: E731
    assert lookup("field", "lookup_numbers:three", NAMED, is_number).part == 3
    assert lookup("field", "lookup_numbers:zero", NAMED, usable=is_number).part == 0
    wrong_kind = "and module json has nothing of that name to use: correct it"
    assert refusal(lambda: lookup("field", "json:dumps", NAMED, is_number)) == f"field is 'json:dumps', {wrong_kind}"
    # What has a name is of the kind wanted.
    assert lookup("field", "mean", NAMED, usable=lambda found: False).part == 1
