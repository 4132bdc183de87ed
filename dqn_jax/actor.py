"""The acting half of DQN: exploring steps in many environments, and the transitions they give.

Not here: the rule that chooses actions (exploration), where transitions are stored, whose parameters they are.

Shapes: E environments, n the n-step length.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from dqn_jax.config import AgentConfig
from dqn_jax.envs import Environment, EnvParams, EnvState, TimeStep, reset_key
from dqn_jax.exploration import Exploration, make_exploration
from dqn_jax.networks import Network
from dqn_jax.streams import keys_at
from dqn_jax.types import ActorHyperparams, Clock, Info, Params, Transition, Tree
from dqn_jax.windows import SingleStep, Window, keeps_frames, takes_single_steps, transition_of


class ActorState(flax.struct.PyTreeNode):
    """All that acting carries from one environment step to the next."""

    env_state: EnvState
    """Leaves [E, ...]."""
    obs: jax.Array
    """[E, ...] observations to act on."""
    env_params: EnvParams
    """Leaves [...], shared by the environments of one actor."""
    window: Window
    episode_return: jax.Array
    """[E] float32 reward so far in each running episode."""
    episode_steps: jax.Array
    """[E] int32 steps so far in each running episode."""
    streams: jax.Array
    """[E] keys, one random stream per environment."""
    numbers: jax.Array
    """[E] int32 numbers of the environments."""
    hyperparams: ActorHyperparams
    clock: Clock
    """Steps taken in each environment."""


class Choice(NamedTuple):
    """What to do next in each environment."""

    actions: jax.Array
    """[E] int32."""
    env_keys: jax.Array
    """[E] keys that the environments' steps draw from."""
    epsilon: jax.Array
    """[] float32, the mean over environments."""


class Actor(NamedTuple):
    """Acting as pure functions."""

    init: Callable[..., ActorState]
    """(key, env_params, hyperparams, first_env=0) -> state, for the environments numbered from `first_env`."""
    choose: Callable[[ActorState, Params], Choice]
    """(state, params) -> actions on the observations of the state."""
    record: Callable[[ActorState, Choice, TimeStep], tuple[ActorState, Tree, jax.Array | bool, Info]]
    """(state, choice, time step [E, ...]) -> (state, transitions or single steps [E, ...], are they valid [] bool, info)."""
    act: Callable[[ActorState, Params], tuple[ActorState, Tree, jax.Array | bool, Info]]
    """(state, params) -> what `record` returns of a step of the environments after `choose`."""


def make_actor(
    env: Environment,
    network: Network,
    config: AgentConfig,
    num_shards: int = 1,
    exploration: Exploration | None = None,
) -> Actor:
    """Builds the actor of DQN.

    Args:
      env: the environment.
      network: the Q-network whose values choose actions.
      config: the whole agent's; this actor steps `num_envs / num_shards` environments, but its epsilon counts all frames.
      num_shards: actors that one agent's environments are divided over.
      exploration: how actions are chosen; None takes the rule that the config names.

    Returns:
      The actor. Environment e draws from a stream of its own, `fold_in(key, e)`, so neither the number of shards nor that
      of environments changes what environment e sees.
    """
    num_envs = config.num_envs // num_shards
    rule = make_exploration(config) if exploration is None else exploration
    single_steps = takes_single_steps(env.spec, config)
    n_step, join = 1 if single_steps else config.n_step, transition_of(config)

    def init(
        key: jax.Array, env_params: EnvParams, hyperparams: ActorHyperparams, first_env: jax.Array | int = 0
    ) -> ActorState:
        numbers = first_env + jnp.arange(num_envs)
        streams = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
        env_state, obs = jax.vmap(env.init, in_axes=(0, None))(jax.vmap(reset_key)(streams), env_params)
        return ActorState(
            env_state=env_state,
            obs=obs,
            env_params=env_params,
            window=_empty_window(obs, n_step),
            episode_return=jnp.zeros(num_envs),
            episode_steps=jnp.zeros(num_envs, jnp.int32),
            streams=streams,
            numbers=numbers,
            hyperparams=hyperparams,
            clock=Clock(jnp.int32(0)),
        )

    def choose(state: ActorState, params: Params) -> Choice:
        time = state.clock.count
        frames = time * config.num_envs

        def one(stream: jax.Array, obs: jax.Array, numbers: ActorHyperparams) -> tuple[jax.Array, jax.Array]:
            network_key, action_key, env_key = keys_at(stream, time, 3)
            q_values = network.apply(params, obs, network_key).q_values
            return rule.choose(action_key, q_values, frames, numbers), env_key

        # A number may be one for all environments, or have one for each.
        axes = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, state.hyperparams)
        actions, env_keys = jax.vmap(one, in_axes=(0, 0, axes))(state.streams, state.obs, state.hyperparams)
        return Choice(actions, env_keys, jnp.mean(rule.epsilon(frames, state.hyperparams)))

    def single(state: ActorState, window: Window) -> SingleStep:
        step, ended = jax.tree.map(lambda x: x[-1], window)
        if keeps_frames(env.spec, config):
            depth = env.spec.obs_shape[-1] // env.spec.stack
            step = step._replace(s_tm1=step.s_tm1[..., -depth:], s_t=step.s_t[..., -depth:])
        return SingleStep(step, ended, state.episode_steps, jnp.full(num_envs, state.clock.count), state.numbers)

    def record(state: ActorState, choice: Choice, time_step: TimeStep) -> tuple[ActorState, Tree, jax.Array | bool, Info]:
        time = state.clock.count
        ended = time_step.terminated | time_step.truncated
        terminal = ended if config.time_limit == "terminal" else time_step.terminated
        step = Transition(
            s_tm1=state.obs,
            a_tm1=choice.actions,
            r_t=time_step.reward,
            discount_t=jnp.where(terminal, 0.0, state.hyperparams.discount),
            s_t=time_step.final_obs,
        )
        window = jax.tree.map(lambda past, new: jnp.concatenate([past, new[None]]), state.window, Window(step, ended))
        episode_return = state.episode_return + time_step.reward
        info = {
            "epsilon": choice.epsilon,
            "episodes": jnp.sum(ended),
            "return_sum": jnp.sum(jnp.where(ended, episode_return, 0.0)),
            "terminated": jnp.sum(time_step.terminated),
            "truncated": jnp.sum(time_step.truncated),
        }
        outcome = single(state, window) if single_steps else join(window)
        state = state.replace(
            obs=time_step.obs,
            window=jax.tree.map(lambda x: x[1:], window),
            episode_return=jnp.where(ended, 0.0, episode_return),
            episode_steps=jnp.where(ended, 0, state.episode_steps + 1),
            clock=Clock(time + 1),
        )
        # True itself for n = 1: then the replay need not read back what it overwrites.
        valid = n_step == 1 or time >= n_step - 1
        return state, outcome, valid, info

    def act(state: ActorState, params: Params) -> tuple[ActorState, Tree, jax.Array | bool, Info]:
        choice = choose(state, params)
        step = jax.vmap(env.step, in_axes=(0, 0, 0, None))
        env_state, time_step = step(choice.env_keys, state.env_state, choice.actions, state.env_params)
        return record(state.replace(env_state=env_state), choice, time_step)

    return Actor(init, choose, record, act)


def _empty_window(obs: jax.Array, n_step: int) -> Window:
    num_envs = len(obs)
    past = (n_step - 1, num_envs)
    steps = Transition(
        s_tm1=jnp.zeros((n_step - 1, *obs.shape), obs.dtype),
        a_tm1=jnp.zeros(past, jnp.int32),
        r_t=jnp.zeros(past),
        discount_t=jnp.zeros(past),
        s_t=jnp.zeros((n_step - 1, *obs.shape), obs.dtype),
    )
    return Window(steps, ended=jnp.zeros(past, bool))
