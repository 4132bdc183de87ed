"""A ring of single steps that keeps each frame of stacked observations once; transitions are put together when they are read.

A frame of 84 x 84 bytes and the rest of a step take 7,074 bytes, where a transition of two stacks of four takes 56,460.

Not here: which transitions are read (replay), how n steps become a transition (windows).

Shapes: E environments, K frames of a stack, n the n-step length, N transitions, M moments (a step of each E), B batch.
"""

import math
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp

from dqn_jax.config import AgentConfig
from dqn_jax.replay import ReplayState, Ring, Valid, pack, unpack, write
from dqn_jax.types import Clock, EnvSpec, Sample, Transition, Tree
from dqn_jax.windows import Window, transition_of


class Frames(flax.struct.PyTreeNode):
    """The steps of a ring. What the moment numbered m has of environment e is in row (m modulo M) E + e."""

    pictures: jax.Array
    """[(M + X + 1) E, entries] frames, flat and bits packed: the newest of what steps acted on; then X E final frames, that
    numbered c of environment e in row (M + c modulo X) E + e; then the E that the newest moment's steps led to."""
    past: jax.Array
    """[M E] uint8 frames of the stack acted on which are older than its newest, and of the same episode."""
    action: jax.Array
    reward: jax.Array
    discount: jax.Array
    """[M E], as the two before: those of one step."""
    ended: jax.Array
    """[M E] bool, whether the step ended an episode."""
    cut: jax.Array
    """[M E] int32 number of the final frame that a truncated step led to; of other steps, that of the next."""
    cuts: jax.Array
    """[E] int32 final frames ever kept."""
    moments: Clock
    """Moments ever added."""


def make_frame_ring(spec: EnvSpec, config: AgentConfig, num_shards: int = 1) -> Ring:
    """Builds a ring of an agent's, or one of its shards', single steps: Windows' newest, [E, ...].

    A transition of n steps can be read once all are there, and as long as its position has no newer one: exactly those that a
    ring of whole transitions would have. Their stacks and n-step returns are the same, to the bit. The frame after a
    termination is not kept, as nothing is learnt of its value: its place has the frame before.

    A truncation's final frame has a slot of its own. There are enough for episodes that are cut by the environment's limit;
    where more are cut by something else, the oldest frames are lost: a transition that needs one is read with weight 0.

    Args:
      spec: the environment's, with stacked observations.
      config: the agent's; N is its replay capacity, of a shard its share, as are its environments E.
      num_shards: devices that the agent is divided over.

    Returns:
      The ring; `add` raises ValueError where E does not divide N.
    """
    num_envs, capacity, n_step = config.num_envs // num_shards, config.replay_capacity // num_shards, config.n_step
    stack, limit = spec.stack, spec.max_episode_steps
    # Beside the transitions, what the newest of them lead to, and what the oldest one's stack goes back to.
    num_moments = capacity // num_envs + (n_step - 1) + (stack - 1)
    num_finals = num_moments // limit + 1
    num_rows = num_moments * num_envs
    every_env = jnp.arange(num_envs)
    depth = spec.obs_shape[-1] // stack
    like = jax.ShapeDtypeStruct((math.prod(spec.obs_shape) // stack,), spec.obs_dtype)

    def newest(obs: jax.Array) -> jax.Array:
        """Takes the newest frames [E, entries] of observations [E, ...]."""
        return jax.vmap(pack)(obs[..., -depth:].reshape(len(obs), -1))

    def init() -> ReplayState:
        picture = jax.eval_shape(pack, like)
        frames = Frames(
            pictures=jnp.zeros((num_rows + (num_finals + 1) * num_envs, *picture.shape), picture.dtype),
            past=jnp.zeros(num_rows, jnp.uint8),
            action=jnp.zeros(num_rows, jnp.int32),
            reward=jnp.zeros(num_rows),
            discount=jnp.zeros(num_rows),
            # So the first step begins an episode.
            ended=jnp.ones(num_rows, bool),
            cut=jnp.zeros(num_rows, jnp.int32),
            cuts=jnp.zeros(num_envs, jnp.int32),
            moments=Clock(jnp.int32(0)),
        )
        return ReplayState(storage=frames, added=Clock(jnp.int32(0)))

    def add(state: ReplayState, transitions: Tree, valid: Valid) -> ReplayState:
        (s_tm1, action, reward, discount, s_t), ended = transitions
        if capacity % num_envs:
            raise ValueError(f"capacity is {capacity}, not a multiple of the {num_envs} steps added at once: change either")
        old: Frames = state.storage
        count = old.moments.count
        before = row(count - 1, every_env)
        past = jnp.where(old.ended[before], 0, jnp.minimum(old.past[before] + 1, stack - 1)).astype(jnp.uint8)
        cut = ended & (discount > 0) & valid
        # Beyond the last row nothing is written.
        final_rows = jnp.where(cut, row_of_final(old.cuts, every_env), len(old.pictures))
        pictures = old.pictures.at[final_rows].set(newest(s_t))
        pictures = write(pictures, newest(s_t), jnp.int32(len(pictures) - num_envs), valid)
        first = count % num_moments * num_envs
        numbers = {"past": past, "action": action, "reward": reward, "discount": discount, "ended": ended, "cut": old.cuts}
        frames = old.replace(
            pictures=write(pictures, newest(s_tm1), first, valid),
            **{name: write(getattr(old, name), new, first, valid) for name, new in numbers.items()},
            cuts=old.cuts + cut,
            moments=Clock(count + jnp.where(valid, 1, 0)),
        )
        complete = jnp.where(valid & (count >= n_step - 1), num_envs, 0)
        return state.replace(storage=frames, added=Clock(state.added.count + complete))

    def read(state: ReplayState, indices: jax.Array) -> Sample:
        frames: Frames = state.storage
        age = (state.added.count - 1 - indices) % capacity
        envs = indices % num_envs
        first = frames.moments.count - n_step - age // num_envs
        moments = first + jnp.arange(n_step)[:, None]
        at = row(moments, envs)
        # In place of observations, the moments acted in: which of them a transition leads from and to is the window's matter.
        steps = Transition(moments, frames.action[at], frames.reward[at], frames.discount[at], moments)
        batch = transition_of(config)(Window(steps, frames.ended[at]))
        s_tm1 = joined(frames, rows_back(frames, batch.s_tm1, envs, stack))
        rows, lost = rows_led_to(frames, batch.s_t, envs.reshape(-1, *(1,) * (batch.s_t.ndim - 1)))
        weights = 1.0 - jnp.any(lost.reshape(len(indices), -1), axis=1)
        return Sample(batch._replace(s_tm1=s_tm1, s_t=joined(frames, rows)), indices, weights, age)

    def row(moment: jax.Array, env: jax.Array) -> jax.Array:
        return moment % num_moments * num_envs + env

    def row_of_final(number: jax.Array, env: jax.Array) -> jax.Array:
        return num_rows + number % num_finals * num_envs + env

    def rows_back(frames: Frames, moment: jax.Array, env: jax.Array, length: int) -> jax.Array:
        """Rows [..., length] of frames up to a moment [...], oldest first, an episode's first standing for those before it."""
        steps = jnp.minimum(jnp.arange(length)[::-1], frames.past[row(moment, env)][..., None])
        return row(moment[..., None] - steps, env[..., None])

    def rows_led_to(frames: Frames, moment: jax.Array, env: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Rows [..., K] of the stacks that steps led to, and whether one of them is lost [...]."""
        here = row(moment, env)
        ended, number = frames.ended[here], frames.cut[here]
        cut = ended & (frames.discount[here] > 0)
        is_newest = moment + 1 == frames.moments.count
        following = jnp.where(is_newest, num_rows + num_finals * num_envs + env, row(moment + 1, env))
        last = jnp.where(cut, row_of_final(number, env), jnp.where(ended, here, following))
        rows = jnp.concatenate([rows_back(frames, moment, env, stack - 1), last[..., None]], axis=-1)
        return rows, cut & (frames.cuts[env] - number > num_finals)

    def joined(frames: Frames, rows: jax.Array) -> jax.Array:
        """Joins the frames in rows [..., K] to observations."""
        restored = _each(lambda row: unpack(frames.pictures[row], like), rows.reshape(-1))
        # Entry by entry, each with its K values, or the K times `depth` of its last axis.
        entries = jnp.swapaxes(restored.reshape(-1, stack, like.size // depth, depth), 1, 2)
        return entries.reshape(*rows.shape[:-1], *spec.obs_shape)

    return Ring(capacity, init, add, read)


def _each(function: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """Maps a function over rows: on a CPU one by one, whose compiler else works out a row anew for each entry of a frame."""
    return jax.lax.map(function, rows) if jax.default_backend() == "cpu" else jax.vmap(function)(rows)
