"""Acting in environments that a compiled program steps, or that are stepped on the host between programs.

Not here: what an actor receives and sends (`actors`), learning.

Shapes: E environments of an actor, T environment steps.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.actor import Actor, ActorState
from dqn_jax.envs import Environment, Running, seeds_of
from dqn_jax.types import Info, Params, Tree


class Moment(NamedTuple):
    """The result of one step of all environments; of T steps, leaves [T, ...]."""

    transitions: Tree
    """Transitions or SingleSteps, leaves [E, ...]."""
    valid: jax.Array
    """[] bool."""
    info: Info
    """Info of `Actor.act`."""


class Acting(NamedTuple):
    """An actor in its environments."""

    begin: Callable[[ActorState], Tree]
    """An actor's first state -> state with its environments reset."""
    play: Callable[[Tree, Params, int], tuple[Tree, Moment]]
    """(state, params, T) -> (state, moments, leaves [T, ...])."""


def make_acting(env: Environment, actor: Actor) -> Acting:
    """Chooses how an actor's environment is stepped; not to be traced."""
    return _in_a_program(actor) if env.start is None else _on_the_host(env.start, actor)


def _in_a_program(actor: Actor) -> Acting:
    def step(state: ActorState, params: Params) -> tuple[ActorState, Moment]:
        state, transitions, valid, info = actor.act(state, params)
        return state, Moment(transitions, jnp.asarray(valid), info)

    def play(state: ActorState, params: Params, num_steps: int) -> tuple[ActorState, Moment]:
        return jax.lax.scan(lambda state, _: step(state, params), state, length=num_steps)

    return Acting(lambda state: state, jax.jit(play, static_argnums=2))


def _on_the_host(start: Callable[[list[int]], Running], actor: Actor) -> Acting:
    """Runs two programs a step, before and after the environments' step. Its state is (actor's state, environments)."""

    @jax.jit
    def record(state: ActorState, *rest: Tree) -> tuple[ActorState, Moment]:
        state, transitions, valid, info = actor.record(state, *rest)
        return state, Moment(transitions, jnp.asarray(valid), info)

    choose = jax.jit(actor.choose)

    def begin(state: ActorState) -> tuple[ActorState, Running]:
        running = start(seeds_of(state.streams))
        return state.replace(obs=jnp.asarray(running.obs)), running

    def play(state: tuple[ActorState, Running], params: Params, num_steps: int) -> tuple[Tree, Moment]:
        actor_state, running = state
        moments = []
        for _ in range(num_steps):
            choice = choose(actor_state, params)
            time_step = running.step(np.asarray(choice.actions))
            actor_state, moment = record(actor_state, choice, time_step)
            moments.append(jax.device_get(moment))
        return (actor_state, running), jax.tree.map(lambda *parts: np.stack(parts), *moments)

    return Acting(begin, play)
