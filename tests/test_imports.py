"""Proves that imports between rooms point one way, that side effects stay in theirs, and that public names are documented."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = (
    {"config", "types", "sum_tree", "streams", "threefry"},
    {"lookup", "heads"},
    {"trunks"},
    {"runtime", "presets", "algorithms", "envs", "networks", "td", "exploration", "replay", "virtual_time", "windows"},
    {"losses", "tuned", "frame_ring", "rollout"},
    {"actor", "learner"},
    {"agent"},
    {"evaluation", "mapping"},
    {"build"},
    {"distributed"},
    {"federated"},
    {"runner"},
    {"play"},
    {"commands"},
    {"__main__"},
    {"experiments"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
CLOCKS_AND_THREADS = (
    "time",
    "datetime",
    "threading",
    "signal",
    "queue",
    "multiprocessing",
    "concurrent",
    "subprocess",
    "asyncio",
)
ONLY_IN = {
    "gymnax": ("envs",),
    "os": ("runtime", "runner", "engines"),
    **dict.fromkeys(("tyro", "rich", "matplotlib", "PIL"), ("runner", "commands")),
    **dict.fromkeys(("tensorboardX", "wandb"), ("runner",)),
    **dict.fromkeys((*CLOCKS_AND_THREADS, "socket", "io", "shutil", "tempfile", "logging", "ray"), ("runner", "engines")),
}
"""{package: rooms, or the package of engines, that may import it}."""
STARTS_JAX = {"jax", "jaxlib", "flax", "optax", "chex", "gymnax"}
NEVER = {"config": STARTS_JAX, "presets": STARTS_JAX}
NOT_AT_THE_TOP = {"runtime": STARTS_JAX}
PROMISED = {"dqn_jax.play.load.load"}
"""What the package itself imports, for types, and once it is asked for."""
EFFECTS = {"print", "open", "input"}
FILE_METHODS = {"print", "open", "read_text", "write_text", "read_bytes", "write_bytes", "mkdir", "unlink", "touch"}
NOUNS = {
    *(
        "Actions",
        "Arguments",
        "Arrays",
        "Blocks",
        "Bytes",
        "Checkpoints",
        "Clients",
        "Deltas",
        "Environments",
        "Frames",
        "Infos",
    ),
    *(
        "Keys",
        "Leaves",
        "Losses",
        "Names",
        "Numbers",
        "Parameters",
        "Pushes",
        "Repetitions",
        "Rounds",
        "Rows",
        "Seconds",
        "Seeds",
    ),
    *("Transitions", "Updates", "Values", "Workers", "As", "Its", "Less", "This"),
}
"""First words of docstrings that end in "s" and are not counted as verbs, even where they could be, as "Rounds"."""
SHARE_WITH_VERB = 0.8
"""Least share of functions' docstrings that begin with a verb; the rest are mostly of properties, which name a value."""
MAX_LINES = 60
"""Most lines of a function, without its docstring and the functions inside it."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources() -> dict[str, str]:
    """{dotted name: source} of every module; a package's own is called `__init__`."""
    files = [*ROOT.glob("dqn_jax/**/*.py"), *ROOT.glob("experiments/**/*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file.read_text() for file in files}


def room_of(module: str) -> str:
    """The room a module belongs to; "" for the package itself."""
    parts = module.split(".")
    if parts[0] == "experiments":
        return "experiments"
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else ""


def imports(tree: ast.AST, module: str) -> Iterator[tuple[str, bool]]:
    """(absolute dotted name, whether it runs when the module is imported) of everything that a module imports."""

    def visit(node: ast.AST, at_top: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", at_top) for alias in node.names)
        inside = isinstance(node, (*FUNCTIONS, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_top and not inside)

    return visit(tree, True)


def import_violations(module: str, source: str) -> list[str]:
    """What a module imports and must not."""
    room, found = room_of(module), []
    homes = {room, *module.split(".")[2:-1]}
    if room and room not in LEVEL:
        found.append(f"{module} is a room that LEVELS does not know")
    for name, at_top in imports(ast.parse(source), module):
        package, other = name.split(".")[0], room_of(name)
        if room == "runner" and other in ("distributed", "federated"):
            found.append(f"{module} imports {name}, which only commands may know")
        if module == "dqn_jax.__init__" and name in PROMISED:
            continue
        if package in ("dqn_jax", "experiments") and other in LEVEL and other != room and LEVEL[other] >= LEVEL.get(room, -1):
            found.append(f"{module} imports {name}")
        if room != "experiments" and package in ONLY_IN and not homes.intersection(ONLY_IN[package]):
            found.append(f"{module} imports {name}")
        if package in NEVER.get(room, ()) or (at_top and package in NOT_AT_THE_TOP.get(room, ())):
            found.append(f"{module} imports {name}")
    return found


def effect_violations(module: str, source: str) -> list[str]:
    """Prints, files and global state of a module outside the runner, the engines and the scripts."""
    if room_of(module) in ("runner", "commands", "experiments") or ".engines." in module:
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in EFFECTS:
            found.append(f"{module} uses {node.id}")
        elif isinstance(node, ast.Attribute) and node.attr in FILE_METHODS:
            found.append(f"{module} uses .{node.attr}")
        elif isinstance(node, ast.Global):
            found.append(f"{module} uses global {', '.join(node.names)}")
    return found


def undocumented(module: str, source: str) -> list[str]:
    """Public functions, classes and methods without a docstring, and the module itself."""
    tree = ast.parse(source)

    def public(nodes: list[ast.stmt], kinds: tuple) -> list:
        return [node for node in nodes if isinstance(node, kinds) and not node.name.startswith("_")]

    classes = public(tree.body, (ast.ClassDef,))
    methods = [(f"{owner.name}.", method) for owner in classes for method in public(owner.body, FUNCTIONS)]
    named = [("", node) for node in [*public(tree.body, FUNCTIONS), *classes]] + methods
    missing = [f"{module}.{prefix}{node.name}" for prefix, node in named if not ast.get_docstring(node)]
    return missing if ast.get_docstring(tree) else [module, *missing]


def begins_with_verb(docstring: str) -> bool:
    """Whether the first word looks like a verb in the third person."""
    word = docstring.split()[0]
    return word == "Whether" or (word.isalpha() and word.endswith("s") and word not in NOUNS)


def without_verb(source: str) -> tuple[list[str], int]:
    """(names of functions whose docstring does not begin with a verb, number of functions with a docstring)."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS)]
    documented = [(node.name, text) for node in nodes if (text := ast.get_docstring(node))]
    return [name for name, text in documented if not begins_with_verb(text)], len(documented)


def long_functions(source: str, limit: int = MAX_LINES) -> list[str]:
    """Functions with more lines of their own than the limit: docstrings and functions inside them are not counted."""

    def lines_of(node: ast.stmt) -> set[int]:
        decorators = node.decorator_list if isinstance(node, FUNCTIONS) else []
        first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
        return set(range(first, (node.end_lineno or first) + 1))

    def own_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        inside = [inner for inner in ast.walk(node) if isinstance(inner, FUNCTIONS) and inner is not node]
        docstring = node.body[:1] if ast.get_docstring(node) else []
        return len(lines_of(node).difference(*(lines_of(part) for part in [*inside, *docstring])))

    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS) and own_lines(node) > limit]


def test_no_two_classes_have_one_name():
    modules = [(module, ast.walk(ast.parse(source))) for module, source in sources().items() if module.startswith("dqn_jax")]
    names = [node.name for _, nodes in modules for node in nodes if isinstance(node, ast.ClassDef)]
    assert len(names) > 50
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("rule", [import_violations, effect_violations, undocumented])
def test_every_module_obeys(rule):
    assert len(sources()) > 20
    assert [violation for module, source in sources().items() for violation in rule(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dqn_jax.td", "import dqn_jax.agent"),
        ("dqn_jax.td", "from dqn_jax import learner"),
        ("dqn_jax.td", "from .learner import make_learner"),
        ("dqn_jax.td", "def f():\n    from dqn_jax.runner.loop import run"),
        ("dqn_jax.td", "from dqn_jax.replay import Memory"),  # a sibling of its own level
        ("dqn_jax.distributed.data_parallel", "from dqn_jax.runner import records"),
        ("dqn_jax.runner.loop", "import experiments.data_parallel"),
        ("dqn_jax.runner.loop", "from dqn_jax.federated.config import FederatedExperiment"),
        ("dqn_jax.runner.loop", "from dqn_jax.commands import data_parallel"),
        ("dqn_jax.new_room", "import numpy"),
        ("dqn_jax.agent", "import gymnax"),
        ("dqn_jax.runner.loop", "from gymnax import make"),
        ("dqn_jax.runtime", "try:\n    import jax\nexcept ImportError:\n    pass"),
        ("dqn_jax.config", "def f():\n    import jax.numpy"),
        ("dqn_jax.config", "from gymnax import make"),
        ("dqn_jax.agent", "import time"),
        ("dqn_jax.distributed.data_parallel", "from threading import Thread"),
    ],
)
def test_import_rules_can_fail(module, source):
    assert import_violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("dqn_jax.runtime", "def setup():\n    import jax"),
        ("dqn_jax.learner", "import jax\nfrom dqn_jax import td\nfrom dqn_jax.types import Params"),
        ("dqn_jax.runner.loop", "import time\nfrom dqn_jax.runner import checkpoint\nfrom . import records"),
        ("dqn_jax.distributed.engines.threads", "import threading, time"),
        ("experiments.studies.scaling", "import time\nfrom dqn_jax.runner.loop import run"),
        ("dqn_jax.commands.federated", "from dqn_jax.federated.driver import from_config\nfrom dqn_jax.runner.loop import run"),
    ],
)
def test_import_rules_allow_what_they_should(module, source):
    assert import_violations(module, source) == []


@pytest.mark.parametrize(
    "source", ["print(1)", "open('x')", "log = print", "jax.debug.print('x')", "path.write_text('x')", "def f():\n    global x"]
)
def test_effect_rule_can_fail(source):
    assert effect_violations("dqn_jax.agent", source)
    assert effect_violations("dqn_jax.runner.loop", source) == []


def test_docstring_rule_can_fail():
    source = '"""M."""\ndef f(): pass\nclass C:\n    def m(self): pass\n    def _n(self): pass\ndef _g(): pass'
    assert undocumented("m", source) == ["m.f", "m.C", "m.C.m"]
    assert undocumented("m", source.removeprefix('"""M."""')) == ["m", "m.f", "m.C", "m.C.m"]


def test_docstrings_begin_with_a_verb():
    found = [without_verb(source) for module, source in sources().items() if module.startswith("dqn_jax.")]
    total = sum(number for _, number in found)
    missing = [name for names, _ in found for name in names]
    assert total > 300
    assert 1 - len(missing) / total >= SHARE_WITH_VERB, missing


def test_verb_rule_can_fail():
    texts = ["Builds it.", "Whether so.", "The one.", "Frames of it.", "`fn` of it.", "SCAFFOLD's c."]
    source = "\n".join(f'def f{i}():\n    """{text}"""' for i, text in enumerate(texts)) + "\nclass C:\n    def g(self): pass"
    assert without_verb(source) == (["f2", "f3", "f4", "f5"], 6)


def test_no_function_is_long():
    modules = {module: source for module, source in sources().items() if module.startswith("dqn_jax.")}
    assert [f"{module}.{name}" for module, source in modules.items() for name in long_functions(source)] == []


def test_length_rule_can_fail():
    body, docstring = "    x = 1\n" * 4, '    """D.\n\n    E.\n    """\n'
    inner = "    @d\n    def g():\n" + "    " + body.replace("\n", "\n    ", 3)
    assert long_functions(f"def f():\n{docstring}{body}", 5) == []
    assert long_functions(f"def f():\n{docstring}{body}", 4) == ["f"]
    assert long_functions(f"def f():\n{docstring}{body}{inner}", 6) == []
    assert long_functions(f"class C:\n    def f():\n        x = 1\n{inner}", 5) == ["g"]
