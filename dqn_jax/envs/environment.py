"""The interface of an environment. Not here: where environments come from, batches of them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.lookup import check_like
from dqn_jax.types import EnvSpec, Tree

EnvState: TypeAlias = Tree
EnvParams: TypeAlias = Tree


class TimeStep(NamedTuple):
    """The result of one step of one environment."""

    obs: jax.Array
    """[...] observation to act on next: after an episode's end, the first of the next."""
    final_obs: jax.Array
    """[...] observation this step led to, even at an end."""
    reward: jax.Array
    """[] float32."""
    terminated: jax.Array
    """[] bool, the episode ended by its own rules."""
    truncated: jax.Array
    """[] bool, the time limit cut the episode; never true together with `terminated`."""


class Running(Protocol):
    """E running environments that are stepped on the host. They reset automatically after an episode's end."""

    obs: np.ndarray
    """[E, ...] observations to act on next."""

    def step(self, actions: np.ndarray) -> TimeStep:
        """Steps all of them with actions [E]; the time step has leaves [E, ...]."""

    def pictures(self) -> list[np.ndarray]:
        """Returns pictures [H, W, 3] uint8 of the first one, after its start, each step and each reset since, in order.

        Kept only where the environment was made with the argument render_mode=rgb_array.
        """

    def close(self) -> None:
        """Closes them."""


class Environment(NamedTuple):
    """One environment; it resets automatically after an episode's end.

    One that is stepped on the host has `start`; its `init` gives only an observation's shape, and its `step` raises.
    """

    spec: EnvSpec
    init: Callable[[jax.Array, EnvParams], tuple[EnvState, jax.Array]]
    """(key, params) -> (state, first observation)."""
    step: Callable[[jax.Array, EnvState, jax.Array, EnvParams], tuple[EnvState, TimeStep]]
    """(key, state, action, params) -> (state, time step)."""
    params: EnvParams
    """Default parameters as arrays; they can differ from one environment to the next."""
    start: Callable[[Sequence[int]], Running] | None = None
    """E seeds -> E environments that are stepped on the host; None for one that a program steps."""


def on_host(spec: EnvSpec, start: Callable[[Sequence[int]], Running]) -> Environment:
    """Builds an environment that is stepped on the host, by those that `start` starts, and cannot be traced."""

    def init(key: jax.Array, params: EnvParams) -> tuple[EnvState, jax.Array]:
        return (), jnp.zeros(spec.obs_shape, spec.obs_dtype)

    def step(*_: Any) -> Any:
        raise TypeError(f"{spec.name} is stepped on the host")

    return Environment(spec, init, step, (), start)


def reset_key(stream: jax.Array) -> jax.Array:
    """Returns the key of a random stream's first reset; step t uses `fold_in(stream, t)`, t from 0."""
    return jax.random.fold_in(stream, jnp.uint32(2**32 - 1))


def seeds_of(streams: jax.Array) -> list[int]:
    """Returns seeds for environments that are stepped on the host, one for each random stream [E]."""
    bits = jax.vmap(lambda stream: jax.random.bits(reset_key(stream), dtype=jnp.uint32))(streams)
    # Gymnasium takes no seed above 2^31 from some environments.
    return (np.asarray(bits) >> 1).tolist()


def check_environment(argument: str, name: str, env: Environment) -> None:
    """Traces a reset and a step; raises InputError, naming the part that made them, if their shapes do not match."""
    key = jax.eval_shape(jax.random.key, 0)
    state, obs = jax.eval_shape(env.init, key, env.params)
    after, time_step = jax.eval_shape(env.step, key, state, jax.ShapeDtypeStruct((), jnp.int32), env.params)
    described = jax.ShapeDtypeStruct(env.spec.obs_shape, env.spec.obs_dtype)
    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    check_like(argument, name, {"observation": obs}, {"observation": described})
    check_like(argument, name, {"state": after}, {"state": state})
    shapes = dict.fromkeys(TimeStep._fields, scalar) | {"obs": described, "final_obs": described}
    check_like(argument, name, time_step._asdict(), shapes)
