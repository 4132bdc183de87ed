"""Environments by name: gymnax's, Gymnasium's, and a user's own, with wrappers. Not here: each kind of environment."""

import ast
from collections.abc import Callable, Sequence

import jax

from dqn_jax.config import Experiment, InputError, require
from dqn_jax.envs.atari import ATARI_WRAPPERS, make_atari
from dqn_jax.envs.atari import PREFIX as ATARI
from dqn_jax.envs.craftax_envs import PREFIX as CRAFTAX
from dqn_jax.envs.craftax_envs import make_craftax
from dqn_jax.envs.environment import Environment
from dqn_jax.envs.gymnasium_envs import PREFIX as GYMNASIUM
from dqn_jax.envs.gymnasium_envs import make_gymnasium
from dqn_jax.envs.gymnax_envs import make_gymnax
from dqn_jax.envs.jumanji_envs import PREFIX as JUMANJI
from dqn_jax.envs.jumanji_envs import make_jumanji
from dqn_jax.envs.octax_envs import PREFIX as OCTAX
from dqn_jax.envs.octax_envs import make_octax
from dqn_jax.envs.pgx_envs import PREFIX as PGX
from dqn_jax.envs.pgx_envs import make_pgx
from dqn_jax.envs.users import make_users
from dqn_jax.envs.wrappers import LIFE_LOSS, REWARD_CLIP, wrap
from dqn_jax.lookup import is_users

_ON_HOST: dict[str, Callable[..., Environment]] = {GYMNASIUM: make_gymnasium, ATARI: make_atari}
"""Who makes environments that are stepped on the host, by the prefix of their names."""
_INSIDE: dict[str, Callable[..., Environment]] = {
    OCTAX: make_octax,
    PGX: make_pgx,
    CRAFTAX: make_craftax,
    JUMANJI: make_jumanji,
}
"""Who makes those of other suites that a program steps."""


def make_env(
    name: str, max_episode_steps: int | None = None, kwargs: Sequence[str] = (), wrappers: Sequence[str] = ()
) -> Environment:
    """Builds an environment.

    Args:
      name: a registered gymnax name, such as "CartPole-v1"; module:function of a user's own; "octax:", "pgx:", "craftax:" or
        "jumanji:" and a game; or, of an environment that is stepped on the host, "gymnasium:" and a name registered there, or
        "atari:" and a game.
      max_episode_steps: time limit in steps; None keeps the environment's own.
      kwargs: arguments of its constructor, each as "size=12".
      wrappers: wrappers of it, innermost first, each as "frame-stack:4".

    Raises:
      InputError: for a name without meaning, or an environment that cannot be made, cannot be used or has no time limit.
    """
    arguments = parse_kwargs(kwargs)
    prefix = f"{name.partition(':')[0]}:"
    if prefix in _ON_HOST:
        return _ON_HOST[prefix](name, max_episode_steps, arguments, wrappers)
    make = _INSIDE.get(prefix, make_users if is_users(name) else make_gymnax)
    return wrap(make(name, max_episode_steps, arguments), wrappers)


def env_of(config: Experiment, on_host: bool = False) -> Environment:
    """Builds the environment that a config names, as `make_env`.

    Args:
      config: the config.
      on_host: whether the caller can also step an environment on the host.

    Raises:
      InputError: as `make_env`, and for an environment on the host that the caller cannot step.
    """
    require(
        on_host or not config.env.startswith(tuple(_ON_HOST)),
        f"env is {config.env!r}, which is stepped on the host: train it with experiments/actor_learner.py, or with "
        "experiments/parameter_server.py --backend threads, in-process or ray",
    )
    return make_env(config.env, config.max_episode_steps, config.env_kwargs, wrappers_of(config))


def wrappers_of(config: Experiment) -> tuple[str, ...]:
    """Returns the wrappers of a config's environment: of an Atari game, where none are named, those of its protocol."""
    return ATARI_WRAPPERS if config.env.startswith(ATARI) and not config.wrappers else config.wrappers


def eval_env_of(config: Experiment, env: Environment) -> Environment:
    """Returns the environment of a config's evaluations: `env`, if its wrappers are the same.

    Raises:
      InputError: if its observations, actions or parameters differ from those of `env`.
    """
    chosen, own = config.runner.eval_wrappers, wrappers_of(config)
    kept = tuple(spec for spec in own if spec.partition(":")[0] not in (REWARD_CLIP, LIFE_LOSS))
    wrappers = kept if chosen is None else chosen
    if wrappers == own:
        return env
    other = make_env(config.env, config.max_episode_steps, config.env_kwargs, wrappers)
    alike = [
        (*one.spec._replace(max_episode_steps=0), jax.tree.map(lambda x: (x.shape, x.dtype), one.params))
        for one in (env, other)
    ]
    if alike[0] != alike[1]:
        raise InputError(
            f"runner.eval_wrappers is {wrappers}, with observations {other.spec.obs_shape}, and those of training, "
            f"{own}, leave {env.spec.obs_shape}: give what leaves the same"
        )
    return other


def parse_kwargs(kwargs: Sequence[str]) -> dict[str, object]:
    """Parses texts such as "size=12" into arguments by name: Python literals, and any other value as text.

    Raises:
      InputError: for a text without a name and "=", or a name given twice.
    """
    parsed: dict[str, object] = {}
    for text in kwargs:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()) or name in parsed:
            raise InputError(f"env_kwargs has {text!r}: give each argument once, as size=12")
        try:
            parsed[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parsed[name] = value
    return parsed
