"""A walk whose episodes can be worked out by hand: as the rules of a pure environment, and as one of Gymnasium's."""

from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.envs import Functions

KEY = jax.random.key(0)
GOAL, LIMIT = 3, 5


class Params(NamedTuple):
    goal: jax.Array


def walk(**changes):
    """From 0 one to the right for action 1; a reward of 10 times the place, and an end at the goal.

    The second number of an observation is 0.5 after a reset and 1 after a step.
    """

    def reset(key, params):
        return jnp.int32(0), jnp.array([0.0, 0.5])

    def step(key, place, action, params):
        place = place + action
        return place, jnp.stack([place, 1.0]).astype(jnp.float32), 10.0 * place, place >= params.goal

    fields = {"reset": reset, "step": step, "num_actions": 2, "params": Params(GOAL), "max_episode_steps": LIMIT}
    return Functions(**(fields | changes))


class HostWalk(gymnasium.Env):
    """The same, stepped on the host."""

    observation_space = gymnasium.spaces.Box(0.0, 10.0, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.array([0.0, 0.5], np.float32), {}

    def step(self, action):
        self.place += int(action)
        return np.array([self.place, 1.0], np.float32), 10.0 * self.place, self.place >= GOAL, False, {}


def play(env, actions, params=None):
    """(first observation, the time steps that actions give, leaves [T, ...])."""
    params = env.params if params is None else params
    state, obs = env.init(KEY, params)
    step = jax.jit(env.step)
    steps = []
    for t, action in enumerate(actions):
        state, time_step = step(jax.random.fold_in(KEY, t), state, jnp.int32(action), params)
        steps.append(time_step)
    return obs, jax.tree.map(lambda *x: np.stack(x), *steps)
