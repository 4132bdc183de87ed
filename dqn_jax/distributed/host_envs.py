"""Gymnasium environments, stepped on the host: for actors, and for greedy evaluation. The only module that needs Gymnasium.

`--env gymnasium:NAME` names one (extra "gymnasium"). Not here: choosing actions and making transitions, which is the actor's.

Shapes: E environments, T environment steps in a block.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.actor import Actor, ActorState
from dqn_jax.config import InputError, Record
from dqn_jax.distributed.config import ActorLearnerExperiment
from dqn_jax.envs import HOST_PREFIX, Environment, TimeStep, parse_kwargs
from dqn_jax.evaluation import Evaluator
from dqn_jax.networks import make_network
from dqn_jax.types import Params


class HostActor(NamedTuple):
    """An actor whose environments are Gymnasium's; its state is an ActorState beside them."""

    begin: Callable[[ActorState, int], Any]
    """(state, stream) -> state with fresh environments, seeded by the number of the stream."""
    play: Callable[[Any, Params], tuple[Any, Any]]
    """(state, params) -> (state, (transitions [T, E, ...], valid [T], infos [T])): a block."""


def make_envs(name: str, max_episode_steps: int | None, num_envs: int, kwargs: Sequence[str] = ()) -> Any:
    """E copies that reset themselves in the step that ends an episode.

    Raises:
      InputError: where Gymnasium is not installed, or cannot make the environment.
    """
    try:
        import gymnasium
    except ImportError:
        raise InputError(f"env is {name!r}, and Gymnasium is not installed: pip install 'dqn-jax[gymnasium]'") from None
    kind = name.removeprefix(HOST_PREFIX)
    arguments: dict[str, Any] = {"max_episode_steps": max_episode_steps, **parse_kwargs(kwargs)}
    try:
        return gymnasium.vector.SyncVectorEnv(
            [lambda: gymnasium.make(kind, **arguments)] * num_envs,
            autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP,
        )
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise InputError(f"env is {name!r}, which Gymnasium cannot make: {str(error).splitlines()[0]}") from None


def describe(name: str, max_episode_steps: int | None, kwargs: Sequence[str] = ()) -> Environment:
    """Shapes and actions of an environment of the host. It cannot be stepped inside a program.

    Raises:
      InputError: where Gymnasium cannot make it, its actions are not discrete, its observations are not one array, or it has
        no time limit.
    """
    envs = make_envs(name, max_episode_steps, 1, kwargs)
    observations, actions, spec = envs.single_observation_space, envs.single_action_space, envs.envs[0].spec
    envs.close()
    if not hasattr(actions, "n") or actions.start != 0:
        raise InputError(f"env is {name!r}, whose actions are {actions}: DQN needs discrete ones from 0, as CartPole-v1 has")
    if not observations.shape:
        raise InputError(f"env is {name!r}, whose observations are {observations}: give one whose observations are arrays")
    limit = spec.max_episode_steps
    if limit is None:
        raise InputError(f"env is {name!r}, which has no time limit, and a greedy episode may never end: set max_episode_steps")

    def init(key: jax.Array, params: Any) -> tuple[Any, jax.Array]:
        return (), jnp.zeros(observations.shape)

    def step(*_: Any) -> Any:
        raise TypeError(f"{name} is stepped on the host")

    return Environment(name, init, step, (), observations.shape, np.dtype(np.float32), int(actions.n), limit)


def make_actor(config: ActorLearnerExperiment, actor: Actor) -> HostActor:
    """The actor of an experiment in environments of the host; between two of their steps run two compiled programs."""
    choose, record = jax.jit(actor.choose), jax.jit(actor.record)

    def begin(state: ActorState, stream: int) -> Any:
        envs = make_envs(config.env, config.max_episode_steps, config.envs_per_actor, config.env_kwargs)
        first = stream * config.envs_per_actor
        obs, _ = envs.reset(seed=[env_seed(config.seed, first + env) for env in range(config.envs_per_actor)])
        return state.replace(obs=jnp.asarray(obs, jnp.float32)), envs

    def play(state: Any, params: Params) -> tuple[Any, Any]:
        actor_state, envs = state
        moments = []
        for _ in range(config.acts_per_block):
            choice = choose(actor_state, params)
            obs, rewards, terminated, truncated, info = envs.step(np.asarray(choice.actions))
            time_step = TimeStep(
                obs=jnp.asarray(obs, jnp.float32),
                final_obs=jnp.asarray(final_observations(obs, info), jnp.float32),
                reward=jnp.asarray(rewards, jnp.float32),
                terminated=jnp.asarray(terminated),
                truncated=jnp.asarray(truncated & ~terminated),
            )
            actor_state, transitions, valid, act_info = record(actor_state, choice, time_step)
            moments.append(jax.device_get((transitions, np.asarray(valid), act_info)))
        return (actor_state, envs), jax.tree.map(lambda *parts: np.stack(parts), *moments)

    return HostActor(begin, play)


def env_seed(seed: int, env: int) -> int:
    """Seed of environment number `env` of a run; those of runs with neighbouring seeds have nothing in common."""
    return int(np.random.SeedSequence((seed, env)).generate_state(1)[0])


def final_observations(obs: np.ndarray, info: Record) -> np.ndarray:
    """[E, ...] observations that a step led to, where `obs` already has the next episode's first."""
    if "final_obs" not in info:
        return obs
    ended = info["_final_obs"]
    final = obs.copy()
    final[ended] = np.stack(list(info["final_obs"][ended]))
    return final


def make_evaluator(config: ActorLearnerExperiment) -> Evaluator:
    """Greedy evaluation on the host: the first episode of each environment, once, to its end."""
    env = describe(config.env, config.max_episode_steps, config.env_kwargs)
    network = make_network(config.network, env.obs_shape, env.num_actions)
    episodes = config.runner.eval_episodes

    @jax.jit
    def greedy(params: Params, obs: jax.Array) -> jax.Array:
        return jnp.argmax(jax.vmap(lambda obs: network.apply(params, obs, None).q_values)(obs), axis=1)

    def play(keys: jax.Array, params: Params) -> tuple[np.ndarray, np.ndarray]:
        envs = make_envs(config.env, config.max_episode_steps, episodes, config.env_kwargs)
        first = int(jax.random.randint(keys[0], (), 0, 2**30))
        obs, _ = envs.reset(seed=[first + episode for episode in range(episodes)])
        one = jax.tree.map(lambda x: x[0], params)
        returns, running = np.zeros(episodes), np.ones(episodes, bool)
        while running.any():
            obs, rewards, terminated, truncated, _ = envs.step(np.asarray(greedy(one, obs.astype(np.float32))))
            returns += np.where(running, rewards, 0.0)
            running &= ~(terminated | truncated)
        envs.close()
        return np.array([[returns.mean()]]), np.zeros(1, int)

    limit = {} if config.max_episode_steps is None else {"max_steps_in_episode": config.max_episode_steps}
    columns = [[{"policy": "global", "split": "seen", "client": 0, "env_params": limit}]]
    return Evaluator(play, columns, lambda returns: {"eval_return": returns[:, 0]})
