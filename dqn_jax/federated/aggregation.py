"""How a round's updates are combined: weights of clients, and aggregators. Not here: what the server does with it.

Shapes: C updates of a cohort, absent clients among them with weight 0.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from dqn_jax.config import require
from dqn_jax.lookup import Found, check_like, function_of, is_users, lookup, record_of, strong
from dqn_jax.types import Params, Tree


class Report(NamedTuple):
    """The numbers a client sends with its update. Leaves []."""

    frames: jax.Array
    """int32 frames of the round."""
    updates: jax.Array
    """int32 local updates of the round (FedNova's tau)."""
    episodes: jax.Array
    """int32 episodes that ended in the round."""
    return_sum: jax.Array
    """float32 sum of their returns."""
    loss: jax.Array
    """float32 mean loss of the round's updates."""


class Combine(Protocol):
    """`Aggregator.combine`."""

    def __call__(self, state: Tree, deltas: Params, weights: jax.Array, axis_name: str | None = None) -> tuple[Params, Tree]:
        """Combines deltas [C, ...] by weights [C]: (one delta, the next state), both the same on every device of the axis.

        Weights are not negative; a client with weight 0 must not count, whatever its delta holds. Where all are 0, neither
        result is used.
        """


class Aggregator(NamedTuple):
    """A way to combine deltas into one."""

    combine: Combine
    leaves_out_non_finite: bool = False
    """Whether a client whose update is not finite may be given weight 0. Else such a client ends the run."""
    init: Callable[[Params], Tree] = lambda params: ()
    """shared parameters -> state before the first round, which the server keeps."""


def stateless(mean: Callable[..., Params], leaves_out_non_finite: bool = False) -> Aggregator:
    """Wraps a function of (deltas, weights, axis_name) as an aggregator without state."""

    def combine(state: Tree, deltas: Params, weights: jax.Array, axis_name: str | None = None) -> tuple[Params, Tree]:
        return mean(deltas, weights, axis_name), state

    return Aggregator(combine, leaves_out_non_finite)


def mean_of(deltas: Params, weights: jax.Array, axis_name: str | None = None) -> Params:
    """Computes the weighted mean over axis 0 of leaves [C, ...]; 0 if all weights are 0 (McMahan et al. 2017, FedAvg)."""
    total = _sum(jnp.sum(weights), axis_name)

    def mean(x: jax.Array) -> jax.Array:
        shape = weights.shape + (1,) * (x.ndim - 1)
        # Not 0 * x, which a NaN would survive.
        weighted = jnp.where(weights.reshape(shape) > 0, weights.reshape(shape) * x, 0.0)
        return _sum(jnp.sum(weighted, axis=0), axis_name) / jnp.where(total > 0, total, 1.0)

    return jax.tree.map(mean, deltas)


def median_of(deltas: Params, weights: jax.Array, axis_name: str | None = None) -> Params:
    """Computes the median of each coordinate over clients with a weight above 0; 0 without any (Yin et al. 2018)."""
    deltas, weights = gather((deltas, weights), axis_name)
    present = weights > 0
    count = jnp.sum(present)

    def median(x: jax.Array) -> jax.Array:
        ordered = jnp.sort(jnp.where(present.reshape(present.shape + (1,) * (x.ndim - 1)), x, jnp.inf), axis=0)
        # Each halved before they are added: their sum may be above the largest float32.
        middle = ordered[jnp.maximum(count - 1, 0) // 2] / 2 + ordered[count // 2] / 2
        return jnp.where(count > 0, middle, 0.0)

    return jax.tree.map(median, deltas)


def gather(tree: Params, axis_name: str | None) -> Params:
    """Gathers the rows of all devices: leaves [C, ...] as [D * C, ...]. For aggregators that are not sums."""
    if axis_name is None:
        return tree
    return jax.lax.all_gather(tree, axis_name, tiled=True)


def trimmed(share: float = 0.1) -> Aggregator:
    """Builds the unweighted mean of each coordinate without its smallest and largest (Yin et al. 2018, definition 2).

    Args:
      share: of the clients that take part, cut at each end, rounded down.

    Raises:
      InputError: for a share that leaves no client.
    """
    require(0 <= share < 0.5, f"federated.aggregator is 'trimmed:{share:g}': give a share from 0 and below 0.5")

    def without_ends(deltas: Params, weights: jax.Array, axis_name: str | None) -> Params:
        deltas, weights = gather((deltas, weights), axis_name)
        present = weights > 0
        count = jnp.sum(present)
        cut = jnp.floor(share * count).astype(jnp.int32)
        rank = jnp.arange(len(weights))
        kept = (rank >= cut) & (rank < count - cut)

        def mean(x: jax.Array) -> jax.Array:
            shape = weights.shape + (1,) * (x.ndim - 1)
            ordered = jnp.sort(jnp.where(present.reshape(shape), x, jnp.inf), axis=0)
            total = jnp.sum(jnp.where(kept.reshape(shape), ordered, 0.0), axis=0)
            return total / jnp.maximum(count - 2 * cut, 1)

        return jax.tree.map(mean, deltas)

    return stateless(without_ends, True)


def centred_clip(radius: float) -> Aggregator:
    """Builds an aggregator: the last aggregate v, plus the mean of the clients' differences from it, clipped to the radius.

    Source: Karimireddy, He & Jaggi (2021), Learning from history for Byzantine robust optimization, algorithm 2, with one
    iteration a round: v <- v + mean_i (delta_i - v) min(1, radius / |delta_i - v|). Before the first round v is 0.

    Args:
      radius: L2 norm over all parameters.

    Raises:
      InputError: for a radius that is not above 0.
    """
    require(radius > 0, f"federated.aggregator is 'centred-clip:{radius:g}': give a radius above 0")

    def combine(state: Params, deltas: Params, weights: jax.Array, axis_name: str | None = None) -> tuple[Params, Params]:
        def cut(delta: Params) -> Params:
            distance = jax.tree.map(jnp.subtract, delta, state)
            share = jnp.minimum(1.0, radius / optax.tree.norm(distance))
            return jax.tree.map(lambda x: share * x, distance)

        delta = jax.tree.map(jnp.add, state, mean_of(jax.vmap(cut)(deltas), weights, axis_name))
        return delta, delta

    return Aggregator(combine, True, init=lambda params: jax.tree.map(jnp.zeros_like, params))


AGGREGATORS = {
    "mean": stateless(mean_of, True),
    "median": stateless(median_of, True),
    "trimmed": trimmed,
    "centred-clip": centred_clip,
}

WEIGHTINGS: dict[str, Callable[[Report], jax.Array]] = {
    "uniform": lambda report: jnp.float32(1),
    "samples": lambda report: report.frames.astype(jnp.float32),
    "episodes": lambda report: report.episodes.astype(jnp.float32),
}
"""Weight of one client, from what it reports."""


def make_aggregator(spec: str) -> Aggregator:
    """Builds the aggregator of a config; a user's own may be an Aggregator, or a function of (deltas, weights, numbers ...).

    Raises:
      InputError: for a name without meaning, or numbers that do not fit.
    """
    argument = "federated.aggregator"
    found = lookup(argument, spec, AGGREGATORS, lambda found: callable(found) or isinstance(found, Aggregator))
    if not is_users(spec):
        return record_of(argument, spec, found, Aggregator)
    own = found.part if isinstance(found.part, Aggregator) else from_function(function_of(argument, spec, found, 2))
    guarded = function_of(argument, spec, Found(own.combine, ()), 4)
    start = function_of(argument, spec, Found(own.init, ()), 1)

    def combine(state: Tree, deltas: Params, weights: jax.Array, axis_name: str | None = None) -> tuple[Params, Tree]:
        made = guarded(state, deltas, weights, axis_name)
        require(
            isinstance(made, tuple) and len(made) == 2,
            f"{argument} is {spec!r}, whose combine returns a {type(made).__name__}: return a delta and a state",
        )
        check_like(argument, spec, made[0], jax.tree.map(lambda x: x[0], deltas))
        check_like(argument, spec, {"state": made[1]}, {"state": state})
        forms = {(jax.tree.structure(tree), *map(jnp.result_type, jax.tree.leaves(tree))) for tree in (made[1], state)}
        require(len(forms) == 1, f"{argument} is {spec!r}, and its state changes its form or types: return one like init's")
        return made

    return own._replace(combine=combine, init=lambda params: jax.tree.map(strong, start(params)))


def from_function(function: Callable[[Params, jax.Array], Params]) -> Aggregator:
    """Wraps a function of (deltas [C, ...], weights [C]), which gets the clients of all devices, as an aggregator."""
    return stateless(lambda deltas, weights, axis_name: function(*gather((deltas, weights), axis_name)))


def make_weighting(spec: str) -> Callable[[Report], jax.Array]:
    """Builds the weighting of a config; a user's own maps a Report, and its numbers, to a weight that is not negative.

    Raises:
      InputError: for a name without meaning.
    """
    return function_of("federated.weighting", spec, lookup("federated.weighting", spec, WEIGHTINGS), 1)


def _sum(x: jax.Array, axis_name: str | None) -> jax.Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)
