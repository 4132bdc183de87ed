"""Greedy evaluation: the first episode of each environment, once, to its end. Not here: when to evaluate.

A window of fixed length would favour short episodes; so would taking whichever episodes end first.

Shapes: E episodes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import ExperimentConfig, Record
from dqn_jax.envs import Environment, EnvParams, reset_key
from dqn_jax.networks import Network
from dqn_jax.types import Params


class Evaluation(NamedTuple):
    """Undiscounted returns of E episodes."""

    returns: jax.Array
    """[E] float32."""
    lengths: jax.Array
    """[E] int32 steps."""
    finished: jax.Array
    """[E] bool; an episode still running at the cap has the return so far."""


class Evaluator(NamedTuple):
    """How a run evaluates: what `runner.run` needs to know of it."""

    play: Callable[[jax.Array, Params], tuple[Any, Any]]
    """(keys [S], parameters of the driver) -> (mean returns [S, C], episodes [S] that ran into the cap), C columns."""
    columns: list[list[Record]]
    """What column c of seed s is, for `returns.csv`: its policy, split, client and env_params."""
    describe: Callable[[np.ndarray], dict[str, np.ndarray]]
    """[S, C] returns -> named numbers of each seed, `eval_return` among them."""


def one_environment(evaluate: Callable[..., Evaluation], seeds: Sequence[int], fields: Record) -> Evaluator:
    """The evaluator of one policy in one environment: `eval_return` is its mean return.

    Args:
      evaluate: as `make_evaluate` makes it.
      seeds: one for each repetition.
      fields: parameters in which the environment differs from the default.
    """
    column = {"policy": "global", "split": "seen", "client": 0, "env_params": fields}

    @jax.jit
    def play(keys: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
        result = jax.vmap(evaluate)(keys, params)
        return jnp.mean(result.returns, axis=1, keepdims=True), jnp.sum(~result.finished, axis=1)

    return Evaluator(play, [[column] for _ in seeds], lambda returns: {"eval_return": returns[:, 0]})


def evaluator_of(config: ExperimentConfig, env: Environment, network: Network) -> Evaluator:
    """The evaluator of an experiment whose agents all have the environment it names."""
    limit = config.max_episode_steps
    fields = {} if limit is None else {"max_steps_in_episode": limit}
    return one_environment(make_evaluate(env, network, config.runner.eval_episodes), config.seeds, fields)


def make_evaluate(
    env: Environment, network: Network, num_episodes: int, max_steps: int | None = None
) -> Callable[..., Evaluation]:
    """Builds a function that plays whole episodes.

    Args:
      env: the environment.
      network: the Q-network.
      num_episodes: E, played side by side.
      max_steps: cap on an episode's steps; None takes the environment's time limit.

    Returns:
      `evaluate(key, params, env_params=the environment's) -> Evaluation`.
    """
    cap = env.max_episode_steps if max_steps is None else max_steps

    def evaluate(key: jax.Array, params: Params, env_params: EnvParams = env.params) -> Evaluation:
        streams = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num_episodes))
        env_state, obs = jax.vmap(env.init, in_axes=(0, None))(jax.vmap(reset_key)(streams), env_params)
        start = Evaluation(jnp.zeros(num_episodes), jnp.zeros(num_episodes, jnp.int32), jnp.zeros(num_episodes, bool))

        def running(carry):
            time, _, _, result = carry
            return (time < cap) & ~jnp.all(result.finished)

        def one(stream, time, env_state, obs, so_far):
            _, env_key = jax.random.split(jax.random.fold_in(stream, time))
            action = jnp.argmax(network.apply(params, obs, None).q_values)
            env_state, step = env.step(env_key, env_state, action, env_params)
            counts = ~so_far.finished
            result = Evaluation(
                returns=so_far.returns + jnp.where(counts, step.reward, 0.0),
                lengths=so_far.lengths + counts,
                finished=so_far.finished | step.terminated | step.truncated,
            )
            return env_state, step.obs, result

        def body(carry):
            time, env_state, obs, result = carry
            return time + 1, *jax.vmap(one, in_axes=(0, None, 0, 0, 0))(streams, time, env_state, obs, result)

        return jax.lax.while_loop(running, body, (jnp.int32(0), env_state, obs, start))[-1]

    return evaluate
