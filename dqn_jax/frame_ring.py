"""A ring of single steps that keeps each frame of stacked observations once; transitions are put together when they are read.

A frame of 84 x 84 bytes and the rest of a step take 7,083 bytes, where a transition of two stacks of four takes 56,460.

Steps are numbered as they come, and each knows the one before it in its environment: so the ring may belong to one agent, or to
several actors that add their steps as they please.

Not here: which transitions are read (replay), how n steps become a transition (windows).

Shapes: E environments that step together, A environments in all, K frames of a stack, n the n-step length, N transitions,
R steps, X final frames, B batch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from dqn_jax.config import AgentConfig
from dqn_jax.replay import ReplayState, Ring, Valid, pack, part, unpack, write
from dqn_jax.types import Clock, EnvSpec, Sample, Transition, Tree
from dqn_jax.windows import Window, transition_of


class Frames(flax.struct.PyTreeNode):
    """What a ring keeps. The step numbered i is in row i modulo R."""

    pictures: jax.Array
    """[R + X + A, entries] frames, flat and bits packed: the newest of what steps acted on; then final frames of truncated
    episodes, in a ring of their own; then what the newest step of each environment led to."""
    owner: jax.Array
    """[X + A] int32 numbers of the steps that led to these final and newest frames."""
    before: jax.Array
    """[R] int32 number of the step before in the same environment, whatever its episode; `_NONE` where there is none."""
    past: jax.Array
    """[R] uint8 frames of the stack acted on which are older than its newest, and of the same episode."""
    led_to: jax.Array
    """[R] int32 row in `pictures` of the newest frame of what the step led to."""
    action: jax.Array
    reward: jax.Array
    discount: jax.Array
    """[R], as the two before: those of one step."""
    ended: jax.Array
    """[R] bool, whether the step ended an episode."""
    newest: jax.Array
    """[N] int32 number of the last step of each transition."""
    finals: jax.Array
    """[1] int32 final frames ever kept."""
    steps: Clock
    """[1], steps ever added."""
    run: Clock
    """[A], steps of each environment that came without a gap."""
    due: Clock
    """[A], `time` of the step that comes next in each environment if none is missing."""
    who: Clock
    """[A], number of each environment."""


class SharedBy(NamedTuple):
    """Several actors that add their steps to one memory, one after the other, and may be started again."""

    num_envs: int
    """Environments of all; those of an actor have numbers that follow each other."""
    turn: int
    """Steps in each environment that an actor adds before the next one does."""


_NONE = -(2**30)
"""Number of a step that nobody has."""


def make_frame_ring(spec: EnvSpec, config: AgentConfig, capacity: int, num_envs: int, turn: int | None = None) -> Ring:
    """Builds a ring that single steps are added to.

    A transition of n steps can be read once all are there, and as long as its position has no newer one: exactly those that a
    ring of whole transitions would have. Their stacks and n-step returns are the same, to the bit. The frame after a
    termination is not kept, as nothing is learnt of its value: its place has the frame before.

    A transition is read with weight 0 where one of its frames is lost:

    - of episodes cut by something else than the environment's limit, where those are so many that their final frames have no
      room (there is enough for the limit's);
    - of an actor that is much slower than others, shortly before the transition itself would be overwritten;
    - beside a gap in the steps of an actor: where it was started again, or something that it sent was dropped.

    Args:
      spec: the environment's, with stacked observations.
      config: the agent's, of which the length of windows and what is made of them is read.
      capacity: N.
      num_envs: A.
      turn: `SharedBy.turn` where actors share the ring, numbers of environments being taken modulo A; None where all A step
        together, and no step is missing.

    Returns:
      The ring; `add` raises ValueError where E does not divide N.
    """
    n_step, stack = config.n_step, spec.stack
    # Beside the transitions, what the newest of them lead to, and what the oldest one's stack goes back to.
    num_rows = capacity + (n_step - 1 + stack - 1 + (turn or 0)) * num_envs
    num_finals = num_rows // spec.max_episode_steps + num_envs
    num_pictures = num_rows + num_finals + num_envs
    depth = spec.obs_shape[-1] // stack
    like = jax.ShapeDtypeStruct((math.prod(spec.obs_shape) // stack,), spec.obs_dtype)

    def init() -> ReplayState:
        picture = jax.eval_shape(pack, like)
        nothing = jnp.zeros(num_rows, jnp.int32)
        frames = Frames(
            pictures=jnp.zeros((num_pictures, *picture.shape), picture.dtype),
            owner=jnp.full(num_finals + num_envs, _NONE),
            before=nothing,
            past=nothing.astype(jnp.uint8),
            led_to=nothing,
            action=nothing,
            reward=jnp.zeros(num_rows),
            discount=jnp.zeros(num_rows),
            ended=nothing > 0,
            newest=jnp.zeros(capacity, jnp.int32),
            finals=jnp.zeros(1, jnp.int32),
            steps=Clock(jnp.zeros(1, jnp.int32)),
            run=Clock(jnp.zeros(num_envs, jnp.int32)),
            due=Clock(jnp.zeros(num_envs, jnp.int32)),
            who=Clock(jnp.arange(num_envs)),
        )
        return ReplayState(storage=frames, added=Clock(jnp.int32(0)))

    def add(state: ReplayState, transitions: Tree, valid: Valid) -> ReplayState:
        (frame, action, reward, discount, next_frame), ended, age, time, envs = transitions
        size, old = len(ended), state.storage
        if capacity % size:
            raise ValueError(f"capacity is {capacity}, not a multiple of the {size} steps added at once: change either")
        assert isinstance(old, Frames)
        count = old.steps.count[part(state, 1)]
        numbers = count + jnp.arange(size)
        first_row, first_picture = part(state, num_rows) + count % num_rows, part(state, num_pictures) + count % num_rows
        if turn is None:
            # So that lanes of a `vmap` share their counts.
            time, envs = jnp.full(size, count // size), jnp.arange(size)
        first_env = envs[0] % num_envs
        clocks, others = part(state, num_envs) + first_env, part(state, num_finals + num_envs)
        tails = num_finals + first_env + jnp.arange(size)

        run, due, who = (jax.lax.dynamic_slice_in_dim(clock.count, clocks, size) for clock in (old.run, old.due, old.who))
        joins = (time == due) & (envs == who)
        run = 1 + jnp.where(joins, run, 0)
        before = jnp.where(joins, old.owner[others + tails], _NONE)
        leads_here = (before >= count + size - num_rows) & (age > 0)
        previous = part(state, num_rows) + before % num_rows

        cut = ended & (discount > 0)
        slots = (old.finals[part(state, 1)] + jnp.cumsum(cut) - 1) % num_finals
        # Beyond the last row nothing is written.
        written = jnp.where(cut & valid, slots, len(old.pictures))
        led_to = jnp.where(ended & ~cut, numbers % num_rows, num_rows + jnp.where(cut, slots, tails))
        led_on = old.led_to.at[jnp.where(leads_here & valid, previous, len(old.led_to))].set(numbers % num_rows)

        reached = jax.vmap(pack)(next_frame.reshape(size, -1))
        pictures = old.pictures.at[part(state, num_pictures) + num_rows + written].set(reached)
        pictures = write(pictures, reached, part(state, num_pictures) + num_rows + tails[0], valid)
        past = jnp.minimum(age, stack - 1)
        new = {"before": before, "past": past, "action": action, "reward": reward, "discount": discount, "ended": ended}
        complete = valid & jnp.all(run >= n_step)
        frames = old.replace(
            pictures=write(pictures, jax.vmap(pack)(frame.reshape(size, -1)), first_picture, valid),
            owner=write(old.owner.at[others + written].set(numbers), numbers, others + tails[0], valid),
            led_to=write(led_on, led_to, first_row, valid),
            **{
                name: write(getattr(old, name), value.astype(getattr(old, name).dtype), first_row, valid)
                for name, value in new.items()
            },
            newest=write(old.newest, numbers, part(state, capacity) + state.added.count % capacity, complete),
            finals=old.finals.at[part(state, 1)].add(jnp.where(valid, jnp.sum(cut), 0)),
            steps=Clock(old.steps.count.at[part(state, 1)].add(jnp.where(valid, size, 0))),
            run=Clock(write(old.run.count, run, clocks, valid)),
            due=Clock(write(old.due.count, time + 1, clocks, valid)),
            who=Clock(write(old.who.count, envs, clocks, valid)),
        )
        return state.replace(storage=frames, added=Clock(state.added.count + jnp.where(complete, size, 0)))

    def read(state: ReplayState, indices: jax.Array) -> Sample:
        frames = state.storage
        assert isinstance(frames, Frames)
        oldest = frames.steps.count[part(state, 1)] - num_rows

        def row(number: jax.Array) -> jax.Array:
            return part(state, num_rows) + number % num_rows

        def stack_of(number: jax.Array, length: int) -> list[jax.Array]:
            """Numbers of the steps that acted on the last frames up to a step's, an episode's first for those before it."""
            numbers, past = [number], frames.past[row(number)]
            for k in range(length - 1):
                numbers.append(jnp.where(k < past, frames.before[row(numbers[-1])], numbers[-1]))
            return numbers[::-1]

        window = [frames.newest[part(state, capacity) + indices]]
        for _ in range(n_step - 1):
            window.append(frames.before[row(window[-1])])
        numbers = jnp.stack(window[::-1])
        at = row(numbers)
        # In place of observations the steps that acted on them, or led to them: which of them is the window's matter.
        steps = Transition(numbers, frames.action[at], frames.reward[at], frames.discount[at], numbers)
        batch = transition_of(config)(Window(steps, frames.ended[at]))

        acted_on = stack_of(batch.s_tm1, stack)
        led_to = frames.led_to[row(batch.s_t)]
        kept_apart = jnp.maximum(led_to - num_rows, 0)
        of_another = frames.owner[part(state, num_finals + num_envs) + kept_apart] != batch.s_t
        lost = jnp.any(((led_to >= num_rows) & of_another).reshape(len(indices), -1), axis=1)
        lost |= jnp.min(jnp.stack([*window, *acted_on]), axis=0) < oldest
        rows_to = [number % num_rows for number in stack_of(batch.s_t, stack - 1)] + [led_to]
        s_tm1, s_t = (
            joined(frames, part(state, num_pictures) + jnp.stack(rows, axis=-1))
            for rows in ([number % num_rows for number in acted_on], rows_to)
        )
        age = (state.added.count - 1 - indices) % capacity
        return Sample(batch._replace(s_tm1=s_tm1, s_t=s_t), indices, jnp.where(lost, 0.0, 1.0), age)

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
