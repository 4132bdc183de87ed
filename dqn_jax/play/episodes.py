"""Plays what was trained: whole episodes of many seeds at once, or one that is watched. Not here: loading it, drawing, files.

Shapes: S seeds, E episodes, H height, W width.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import require
from dqn_jax.envs import EnvParams, EnvState, Running, TimeStep, env_of, eval_env_of, parameter, with_parameters
from dqn_jax.evaluation import Evaluation, Stepping, make_evaluate, one_by_one, stepping
from dqn_jax.federated.heterogeneity import derive_of
from dqn_jax.play.load import Trained
from dqn_jax.play.pictures import picture_of

_HOST_RATE = 30


def with_env_params(trained: Trained, texts: Sequence[str]) -> Trained:
    """Changes parameters of the environment, and those that depend on them.

    Args:
      trained: what is played.
      texts: each as "length=0.8".

    Raises:
      InputError: for a text that is no name and number, or a name that the environment does not have.
    """
    params = trained.env.params
    for text in texts:
        name, _, value = text.partition("=")
        before = parameter(params, name)
        require(before is not None, f"env_params has {text!r}, and {trained.config.env} has no parameter {name}: correct it")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        require(np.isfinite(number), f"env_params has {text!r}: give a name and a number, as length=0.8")
        params = derive_of(trained.config.env)(with_parameters(params, **{name: jnp.full_like(before, number)}))
    return trained._replace(env=trained.env._replace(params=params))


def play(policies: Sequence[Trained], num_episodes: int, epsilon: float = 0.0) -> Evaluation:
    """Plays the policies of S seeds of one run: with its own number of episodes, exactly the run's evaluation.

    Args:
      policies: each with parameters and a key of its own.
      num_episodes: E episodes of each.
      epsilon: probability of an action at random.

    Returns:
      The evaluation, with leaves [S, E].
    """
    env, network = policies[0].env, policies[0].network
    evaluate = make_evaluate(env, network, num_episodes, epsilon=epsilon)
    keys, params, env_params = (
        jax.tree.map(lambda *x: jnp.stack(x), *rows)
        for rows in ([p.key for p in policies], [p.params for p in policies], [p.env.params for p in policies])
    )
    return stepping(env).over_seeds(evaluate)(keys, params, env_params)


def film(trained: Trained, epsilon: float = 0.0) -> tuple[list[np.ndarray], int, Evaluation]:
    """Plays the first of the episodes that `play` plays, and draws it.

    Returns:
      Pictures [H, W, 3] uint8 of its start and after each of its steps, how many of them a second has, and the evaluation, its
      leaves [1].

    Raises:
      InputError: for an environment without a picture.
    """
    if trained.env.start is not None:
        return _film_on_host(trained, epsilon)
    env, picture = trained.env, picture_of(trained.config, trained.env)
    seen: list[np.ndarray] = []
    steps = _watched(stepping(env), lambda obs: seen.append(np.asarray(obs[0])))
    result = make_evaluate(env, trained.network, 1, epsilon=epsilon, steps=steps)(trained.key, trained.params)
    return [picture.draw(obs, env.params) for obs in seen], picture.per_second, result


def _watched(steps: Stepping, watch: Callable[[jax.Array], None]) -> Stepping:
    """Steps in a Python loop, and shows the observations [E, ...] that the reset and each step led to."""
    reset_now, step_now = jax.jit(steps.reset), jax.jit(steps.step)

    def reset(streams: jax.Array, params: EnvParams) -> tuple[EnvState, jax.Array]:
        state, obs = reset_now(streams, params)
        watch(obs)
        return state, obs

    def step(keys: jax.Array, state: EnvState, actions: jax.Array, params: EnvParams) -> tuple[EnvState, TimeStep]:
        state, time_step = step_now(keys, state, actions, params)
        watch(time_step.final_obs)
        return state, time_step

    return steps._replace(reset=reset, step=step, loop=one_by_one, compiled=jax.jit)


def _film_on_host(trained: Trained, epsilon: float) -> tuple[list[np.ndarray], int, Evaluation]:
    """Films an environment that is stepped on the host: it draws itself."""
    config = dataclasses.replace(trained.config, env_kwargs=(*trained.config.env_kwargs, "render_mode=rgb_array"))
    env = eval_env_of(config, env_of(config, on_host=True))
    started: list[Running] = []

    def start(seeds: Sequence[int]) -> Running:
        assert env.start is not None
        started.append(env.start(seeds))
        return started[0]

    result = make_evaluate(env._replace(start=start), trained.network, 1, epsilon=epsilon)(trained.key, trained.params)
    # What comes after is the next episode's first.
    return started[0].pictures()[: int(result.lengths[0]) + 1], _HOST_RATE, result
