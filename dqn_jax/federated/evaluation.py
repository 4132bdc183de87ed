"""Greedy evaluation of a federation: what the server shares where clients train and where nobody does; clients' own if asked.

Shapes: S repetitions, N clients, M held-out environments of a kind, C columns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import Record
from dqn_jax.envs import Environment
from dqn_jax.evaluation import Evaluator, make_evaluate
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.heterogeneity import ClientEnvs, varied_fields
from dqn_jax.mapping import from_devices, over, place
from dqn_jax.networks import Network
from dqn_jax.types import Params

SPLITS = ("seen", "inside", "beyond")
ONE = "global"
"""The policy that is the same for all clients; of any other there is one for each."""


def make_evaluator(
    env: Environment,
    network: Network,
    config: FederatedConfig,
    envs: ClientEnvs,
    num_episodes: int,
    devices: Sequence[jax.Device],
    epsilon: float = 0.0,
) -> Evaluator:
    """Builds the evaluator.

    Args:
      env: the environment.
      network: the Q-network.
      config: clients, held-out environments, and whether clients' own parameters are played.
      envs: leaves [S, N or M, ...].
      num_episodes: episodes for each column.
      devices: repetitions are divided over them.
      epsilon: probability of an action at random.

    Returns:
      The evaluator of `{"global": ...}`, one policy for all, or with personal parameters of `{"personal": ...}`, one of each
      client; and if asked of `{"clients": ...}`, their own parameters before the merge. Columns are the one policy on each
      client's environment and each held-out one; of those of clients, each on its own environment, and on the held-out ones,
      whose mean is one column.
    """
    evaluate = make_evaluate(env, network, num_episodes, epsilon=epsilon)
    kinds = [kind for kind in SPLITS if kind == "seen" or config.unseen_envs]
    clients, unseen = config.num_clients, (len(kinds) - 1) * config.unseen_envs
    # {policy: (name of its parameters, how many there are)}; what is reported first is what the federation serves.
    policies = {ONE: (ONE, 1)} if config.personal == "none" else {"personal": ("personal", clients)}
    if config.eval_clients:
        policies["client"] = ("clients", clients)

    def pairs(number: int) -> tuple[np.ndarray, np.ndarray]:
        """(policies, environments) of what is played: each client's, or the one there is, where it trains; all elsewhere."""
        seen = np.arange(clients)
        others = np.tile(np.arange(clients, clients + unseen), number)
        return np.concatenate([seen % number, np.repeat(np.arange(number), unseen)]), np.concatenate([seen, others])

    def columns_of(returns: jax.Array, policy: str) -> jax.Array:
        """Returns of the columns of a policy, given those of its pairs."""
        others = returns[clients:].reshape(policies[policy][1], len(kinds) - 1, config.unseen_envs)
        others = others[0] if policy == ONE else jnp.mean(others, axis=2).T
        return jnp.concatenate([returns[:clients], others.reshape(-1)])

    def play_one(key: jax.Array, params: dict[str, Params], envs: ClientEnvs) -> tuple[jax.Array, jax.Array]:
        """Returns [C] and unfinished [] of one repetition. Every policy meets the same episodes in an environment."""
        everywhere = jax.tree.map(lambda *x: jnp.concatenate(x), *(getattr(envs, kind) for kind in kinds))
        taken, places = zip(*(pairs(number) for _, number in policies.values()), strict=True)
        rows = [
            jax.tree.map(lambda x, i=i, own=policy != ONE: (x if own else x[None])[i], params[name])
            for (policy, (name, _)), i in zip(policies.items(), taken, strict=True)
        ]
        numbers = np.concatenate(places)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
        # All of it in one loop.
        result = jax.vmap(evaluate)(
            keys, jax.tree.map(lambda *x: jnp.concatenate(x), *rows), jax.tree.map(lambda x: x[numbers], everywhere)
        )
        of_each = jnp.split(jnp.mean(result.returns, axis=1), np.cumsum([len(i) for i in taken])[:-1])
        columns = [columns_of(returns, policy) for returns, policy in zip(of_each, policies, strict=True)]
        return jnp.concatenate(columns), jnp.sum(~result.finished)

    parallel = over(over(play_one), devices=devices)

    def rows(tree: Any) -> Any:
        return place(jax.tree.map(lambda x: x.reshape(len(devices), len(x) // len(devices), *x.shape[1:]), tree), devices)

    env_rows = rows(envs)

    def play(keys: jax.Array, params: Params) -> tuple[np.ndarray, np.ndarray]:
        returns, unfinished = parallel(rows(keys), rows(params), env_rows)
        return from_devices(returns), from_devices(unfinished)

    columns = [
        _columns(config, jax.tree.map(lambda x, i=i: x[i], envs), kinds, list(policies))
        for i in range(len(jax.tree.leaves(envs.seen)[0]))
    ]
    return Evaluator(play, columns, _describer(columns[0]))


def _columns(config: FederatedConfig, envs: ClientEnvs, kinds: list[str], policies: list[str]) -> list[Record]:
    fields = {kind: varied_fields(getattr(envs, kind), config.heterogeneity) for kind in kinds}

    def of(policy: str, kind: str) -> list[Record]:
        alone = policy == ONE and kind != "seen"
        places: list = fields[kind] if alone or kind == "seen" else ["all held out"] * config.num_clients
        return [
            {"policy": policy, "split": kind, "client": "" if alone else i, "env_params": place}
            for i, place in enumerate(places)
        ]

    return [column for policy in policies for kind in kinds for column in of(policy, kind)]


def _describer(columns: list[Record]) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """[S, C] returns -> their mean for each policy and kind of environment, and how clients differ."""
    groups: dict[tuple[str, str], list[int]] = {}
    for position, column in enumerate(columns):
        groups.setdefault((column["policy"], column["split"]), []).append(position)
    served = columns[0]["policy"]

    def describe(returns: np.ndarray) -> dict[str, np.ndarray]:
        seen = np.sort(returns[:, groups[served, "seen"]], axis=1)
        tenth = -(-seen.shape[1] // 10)
        result = {
            "eval_return": seen.mean(axis=1),
            "eval_worst": seen[:, 0],
            "eval_lowest_tenth": seen[:, :tenth].mean(axis=1),
            "eval_variance": seen.var(axis=1),
        }
        for (policy, kind), positions in groups.items():
            if (policy, kind) == (served, "seen"):
                continue
            values, name = returns[:, positions], f"eval_{kind}" if policy == served else f"eval_client_{kind}"
            result[name] = values.mean(axis=1)
            if policy == "client":
                result[f"{name}_best"] = values.max(axis=1)
            if policy == "personal":
                result |= {f"{name}_lowest": values.min(axis=1), f"{name}_highest": values.max(axis=1)}
        return result

    return describe
