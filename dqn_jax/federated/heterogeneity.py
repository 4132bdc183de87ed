"""How clients' environments differ: environment parameters drawn from named distributions. Not here: gymnax.

A distribution gives fields of the parameters ranges. A client draws u ~ U(0, 1) for each field and gets low + u (high - low);
held-out environments draw u from the same range, or from beyond its upper end. Fields derived from others are recomputed.
Or it lists values: client i gets the i-th of each field, from the start again after the last, and nothing is held out.

Shapes: N environments.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.config import InputError, Record, require
from dqn_jax.envs import Environment, EnvParams, parameter, with_parameters
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.lookup import lookup, record_of
from dqn_jax.mapping import ENVIRONMENTS, stream_key

_RANGE = "range:"
VIEWS = "views"
BEYOND = (1.0, 1.5)
"""Range of u for environments beyond the training range."""


class Distribution(NamedTuple):
    """Ranges of environment parameters, or lists of them."""

    env: str
    """The environment whose parameters these are; "" for every one that has them."""
    ranges: Mapping[str, tuple[float, float]] = {}
    """Lowest and highest value of each field while training."""
    derive: Callable[[EnvParams], EnvParams] = lambda params: params
    """Recomputes what depends on those fields."""
    listed: Mapping[str, Sequence[float]] = {}
    """Values of fields that are not drawn, as many of each."""

    @property
    def fields(self) -> list[str]:
        """The fields that it sets."""
        return [*self.ranges, *self.listed]


class ClientEnvs(NamedTuple):
    """Environment parameters of one federation, each with leaves [N, ...]."""

    seen: EnvParams
    """One for each client: what it trains in."""
    inside: EnvParams
    """Held out, from the training range."""
    beyond: EnvParams
    """Held out, from beyond it."""


def _cartpole(params: EnvParams) -> EnvParams:
    return params.replace(polemass_length=params.masspole * params.length, total_mass=params.masscart + params.masspole)


def _acrobot(params: EnvParams) -> EnvParams:
    return params.replace(link_com_pos_1=params.link_length_1 / 2, link_com_pos_2=params.link_length_2 / 2)


DISTRIBUTIONS = {
    # Half-poles as in Jin et al. (2022), section 5.
    "cartpole-length": Distribution("CartPole-v1", {"length": (0.1, 0.9)}, _cartpole),
    "cartpole-gravity": Distribution("CartPole-v1", {"gravity": (4.9, 14.7)}, _cartpole),
    "cartpole-force": Distribution("CartPole-v1", {"force_mag": (5.0, 15.0)}, _cartpole),
    "acrobot-links": Distribution("Acrobot-v1", {"link_length_1": (0.6, 1.4), "link_length_2": (0.6, 1.4)}, _acrobot),
    "mountaincar-force": Distribution("MountainCar-v0", {"force": (0.0008, 0.0014)}),
    "mountaincar-gravity": Distribution("MountainCar-v0", {"gravity": (0.0018, 0.0028)}),
    # One as it is, one mirrored, one dimmed, one whose actions stick: parameters of the wrapper view.
    VIEWS: Distribution("", listed={"mirrored": (0, 1, 0, 0), "dimmed": (0, 0, 0.6, 0), "sticky": (0, 0, 0, 0.25)}),
}


def _range(name: str) -> Distribution:
    """Parses "range:FIELD:LOW:HIGH" into a distribution of one field of any environment."""
    field, *ends = name.removeprefix(_RANGE).split(":")
    try:
        low, high = map(float, ends)
    except ValueError:
        low, high = math.inf, -math.inf
    require(
        field.isidentifier() and -math.inf < low <= high < math.inf,
        f"federated.heterogeneity is {name!r}: give a field, its lowest and its highest value, as range:length:0.1:0.9",
    )
    return Distribution("", {field: (low, high)})


def find_distribution(name: str) -> Distribution | None:
    """Finds the distribution of a name, None for "none"; a user's own is one, or a function that makes one of its numbers.

    Raises:
      InputError: for a name without meaning.
    """
    if name == "none":
        return None
    argument = "federated.heterogeneity"
    if name.startswith(_RANGE):
        return _range(name)
    found = lookup(
        argument, name, {"none": None, **DISTRIBUTIONS}, lambda found: callable(found) or isinstance(found, Distribution)
    )
    return record_of(argument, name, found, Distribution)


def distribution_of(name: str, env_name: str) -> Distribution | None:
    """Finds the distribution of a name for one environment.

    Raises:
      InputError: for a name without meaning, or a distribution of another environment.
    """
    distribution = find_distribution(name)
    if name.startswith(_RANGE):
        # Dependent fields are recomputed for any range.
        return distribution._replace(env=env_name, derive=derive_of(env_name)) if distribution else None
    if distribution is not None and distribution.env not in ("", env_name):
        fitting = ["none", *(other for other, value in DISTRIBUTIONS.items() if value.env == env_name)]
        raise InputError(
            f"federated.heterogeneity is {name!r}, which is for {distribution.env}, and env is {env_name!r}: choose "
            f"{' or '.join(fitting)}"
        )
    return distribution


def derive_of(env_name: str) -> Callable[[EnvParams], EnvParams]:
    """Finds what recomputes the dependent parameters of an environment, once others have changed."""
    known = {distribution.env: distribution.derive for distribution in DISTRIBUTIONS.values()}
    return known.get(env_name, lambda params: params)


def draw_envs(
    env: Environment, name: str, env_seed: jax.Array | int, num_clients: int, num_unseen: int, level: float = 1.0
) -> ClientEnvs:
    """Draws the environments of one federation.

    Environment i depends on `env_seed` and i alone, so a larger federation contains the smaller one.

    Args:
      env: the environment.
      name: a name in DISTRIBUTIONS, "none", or a user's module:attribute.
      env_seed: [] seed of the draw.
      num_clients: environments to train in.
      num_unseen: held-out environments inside, and as many beyond, the training range.
      level: width of the training range around its middle; 1 is all of it.

    Returns:
      ClientEnvs.

    Raises:
      InputError: for a distribution that is unknown or of another environment.
    """
    distribution = distribution_of(name, env.spec.name)
    unknown = [field for field in (distribution.fields if distribution else ()) if parameter(env.params, field) is None]
    hint = "add --wrappers view" if name == VIEWS else "correct it"
    require(
        not unknown,
        f"federated.heterogeneity is {name!r}, and {env.spec.name} has no parameter {', '.join(unknown)}: {hint}",
    )
    listed = distribution.listed if distribution else {}
    require(
        not (listed and num_unseen),
        f"federated.unseen_envs is {num_unseen}, and federated.heterogeneity {name!r} lists environments: make it 0",
    )

    def one(key: jax.Array, number: jax.Array, low: float, high: float) -> EnvParams:
        if distribution is None:
            return env.params
        draws = jax.random.uniform(key, (len(distribution.ranges),), minval=low, maxval=high)
        # Beyond the range is measured from the edge of the range that is trained in.
        draws = 0.5 + level * (draws - 0.5)
        fields = {
            field: jnp.float32(least + u * (most - least))
            for (field, (least, most)), u in zip(distribution.ranges.items(), draws, strict=True)
        }
        fields |= {field: jnp.asarray(values, jnp.float32)[number % len(values)] for field, values in listed.items()}
        return distribution.derive(with_parameters(env.params, **fields))

    def many(purpose: int, count: int, low: float, high: float) -> EnvParams:
        key = jax.random.fold_in(stream_key(env_seed, ENVIRONMENTS), purpose)
        numbers = jnp.arange(count)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
        return jax.vmap(one, in_axes=(0, 0, None, None))(keys, numbers, low, high)

    return ClientEnvs(many(0, num_clients, 0.0, 1.0), many(1, num_unseen, 0.0, 1.0), many(2, num_unseen, *BEYOND))


def varied_fields(params: EnvParams, name: str) -> list[Record]:
    """Lists the fields that a distribution varies, for each of N environments with leaves [N, ...], as numbers."""
    distribution = find_distribution(name)
    count = len(jax.tree.leaves(params)[0])
    if distribution is None:
        return [{}] * count
    values = {field: np.asarray(parameter(params, field), np.float64) for field in distribution.fields}
    return [{field: float(f"{column[i]:.6g}") for field, column in values.items()} for i in range(count)]


def draw_all(env: Environment, config: FederatedConfig, num_seeds: int) -> ClientEnvs:
    """Draws the environments of every repetition, leaves [S, N, ...]: repetition i has seed `env_seed + i`."""

    def draw(env_seed: jax.Array) -> ClientEnvs:
        clients, unseen = config.num_clients, config.unseen_envs
        return draw_envs(env, config.heterogeneity, env_seed, clients, unseen, config.heterogeneity_level)

    return jax.jit(jax.vmap(draw))(config.env_seed + jnp.arange(num_seeds, dtype=jnp.uint32))
