"""Which of a client's parameters are shared, and which are personal; an optimizer's state of a parameter goes with it.

A shared part is the whole tree with None, which is no leaf, in place of personal parameters: tree functions work on it.
Not here: when parts are taken from a whole and put back.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from dqn_jax.agent import hyperparams_of
from dqn_jax.config import AgentConfig, require
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.learner import make_optimizer
from dqn_jax.lookup import function_of, lookup
from dqn_jax.networks import Network
from dqn_jax.types import Params, Tree

_ARGUMENT = "federated.personal"


class Sharing(NamedTuple):
    """The division of a client's parameters into a shared and a personal part."""

    shared: Callable[[Params], Params]
    """whole -> shared part. Leaves may have axes of clients in front."""
    merged: Callable[[Params, Params], Params]
    """(own whole, shared part) -> whole: shared leaves from the part, personal ones from the own whole."""
    shared_moments: Callable[[Tree], Tree]
    """Optimizer state of the whole -> that of the shared part, as the optimizer makes it, with its counters. Empty where
    a client keeps its moments."""
    merged_moments: Callable[[Tree, Tree], Tree]
    """(own optimizer state of the whole, that of a shared part) -> of the whole."""


def _group(name: str) -> Callable[[Params], Tree]:
    def personal(params: Params) -> Tree:
        require(
            isinstance(params, Mapping) and name in params,
            f"{_ARGUMENT} is {name!r}, and the parameters have no group of that name: give module:function",
        )
        return {group: jax.tree.map(lambda _, mine=group == name: mine, part) for group, part in params.items()}

    return personal


PERSONAL: dict[str, Callable[[Params], Tree]] = {
    "none": lambda params: jax.tree.map(lambda _: False, params),
    "head": _group("head"),
    "trunk": _group("trunk"),
}
"""(shapes of the parameters) -> a tree of the same structure, true where a leaf is personal."""


def make_sharing(network: Network, agent_config: AgentConfig, config: FederatedConfig) -> Sharing:
    """Builds the division of a config; a user's own maps the tree of parameters' shapes, and its numbers, to one of bools.

    Raises:
      InputError: for a name without meaning, a tree that is not one of bools like the parameters, nothing left to share, or
        moments that would have to be divided and are not those of single parameters.
    """
    spec = config.personal
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    personal = function_of(_ARGUMENT, spec, lookup(_ARGUMENT, spec, PERSONAL), 1)(shapes)
    _check(spec, personal, shapes)

    def shared(params: Params) -> Params:
        return jax.tree.map(lambda own, x: None if own else x, personal, params)

    def merged(params: Params, part: Params) -> Params:
        return jax.tree.map(lambda own, x, y: x if own else y, personal, params, part)

    optimizer = make_optimizer(agent_config)(hyperparams_of(agent_config).learner)
    like = () if config.merge.moments == "keep" else jax.eval_shape(optimizer.init, shared(shapes))
    _check_moments(spec, agent_config.optimizer, like, jax.eval_shape(optimizer.init, shapes))

    def shared_moments(state: Tree) -> Tree:
        whole = _by_path(state)
        return jax.tree_util.tree_map_with_path(lambda path, _: whole[jax.tree_util.keystr(path)], like)

    def merged_moments(state: Tree, part: Tree) -> Tree:
        new = _by_path(part)
        return jax.tree_util.tree_map_with_path(lambda path, x: new.get(jax.tree_util.keystr(path), x), state)

    return Sharing(shared, merged, shared_moments, merged_moments)


def _check(spec: str, personal: Tree, shapes: Params) -> None:
    marks, structures = jax.tree.leaves(personal), {jax.tree.structure(tree) for tree in (personal, shapes)}
    require(
        len(structures) == 1 and all(isinstance(x, (bool, np.bool_)) for x in marks),
        f"{_ARGUMENT} is {spec!r}, which does not make the tree of the parameters with True or False for each leaf: correct it",
    )
    require(not all(marks), f"{_ARGUMENT} is {spec!r}, and then nothing is left to share: make fewer parameters personal")


def _check_moments(spec: str, optimizer: str, part: Tree, whole: Tree) -> None:
    """Raises InputError if the moments do not divide, as of an optimizer that flattens all parameters."""
    known, wanted = _by_path(whole), _by_path(part)
    require(
        all(name in known and known[name].shape == x.shape for name, x in wanted.items()),
        f"{_ARGUMENT} is {spec!r}, and the moments of agent.optimizer {optimizer!r} do not divide as the parameters do: set "
        "federated.merge.moments to 'keep'",
    )


def _by_path(tree: Tree) -> dict[str, Tree]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
