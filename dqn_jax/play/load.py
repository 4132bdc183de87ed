"""Loads a policy from a run directory or an exported file. Not here: the file (`runner.policy`), playing it (`episodes`).

Shapes: S seeds, N clients, B observations.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.build import build
from dqn_jax.config import DataParallelExperiment, Experiment, InputError, Record, require
from dqn_jax.distributed.config import ActorLearnerExperiment, ServerExperiment
from dqn_jax.envs import Environment, eval_env_of
from dqn_jax.federated.config import FederatedExperiment, PooledExperiment
from dqn_jax.federated.heterogeneity import draw_all
from dqn_jax.mapping import evaluation_key
from dqn_jax.networks import Network
from dqn_jax.runner.checkpoint import newest_policy
from dqn_jax.runner.config_file import config_dict, with_values
from dqn_jax.runner.policy import by_name, read_policy
from dqn_jax.runner.records import CHECKPOINTS
from dqn_jax.types import Params

_KINDS = (DataParallelExperiment, ServerExperiment, ActorLearnerExperiment, FederatedExperiment, PooledExperiment)
_SHARED, _OWN = "global", ("personal", "clients")
"""Names that a federation gives its parameters; of a client's own, the first is what the federation serves it."""


class Trained(NamedTuple):
    """A policy that was trained, and what it takes to use it."""

    config: Experiment
    """The run's."""
    params: Params
    """Parameters of one seed, and of one client where one was named."""
    act: Callable[[Any], np.ndarray]
    """Observation [...] or observations [B, ...] -> greedy action [] or [B]; InputError for another shape."""
    env: Environment
    """What the run evaluates in: for a client's policy with the parameters of that client's environment."""
    network: Network
    key: jax.Array
    """Random key of the run's evaluation of these parameters."""


def load(source: str | Path, seed: int | None = None, client: int | None = None) -> Trained:
    """Loads a policy.

    A user's own modules are found where Python finds modules, as in training; none is taken from the run directory.

    Args:
      source: a run directory, of whose checkpoints the newest undamaged one is taken, or a file that `dqn-jax export` wrote.
      seed: one of the run's seeds; None takes the first.
      client: a client of a federation, for its own parameters; None takes the global ones.

    Raises:
      InputError: where there is nothing to load, or no such seed or client, or what there is cannot be used.
    """
    path = policy_file(Path(source))
    policy = read_policy(path)
    config = _experiment_of(policy.config, path)
    seed = config.seed if seed is None else seed
    require(
        seed in config.seeds,
        f"seed is {seed}, and {source} has seeds {config.seeds[0]} to {config.seeds[-1]}: name one of them",
    )
    row, group = config.seeds.index(seed), _group_of(policy.arrays, config, client, source)
    env, network = build(config, on_host=True, trial=False)
    rows = (row,) if client is None else (row, client)
    params = _params_of(network, policy.arrays, group, rows, path)
    env, key = eval_env_of(config, env), evaluation_key(seed, policy.done)
    if client is not None and isinstance(config, FederatedExperiment):
        own = draw_all(env, config.federated, config.num_seeds).seen
        env, key = env._replace(params=jax.tree.map(lambda x: x[rows], own)), jax.random.fold_in(key, client)
    return Trained(config, params, _make_act(env, network, params), env, network, key)


def policy_file(source: Path) -> Path:
    """Finds the file of a policy: of a run directory, that of its newest undamaged checkpoint.

    Raises:
      InputError: where a run directory has none.
    """
    return newest_policy(source / CHECKPOINTS) if source.is_dir() else source


def _experiment_of(record: Record, path: Path) -> Experiment:
    """Builds the config of a run from its JSON values; its kind is the one that has the same fields."""
    for kind in _KINDS:
        if config_dict(kind()).keys() == record.keys():
            return with_values(kind(), record, str(path))
    raise InputError(f"{path} has the config of another version: load it with the one that wrote it")


def _group_of(arrays: dict[str, np.ndarray], config: Experiment, client: int | None, source: Any) -> str:
    """Chooses the parameters to load: their name and "/" in front of every path, nothing where there is one set alone."""
    if not isinstance(config, FederatedExperiment):
        require(client is None, f"client is {client}, and {source} is no federation: leave it out")
        return ""
    there, last = {name.partition("/")[0] for name in arrays}, config.federated.num_clients - 1
    if client is None:
        require(_SHARED in there, f"{source} has no policy for all, but one of each client: name a client, from 0 to {last}")
        return f"{_SHARED}/"
    own = next((name for name in _OWN if name in there), None)
    if own is None:
        raise InputError(f"client is {client}, and {source} kept no client's own parameters: leave it out for the global ones")
    require(0 <= client <= last, f"client is {client}, and {source} has clients 0 to {last}: name one of them")
    return f"{own}/"


def _params_of(network: Network, arrays: dict[str, np.ndarray], group: str, rows: tuple[int, ...], path: Path) -> Params:
    """Takes parameters out of arrays with leading axes [S] or [S, N]; raises InputError unless they fit the network."""
    template = jax.eval_shape(network.init, jax.random.key(0))
    wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in by_name(template).items()}
    own = {name.removeprefix(group): x for name, x in arrays.items() if name.startswith(group)}
    found = {name: (x.shape[len(rows) :], x.dtype) for name, x in own.items()}
    wrong = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
    require(
        not wrong,
        f"{path} has parameters {', '.join(wrong)} unlike those of the network that its config makes: load it with the version "
        "and the modules that trained it",
    )
    return jax.tree.unflatten(jax.tree.structure(template), [jnp.asarray(own[name][rows]) for name in wanted])


def _make_act(env: Environment, network: Network, params: Params) -> Callable[[Any], np.ndarray]:
    shape = env.spec.obs_shape

    @jax.jit
    def greedy(obs: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: jnp.argmax(network.apply(params, one, None).q_values))(obs)

    def act(obs: Any) -> np.ndarray:
        obs = np.asarray(obs)
        alone = obs.shape == shape
        require(
            (alone or obs.shape[1:] == shape) and obs.dtype.kind in "biuf",
            f"obs has shape {obs.shape} and type {obs.dtype}: give numbers of shape {shape}, or of several observations (B, "
            f"{str(shape).lstrip('(')}",
        )
        actions = np.asarray(greedy(obs[None] if alone else obs))
        return actions[0] if alone else actions

    return act
