"""Commands that README.md, docs/ and the docstrings of programs show are accepted as they stand; none of them is run."""

import ast
import dataclasses
import functools
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import tyro

from dqn_jax.commands import __main__ as jobs
from dqn_jax.distributed.presets import APEX, SERVER_MODEL
from dqn_jax.federated.presets import HETEROGENEOUS
from dqn_jax.presets import QUICKSTART

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = [path for room in ("dqn_jax", "experiments") for path in sorted((ROOT / room).rglob("*.py"))]
# What a shell would put in.
VALUES = {
    "$COORDINATOR": "10.0.0.1:12345",
    "$FIRST_WORKER": "10.0.0.1",
    "$WORKERS": "4",
    "$SLURM_NTASKS": "4",
    "$SLURM_PROCID": "0",
    '$(hostname | grep -o "[0-9]*$")': "0",
}
LAUNCHED = re.compile(r"python -m dqn_jax\.runner\.launch --num-processes (\d+) (.*)")
# A program that takes one directory and no flag.
OF_A_DIRECTORY = re.compile(r"python experiments/studies/federated_table\.py [^-\s]\S*")


OF_PLAY = ("--gif", "--env-params", "--epsilon", "--episodes", "--seeds", "--client")


class Accepted(Exception):
    """A command's flags were parsed, and nothing was done with them."""


def spans(text):
    """Code in the prose of a text, each piece in one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands_of(lines):
    """The commands in lines of code, without comments, the dots of what is left out, and the rest of a shell's line."""
    found = []
    for line in lines:
        for variable, value in VALUES.items():
            line = line.replace(variable, value)
        code = re.sub(r"(^|\s)#.*", "", line)
        found += [" ".join(command.split()) for command in re.findall(r"(?:^|[\s'])((?:python|dqn-jax|make) [^;|&']+)", code)]
    return [command.removesuffix(" ...") for command in found if command not in ("python -m", "python -m dqn_jax")]


def commands_in_page(text):
    """The commands of a Markdown page, in blocks of code and in prose."""
    prose, blocks = text.split("```")[::2], text.split("```")[1::2]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return commands_of(lines + [span for part in prose for span in spans(part)])


def commands_in_program(source):
    """The commands of a module's docstring: lines that begin with one, and code in prose."""
    docstring = ast.get_docstring(ast.parse(source)) or ""
    lines = [line for line in docstring.splitlines() if line.strip().startswith(("python ", "dqn-jax "))]
    return commands_of(lines + spans(docstring))


COMMANDS = {command: path.name for path in TEXTS for command in commands_in_page(path.read_text())}
COMMANDS |= {command: path.name for path in PROGRAMS for command in commands_in_program(path.read_text())}


@pytest.fixture
def problem_of(monkeypatch):
    """What is wrong with a command, as a function of it: its exit status, or words; None if it is accepted."""
    parse = tyro.cli

    def stop(of, **options):
        # A function would be called with what is parsed.
        parsed = parse(of if isinstance(of, type) else functools.wraps(of)(lambda **given: None), **options)
        if options.get("return_unknown_args") and parsed[1]:
            # The program itself refuses flags that it does not know.
            return parsed
        raise Accepted

    monkeypatch.setattr(tyro, "cli", stop)
    # To which a job adds the working directory.
    monkeypatch.setattr(sys, "path", list(sys.path))

    def problem(command):
        launched = LAUNCHED.fullmatch(command)
        if launched:
            command = f"python {launched[2]} --coordinator 127.0.0.1:12345 --num-processes {launched[1]} --process-id 0"
        program, first, *rest = shlex.split(re.sub(r"python -m dqn_jax(?![.\w])", "dqn-jax", command))
        if program == "make":
            return None if re.search(f"^{first}:", (ROOT / "Makefile").read_text(), re.MULTILINE) else "no such target"
        if command.startswith("python -m pytest "):
            return None if all((ROOT / path).exists() for path in rest[1:]) else "no such tests"
        if OF_A_DIRECTORY.fullmatch(command):
            return None
        monkeypatch.setattr(sys, "argv", [first, *rest] if program == "python" else [program, first, *rest])
        try:
            return jobs.main() or None if program == "dqn-jax" else runpy.run_path(str(ROOT / first), run_name="__main__")
        except Accepted:
            return None
        except SystemExit as end:
            # 0 is that of --help.
            return end.code or None

    return problem


def flags_of(config, prefix="--"):
    """The flags of a config and of the configs in it."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        yield from flags_of(value, f"{name}.") if dataclasses.is_dataclass(value) else [name]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_flags_in_prose_are_those_of_a_job(path):
    """Where no whole command is given: a flag of some job, or of another program that the page is about."""
    known = {flag for config in (QUICKSTART, SERVER_MODEL, APEX, HETEROGENEOUS) for flag in flags_of(config)}
    known |= {
        "--runner.no-compilation-cache",
        "--runner.no-checkpoint-replay",
        "--algorithm",
        "--tuned",
        "--preset",
        "--config",
        "--help",
        "--debug",
        "--num-processes",
        "--coordinator",
    }
    others = {
        "--only-draw",
        "--tune",
        "--out",
        "--against",
        "--check",
        "--kill-on-bad-exit",
        "--signal",
        "--num-cpus",
        "--threshold",
        "--head",
        *OF_PLAY,
    }
    pieces = [piece for part in path.read_text().split("```")[::2] for piece in spans(part)]
    found = {flag for piece in pieces for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", piece)}
    assert found - known - others == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command, problem_of, capsys):
    assert problem_of(command) is None, f"{COMMANDS[command]}: {command}\n{capsys.readouterr().err}"


@pytest.mark.parametrize(
    "command",
    [
        "python experiments/data_parallel.py --num-devcies 2",
        "python experiments/data_parallel.py --preset apex",
        # Flags that there are, with values that do not fit together.
        "python experiments/actor_learner.py --actors.num-actors 64 --agent.num-envs 256",
        "python experiments/parameter_server.py --ray-address 10.0.0.1:6379",
        "python experiments/data_parallel.py --coordinator 10.0.0.1:12345 --process-id 0",
        "python -m dqn_jax.runner.launch --num-processes 2 experiments/data_parallel.py --num-device 2",
        "python experiments/reference.py --output x.json",
        "python experiments/studies/staleness.py --draw-only",
        "python experiments/studies/federated_comparison.py --arms alone",
        "python experiments/benchmarks/server_benchmark.py --turns 3",
        "python tests/faults.py --trials 3",
        "dqn-jax train data-parallel --num-devcies 2",
        "dqn-jax data_paralell",
        "make trian",
        "python -m pytest tests/lwas",
    ],
)
def test_a_wrong_command_is_not(command, problem_of):
    assert problem_of(command)


def test_commands_are_found():
    page = """Start with `make train`, or `python
experiments/federated.py --rounds 3` and `dqn-jax federated ...`; as by `python -m`.

```sh
make check   # and make test
while python a.py --flag \\
    value; do sleep 5; done
bash -c 'exec python b.py --coordinator $COORDINATOR --process-id $(hostname | grep -o "[0-9]*$")'
```
"""
    assert commands_in_page(page) == [
        "make check",
        "python a.py --flag value",
        "python b.py --coordinator 10.0.0.1:12345 --process-id 0",
        "make train",
        "python experiments/federated.py --rounds 3",
        "dqn-jax federated",
    ]
    program = '"""Trains.\n\n    python a.py --flag     # why\n\n`dqn-jax federated --rounds 3` too; python does not."""'
    assert commands_in_program(program) == ["python a.py --flag", "dqn-jax federated --rounds 3"]
    # Of each kind, so that none is overlooked as a whole.
    kinds = ("make", "dqn-jax", "python experiments/", "python experiments/studies/", "python -m dqn_jax.runner.launch")
    assert all(any(command.startswith(kind) for command in COMMANDS) for kind in kinds)
