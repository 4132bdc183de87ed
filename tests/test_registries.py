"""The documentation lists every part that goes by a name, every preset and every command, and no other."""

import importlib
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from dqn_jax.algorithms import ALGORITHMS
from dqn_jax.commands.__main__ import COMMANDS, TRAIN
from dqn_jax.config import LOGGERS, AgentConfig
from dqn_jax.distributed.config import ServerConfig, ServerExperiment
from dqn_jax.envs.wrappers import WRAPPERS
from dqn_jax.exploration import RULES
from dqn_jax.federated.aggregation import AGGREGATORS, WEIGHTINGS
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.heterogeneity import DISTRIBUTIONS
from dqn_jax.federated.server import SERVER_RULES
from dqn_jax.federated.sharing import PERSONAL
from dqn_jax.federated.transforms import TRANSFORMS
from dqn_jax.losses import LOSSES
from dqn_jax.networks import HEADS, TRUNKS

DOCS = Path(__file__).parent.parent / "docs"


def choices(kind, field):
    """The values of a field that is a Literal."""
    return get_args(get_type_hints(kind)[field])


def presets():
    jobs = [importlib.import_module(f"dqn_jax.commands.{job.replace('-', '_')}") for job in TRAIN]
    return {name for job in jobs for name in getattr(job, "PRESETS", {})}


NAMES = {
    "agent.loss": LOSSES,
    "agent.memory": choices(AgentConfig, "memory"),
    "agent.exploration": {"epsilon-greedy", *RULES},
    "agent.optimizer": {"adam", "rmsprop"},
    "network.trunk": {"auto", *TRUNKS},
    "network.head": {"linear", *HEADS},
    "wrappers": WRAPPERS,
    "federated.heterogeneity": {"none", "range", *DISTRIBUTIONS},
    "federated.personal": PERSONAL,
    "federated.transforms": TRANSFORMS,
    "federated.aggregator": AGGREGATORS,
    "federated.weighting": WEIGHTINGS,
    "federated.server_optimizer": SERVER_RULES,
    "federated.algorithm": choices(FederatedConfig, "algorithm"),
    "federated.participation": choices(FederatedConfig, "participation"),
    "--algorithm": ALGORITHMS,
    "dqn-jax": {"train", *COMMANDS},
    "train": TRAIN,
    "--preset": presets(),
    "server.mode": choices(ServerConfig, "mode"),
    "backend": choices(ServerExperiment, "backend"),
    "runner.loggers": LOGGERS,
}


def listed():
    """{field: names} of the tables at the end of docs/extending.md."""
    _, _, section = (DOCS / "extending.md").read_text().partition("## Every part by name\n")
    rows = re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.M)
    return {field: re.findall(r"`([^`]+)`", names) for field, names in rows}


@pytest.mark.parametrize("field", NAMES)
def test_the_list_has_every_name_once_and_no_other(field):
    assert sorted(listed()[field]) == sorted(NAMES[field])


def test_the_list_has_these_fields_and_no_other():
    assert listed().keys() == NAMES.keys()


def test_the_page_of_algorithms_has_a_row_for_each():
    rows = re.findall(r"^\| `(\w+)` \|", (DOCS / "algorithms.md").read_text(), re.M)
    assert rows == list(ALGORITHMS)
