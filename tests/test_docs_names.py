"""Every part that has a name, every value of a choice and every command stands as code on the page that is about it."""

import ast
import dataclasses
import importlib
import re
import typing
from pathlib import Path

import pytest

from dqn_jax.algorithms import ALGORITHMS
from dqn_jax.commands.__main__ import COMMANDS, TRAIN
from dqn_jax.config import LOGGERS, AgentConfig
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.envs import atari
from dqn_jax.envs.wrappers import WRAPPERS
from dqn_jax.exploration import RULES
from dqn_jax.federated.aggregation import AGGREGATORS, WEIGHTINGS
from dqn_jax.federated.config import FederatedConfig, MergeConfig
from dqn_jax.federated.heterogeneity import DISTRIBUTIONS
from dqn_jax.federated.server import SERVER_RULES
from dqn_jax.federated.sharing import PERSONAL
from dqn_jax.federated.transforms import TRANSFORMS
from dqn_jax.learner import _OPTAX, _OURS
from dqn_jax.losses import LOSSES
from dqn_jax.networks import HEADS, TRUNKS

ROOT = Path(__file__).parents[1]
OPTIMIZERS = {name: rule for name, rule in _OPTAX.items() if rule in _OURS}
# {registry: (its names, the page that has them)}
REGISTRIES = {
    "ALGORITHMS": (ALGORITHMS, "docs/algorithms.md"),
    "LOSSES": (LOSSES, "docs/training.md"),
    "TRUNKS": (TRUNKS, "docs/training.md"),
    "HEADS": (HEADS, "docs/training.md"),
    "RULES": (RULES, "docs/training.md"),
    "_OPTAX": (OPTIMIZERS, "docs/training.md"),
    "WRAPPERS": (WRAPPERS, "docs/environments.md"),
    "_CHANGES": (atari._CHANGES, "docs/environments.md"),
    "AGGREGATORS": (AGGREGATORS, "docs/federated.md"),
    "WEIGHTINGS": (WEIGHTINGS, "docs/federated.md"),
    "TRANSFORMS": (TRANSFORMS, "docs/federated.md"),
    "SERVER_RULES": (SERVER_RULES, "docs/federated.md"),
    "PERSONAL": (PERSONAL, "docs/federated.md"),
    "DISTRIBUTIONS": (DISTRIBUTIONS, "docs/federated.md"),
    "COMMANDS": (COMMANDS, "README.md docs/training.md docs/runs.md docs/playing.md"),
    "TRAIN": (TRAIN, "docs/training.md"),
    "LOGGERS": (LOGGERS, "docs/runs.md"),
}
REGISTRIES |= {
    f"presets of {job}": (importlib.import_module(f"dqn_jax.commands.{job.replace('-', '_')}").PRESETS, "docs/training.md")
    for job in TRAIN
    if job != "reference"
}
# {config: the page that has the values of its choices}
CHOICES = {
    AgentConfig: "docs/training.md",
    ServerConfig: "docs/distributed.md",
    ServerExperiment: "docs/distributed.md",
    ActorLearnerConfig: "docs/distributed.md",
    ActorLearnerExperiment: "docs/distributed.md",
    FederatedConfig: "docs/federated.md",
    MergeConfig: "docs/federated.md",
}


def choices_of(config):
    """{field: values} of the fields of a config that have a few."""
    hints = typing.get_type_hints(config)
    return {
        field.name: typing.get_args(hints[field.name])
        for field in dataclasses.fields(config)
        if typing.get_origin(hints[field.name]) is typing.Literal
    }


def code_of(text):
    """The code of a page: its blocks, and its spans in prose, one on each line."""
    blocks, prose = text.split("```")[1::2], text.split("```")[::2]
    return "\n".join([*blocks, *(" ".join(span.split()) for part in prose for span in re.findall(r"`([^`]+)`", part))])


def missing(names, pages):
    """The names that are nowhere in the code of these pages, as a word of their own."""
    code = "\n".join(code_of((ROOT / page).read_text()) for page in pages.split())
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", code)]


@pytest.mark.parametrize("registry", REGISTRIES)
def test_every_name_is_on_its_page(registry):
    names, pages = REGISTRIES[registry]
    assert names
    assert missing(names, pages) == []
    # Control: neither is a name that is nowhere, nor a part of one that is somewhere.
    invented = [f"{name}-of-nobody" for name in names]
    assert missing(invented, pages) == invented


@pytest.mark.parametrize("config", CHOICES, ids=lambda config: config.__name__)
def test_every_value_of_a_choice_is_on_its_page(config):
    for field, values in choices_of(config).items():
        assert missing(values, CHOICES[config]) == [], field


def sources():
    """The syntax trees of the package's modules."""
    return [ast.parse(path.read_text()) for path in sorted((ROOT / "dqn_jax").rglob("*.py"))]


def test_no_registry_is_forgotten():
    """Every table that `lookup` or `wrapper_of` is called with by its name, and every config with a choice."""
    nodes = [node for tree in sources() for node in ast.walk(tree)]
    called = [node for node in nodes if getattr(getattr(node, "func", None), "id", "") in ("lookup", "wrapper_of", "_part")]
    names = {node.id for call in called for node in ast.walk(call) if isinstance(node, ast.Name) and node.id.isupper()}
    tables = names - {"_ARGUMENT", "_RANGE"}
    assert len(tables) == 13
    assert tables <= REGISTRIES.keys()
    with_choices = {
        node.name for node in nodes if isinstance(node, ast.ClassDef) and any("Literal[" in ast.unparse(x) for x in node.body)
    }
    assert with_choices == {config.__name__ for config in CHOICES}


def test_names_are_found_in_code_alone():
    page = "Take mean.\n`agent.loss huber:0.5` and `double\n_q`:\n```\n--backend a|b in-process\n```\n"
    assert code_of(page).split("\n") == ["", "--backend a|b in-process", "", "agent.loss huber:0.5", "double _q"]
