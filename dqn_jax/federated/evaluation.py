"""Greedy evaluation of a federation: the server's parameters where clients train and where nobody does; clients' own if asked.

Shapes: S repetitions, N clients, M held-out environments of a kind, C columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import Record
from dqn_jax.envs import Environment, EnvParams
from dqn_jax.evaluation import Evaluator, make_evaluate
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.heterogeneity import ClientEnvs, varied_fields
from dqn_jax.mapping import over, place
from dqn_jax.networks import Network
from dqn_jax.types import Params

SPLITS = ("seen", "inside", "beyond")


def make_evaluator(
    env: Environment,
    network: Network,
    config: FederatedConfig,
    envs: ClientEnvs,
    num_episodes: int,
    devices: Sequence[jax.Device],
) -> Evaluator:
    """Builds the evaluator.

    Args:
      env: the environment.
      network: the Q-network.
      config: clients, held-out environments, and whether clients' own parameters are played.
      envs: leaves [S, N or M, ...].
      num_episodes: episodes for each column.
      devices: repetitions are divided over them.

    Returns:
      The evaluator of `{"global": ...}` and, if asked, `{"clients": ...}`. Columns are the server's parameters on each client's
      environment and each held-out one, then each client's own on its own environment, and on the held-out ones, whose mean is
      one column.
    """
    evaluate = make_evaluate(env, network, num_episodes)
    kinds = [kind for kind in SPLITS if kind == "seen" or config.unseen_envs]
    clients = config.num_clients

    def pairs(params: dict[str, Params], envs: ClientEnvs) -> tuple[jax.Array, Params, EnvParams]:
        """(number of the environment, policy, environment) of everything that is played: all of it in one loop."""
        everywhere = jax.tree.map(lambda *x: jnp.concatenate(x), *(getattr(envs, kind) for kind in kinds))
        count = len(jax.tree.leaves(everywhere)[0])
        numbers, policies = jnp.arange(count), jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), params["global"])
        if not config.eval_clients:
            return numbers, policies, everywhere
        # Each client where it trains; then every client in every held-out environment.
        theirs = jnp.concatenate([jnp.arange(clients), jnp.repeat(jnp.arange(clients), count - clients)])
        places = jnp.concatenate([jnp.arange(clients), jnp.tile(jnp.arange(clients, count), clients)])
        policies = jax.tree.map(lambda x, own: jnp.concatenate([x, own[theirs]]), policies, params["clients"])
        numbers = jnp.concatenate([numbers, places])
        return numbers, policies, jax.tree.map(lambda x: x[numbers], everywhere)

    def play_one(key: jax.Array, params: dict[str, Params], envs: ClientEnvs) -> tuple[jax.Array, jax.Array]:
        """Returns [C] and unfinished [] of one repetition. Every policy meets the same episodes in an environment."""
        numbers, policies, env_params = pairs(params, envs)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
        result = jax.vmap(evaluate)(keys, policies, env_params)
        returns = jnp.mean(result.returns, axis=1)
        if config.eval_clients:
            served = clients + (len(kinds) - 1) * config.unseen_envs
            by_client = returns[served + clients :].reshape(clients, len(kinds) - 1, config.unseen_envs)
            held_out = jnp.mean(by_client, axis=2).T.reshape(-1)
            returns = jnp.concatenate([returns[: served + clients], held_out])
        return returns, jnp.sum(~result.finished)

    parallel = over(over(play_one), devices=devices)

    def rows(tree: Any) -> Any:
        split = jax.tree.map(lambda x: x.reshape(len(devices), len(x) // len(devices), *x.shape[1:]), tree)
        return place(split, devices)

    env_rows = rows(envs)

    def play(keys: jax.Array, params: Params) -> tuple[np.ndarray, np.ndarray]:
        returns, unfinished = parallel(rows(keys), rows(params), env_rows)
        # To the host first: each slice of a divided array would be a program for all devices.
        return np.concatenate(np.asarray(returns)), np.concatenate(np.asarray(unfinished))

    columns = [
        _columns(config, jax.tree.map(lambda x, i=i: x[i], envs), kinds) for i in range(len(jax.tree.leaves(envs.seen)[0]))
    ]
    return Evaluator(play, columns, _describer(columns[0]))


def _columns(config: FederatedConfig, envs: ClientEnvs, kinds: list[str]) -> list[Record]:
    fields = {kind: varied_fields(getattr(envs, kind), config.heterogeneity) for kind in kinds}
    columns = [
        {"policy": "global", "split": kind, "client": i if kind == "seen" else "", "env_params": one}
        for kind in kinds
        for i, one in enumerate(fields[kind])
    ]
    if config.eval_clients:
        columns += [
            {
                "policy": "client",
                "split": kind,
                "client": i,
                "env_params": fields["seen"][i] if kind == "seen" else "all held out",
            }
            for kind in kinds
            for i in range(config.num_clients)
        ]
    return columns


def _describer(columns: list[Record]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """[S, C] returns -> their mean for each policy and kind of environment, and how clients differ."""
    groups: dict[tuple[str, str], list[int]] = {}
    for position, column in enumerate(columns):
        groups.setdefault((column["policy"], column["split"]), []).append(position)

    def describe(returns: np.ndarray) -> dict[str, np.ndarray]:
        seen = np.sort(returns[:, groups["global", "seen"]], axis=1)
        tenth = -(-seen.shape[1] // 10)
        result = {
            "eval_return": seen.mean(axis=1),
            "eval_worst": seen[:, 0],
            "eval_lowest_tenth": seen[:, :tenth].mean(axis=1),
            "eval_variance": seen.var(axis=1),
        }
        for (policy, kind), positions in groups.items():
            if (policy, kind) == ("global", "seen"):
                continue
            prefix = "eval" if policy == "global" else "eval_client"
            result[f"{prefix}_{kind}"] = returns[:, positions].mean(axis=1)
            if policy == "client":
                result[f"eval_client_{kind}_best"] = returns[:, positions].max(axis=1)
        return result

    return describe
