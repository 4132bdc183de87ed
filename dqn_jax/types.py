"""Record types shared by several modules. Not here: what is done with them.

Shapes: B batch, S seeds; `...` are the dimensions of one observation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax
import jax
import numpy as np

Tree: TypeAlias = Any
"""A tree of arrays, as jax understands it."""

Params: TypeAlias = Tree
"""Network parameters: a tree of arrays, with the top-level groups `trunk` and `head`."""

Info: TypeAlias = dict[str, Any]
"""Metrics of a function's work by name: arrays, on device or host."""

Value: TypeAlias = Callable[[jax.Array], jax.Array]
"""Observation [...] -> its greedy value [] by the current parameters."""

Correction: TypeAlias = Callable[[Params, Params, Tree], tuple[Params, Tree]]
"""A change to gradients before clipping: `(grads, params, memory) -> (grads, memory)`, the learner keeping the memory."""


class Clock(flax.struct.PyTreeNode):
    """A counter that all lanes of a `vmap` share.

    Kept apart from the per-lane leaves because a batched predicate turns every `cond` into a `select` of both branches.
    """

    count: jax.Array
    """[] int32."""


class EnvSpec(NamedTuple):
    """All that a network and a replay need to know of an environment."""

    name: str
    obs_shape: tuple[int, ...]
    obs_dtype: np.dtype
    """Of observations, which networks cast to float32, bytes from 0 to 1: the replay keeps them as they are, bool at eight
    entries to a byte."""
    num_actions: int
    max_episode_steps: int
    stack: int = 1
    """Frames that an observation joins along its last axis, oldest first, an episode's first standing for those before it.

    1 also where that is not known, as of environments that are stepped on the host."""


class Transition(NamedTuple):
    """What the agent learns from: one step, or the sum of n; with `agent.return_lambda`, n steps one by one.

    Of n steps one by one, those after the episode's end have reward 0, discount 1 and its last observation, so that the
    return of each is the value there.
    """

    s_tm1: jax.Array
    """[...] observation acted on."""
    a_tm1: jax.Array
    """[] int32 action."""
    r_t: jax.Array
    """[] float32 (n-step, discounted) reward; or [n] of each step."""
    discount_t: jax.Array
    """[] float32 gamma^n, or 0 where the episode terminated; or [n] of each step, gamma or 0."""
    s_t: jax.Array
    """[...] observation to bootstrap from: the episode's own, never the next episode's; or [n, ...] after each step."""


class Sample(NamedTuple):
    """A batch drawn from a replay."""

    transitions: Transition
    """Leaves [B, ...]."""
    indices: jax.Array
    """[B] int32 positions in the ring that the transitions came from."""
    weights: jax.Array
    """[B] float32 importance weights, multiplied into the loss before its mean."""
    age: jax.Array
    """[B] int32 transitions added since this one."""


class ActorHyperparams(NamedTuple):
    """Numbers of the acting half that a sweep may vary. All [] float32, except where it says otherwise."""

    discount: jax.Array
    epsilon_start: jax.Array
    """[], or [E] for an epsilon of each environment."""
    epsilon_end: jax.Array
    """As epsilon_start."""
    epsilon_decay_frames: jax.Array
    """[] int32."""
    epsilon_first_frame: jax.Array
    """[] int32 frame of the agent at which the decay begins."""
    exploration: dict[str, jax.Array]
    """Numbers of the exploration rule, by name."""


class LearnerHyperparams(NamedTuple):
    """Numbers of the learning half that a sweep may vary. All [] float32."""

    learning_rate: jax.Array
    target_rate: jax.Array
    max_grad_norm: jax.Array
    """Read only where the config clips gradients; else infinite."""


class ReplayHyperparams(NamedTuple):
    """Numbers of a memory that a sweep may vary. All [] float32; a uniform one carries none of them."""

    priority_exponent: jax.Array
    """alpha."""
    importance_exponent: jax.Array
    """beta."""
    return_lambda: jax.Array
    """Of a rollout's returns."""


class Hyperparams(NamedTuple):
    """Numbers of all parts; `Agent.init` takes them, so a sweep is a `vmap` over this record."""

    actor: ActorHyperparams
    learner: LearnerHyperparams
    replay: ReplayHyperparams
    loss: dict[str, jax.Array]
    """Numbers of the loss, by name, [] float32."""


class Driver(NamedTuple):
    """One way of training: what `runner.run` needs to know of it.

    `state` is whatever the driver carries. One call of `step` is one compiled chunk.
    """

    init: Callable[[], Tree]
    """() -> state, after the warm-up."""
    step: Callable[[Tree], tuple[Tree, Info]]
    """state (donated) -> (state, info with leaves [S]), among them the `frames` and `updates` of the chunk, int."""
    params: Callable[[Tree], Params]
    """state -> parameters for the evaluator: online ones, leaves [S, ...], or several such by name."""
    check: Callable[[Tree], None]
    """Raises TrainingError if the state is inconsistent, as with unequal replicas."""
    problem: Callable[[Info], str | None]
    """info -> what is wrong with the chunk, naming the learners and a remedy; None where nothing is."""
    unit: str
    """What budgets and periods count: "frames" of one seed, or "rounds"."""
    initial: int
    """Units done by `init`."""
    per_step: int
    """Units of a call of `step`."""
    initial_frames: int
    """Frames of one seed taken by `init`."""
    devices: tuple[str, ...]
    """Names of the devices it runs on."""
    replay_bytes: int = 0
    """Bytes of the replays of all seeds, clients and workers, on this machine and those of other processes of the run."""
    refill: Callable[[Tree], Tree] | None = None
    """state -> state whose replays are filled again, from empty ones, by acting with its parameters; `initial_frames` of each
    seed. None where that cannot be done."""
    lockstep: bool = True
    """Whether every seed has made the same number of updates; else metrics list them. Read where the unit is frames."""
    close: Callable[[], None] = lambda: None
    """Ends what `init` or `step` started outside the state: workers on threads or in other processes."""
