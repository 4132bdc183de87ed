"""Greedy evaluation: one whole episode in each environment. Not here: when to evaluate, pictures of it (`play`).

A window of fixed length would favour short episodes; so would taking whichever episodes end first.

Shapes: E episodes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import Experiment, Record
from dqn_jax.envs import Environment, EnvParams, Running, TimeStep, eval_env_of, reset_key, seeds_of
from dqn_jax.exploration import at_random
from dqn_jax.networks import Network
from dqn_jax.types import Params


class Evaluation(NamedTuple):
    """Returns of E episodes."""

    returns: jax.Array
    """[E] float32, not discounted unless that is asked for."""
    lengths: jax.Array
    """[E] int32 steps."""
    finished: jax.Array
    """[E] bool; an episode still running at the cap has the return so far."""


class Evaluator(NamedTuple):
    """How a run evaluates: what `runner.run` needs to know of it."""

    play: Callable[[jax.Array, Params], tuple[Any, Any]]
    """(keys [S], parameters of the driver) -> (mean returns [S, C], episodes [S] that reached the step cap), C columns."""
    columns: list[list[Record]]
    """[s][c]: fields of `returns.csv` for column c of seed s, such as `env_params`."""
    describe: Callable[[np.ndarray], dict[str, np.ndarray]]
    """[S, C] returns -> named numbers of each seed, `eval_return` among them."""


class Stepping(NamedTuple):
    """How E environments are stepped: in a compiled loop, or in a Python loop where they are on the host."""

    reset: Callable[[jax.Array, EnvParams], tuple[Any, jax.Array]]
    """(streams [E], params) -> (state, observations [E, ...])."""
    step: Callable[[jax.Array, Any, jax.Array, EnvParams], tuple[Any, TimeStep]]
    """(keys [E], state, actions [E], params) -> (state, time step [E, ...])."""
    loop: Callable[..., Any]
    """(running, body, carry) -> carry, as `jax.lax.while_loop`."""
    compiled: Callable[[Callable], Callable]
    """Compiles what is between two steps."""
    over_seeds: Callable[[Callable], Callable]
    """A function of one repetition -> one of all, with a leading axis S."""


def one_environment(
    evaluate: Callable[..., Evaluation],
    seeds: Sequence[int],
    fields: Record,
    over_seeds: Callable[[Callable], Callable] = lambda one: jax.jit(jax.vmap(one)),
) -> Evaluator:
    """Builds the evaluator of one policy in one environment: `eval_return` is its mean return.

    Args:
      evaluate: as `make_evaluate` makes it.
      seeds: one for each repetition.
      fields: parameters in which the environment differs from the default.
      over_seeds: maps a function of one repetition to one of all.
    """

    def one(key: jax.Array, params: Params) -> tuple[jax.Array, jax.Array]:
        result = evaluate(key, params)
        return jnp.mean(result.returns)[None], jnp.sum(~result.finished)

    return Evaluator(over_seeds(one), [[{"env_params": fields}] for _ in seeds], lambda returns: {"eval_return": returns[:, 0]})


def evaluator_of(config: Experiment, env: Environment, network: Network) -> Evaluator:
    """Builds the evaluator of an experiment with one environment for all, with the wrappers of evaluations."""
    env = eval_env_of(config, env)
    limit = config.max_episode_steps
    fields = {} if limit is None else {"max_steps_in_episode": limit}
    evaluate = make_evaluate(env, network, config.runner.eval_episodes, epsilon=config.runner.eval_epsilon)
    return one_environment(evaluate, config.seeds, fields, stepping(env).over_seeds)


def make_evaluate(
    env: Environment,
    network: Network,
    num_episodes: int,
    max_steps: int | None = None,
    epsilon: float = 0.0,
    discount: float = 1.0,
    steps: Stepping | None = None,
) -> Callable[..., Evaluation]:
    """Builds a function that plays whole episodes.

    Args:
      env: the environment.
      network: the Q-network.
      num_episodes: E, played side by side.
      max_steps: cap on an episode's steps; None takes the environment's time limit.
      epsilon: probability of an action at random, above 0 not quite greedy.
      discount: of each further reward in the returns.
      steps: how the environment is stepped; None takes what `stepping` chooses.

    Returns:
      `evaluate(key, params, env_params=the environment's) -> Evaluation`; not traceable where the environment is on the host.
    """
    cap = env.spec.max_episode_steps if max_steps is None else max_steps
    steps = stepping(env) if steps is None else steps

    @steps.compiled
    def choose(params: Params, streams: jax.Array, time: jax.Array, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(stream: jax.Array, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
            action_key, env_key = jax.random.split(jax.random.fold_in(stream, time))
            action = jnp.argmax(network.apply(params, obs, None).q_values)
            if epsilon:
                action = at_random(action_key, env.spec.num_actions, jnp.float32(epsilon), action.astype(jnp.int32))
            return action, env_key

        return jax.vmap(one)(streams, obs)

    @steps.compiled
    def count(so_far: Evaluation, step: TimeStep, time: jax.Array) -> Evaluation:
        counts = ~so_far.finished
        reward = step.reward if discount == 1 else discount**time * step.reward
        return Evaluation(
            returns=so_far.returns + jnp.where(counts, reward, 0.0),
            lengths=so_far.lengths + counts,
            finished=so_far.finished | step.terminated | step.truncated,
        )

    def evaluate(key: jax.Array, params: Params, env_params: EnvParams = env.params) -> Evaluation:
        streams = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num_episodes))
        env_state, obs = steps.reset(streams, env_params)
        start = Evaluation(jnp.zeros(num_episodes), jnp.zeros(num_episodes, jnp.int32), jnp.zeros(num_episodes, bool))

        def running(carry: tuple) -> jax.Array:
            time, _, _, result = carry
            return (time < cap) & ~jnp.all(result.finished)

        def body(carry: tuple) -> tuple:
            time, env_state, obs, result = carry
            actions, keys = choose(params, streams, time, obs)
            env_state, step = steps.step(keys, env_state, actions, env_params)
            return time + 1, env_state, step.obs, count(result, step, time)

        return steps.loop(running, body, (jnp.int32(0), env_state, obs, start))[-1]

    return evaluate


def stepping(env: Environment) -> Stepping:
    """Chooses how an environment is stepped."""
    if env.start is None:
        return Stepping(
            reset=lambda streams, params: jax.vmap(env.init, in_axes=(0, None))(jax.vmap(reset_key)(streams), params),
            step=jax.vmap(env.step, in_axes=(0, 0, 0, None)),
            loop=jax.lax.while_loop,
            compiled=lambda fn: fn,
            over_seeds=lambda one: jax.jit(jax.vmap(one)),
        )
    start = env.start

    def reset(streams: jax.Array, params: EnvParams) -> tuple[Running, jax.Array]:
        running = start(seeds_of(streams))
        return running, jnp.asarray(running.obs)

    def step(keys: jax.Array, running: Running, actions: jax.Array, params: EnvParams) -> tuple[Running, TimeStep]:
        return running, running.step(np.asarray(actions))

    def loop(running: Callable[[tuple], jax.Array], body: Callable[[tuple], tuple], carry: tuple) -> tuple:
        carry = one_by_one(running, body, carry)
        carry[1].close()
        return carry

    def over_seeds(one: Callable) -> Callable:
        def in_turn(*rows: Any) -> Any:
            results = [one(*jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(len(rows[0]))]
            return jax.tree.map(lambda *parts: np.stack(parts), *results)

        return in_turn

    return Stepping(reset, step, loop, jax.jit, over_seeds)


def one_by_one(running: Callable[[tuple], jax.Array], body: Callable[[tuple], tuple], carry: tuple) -> tuple:
    """Loops as `jax.lax.while_loop`, in Python."""
    while running(carry):
        carry = body(carry)
    return carry
