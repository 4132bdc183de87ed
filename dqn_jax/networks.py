"""Q-networks on ONE observation (callers `vmap`): a trunk of features and a head of action values, chosen separately.

Not here: losses, exploration.

Shapes: A actions, F features, H height, W width, C channels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from dqn_jax import heads, trunks
from dqn_jax.config import NetworkConfig, require
from dqn_jax.lookup import blamed_on, check_kind, function_of, is_users, lookup
from dqn_jax.types import EnvSpec, Params, Tree


class Outputs(Protocol):
    """The output of a network for one observation: action values, and whatever else its loss needs."""

    @property
    def q_values(self) -> jax.Array:
        """[A] float32, all that acting and evaluation use."""


class QValues(NamedTuple):
    """The outputs of a network that has action values alone."""

    q_values: jax.Array
    """[A] float32."""


class NetworkApply(Protocol):
    """A network, as a function."""

    def __call__(self, params: Params, obs: jax.Array, key: jax.Array | None, carry: Tree = None) -> Outputs:
        """Computes the outputs for one observation.

        Args:
          params: parameters.
          obs: [...] one observation.
          key: noise is drawn from it, if the network has any; None, as in greedy evaluation, leaves it out.
          carry: reserved for the state of a recurrent network; always None today.
        """


class Network(NamedTuple):
    """A Q-network as pure functions."""

    init: Callable[[jax.Array], Params]
    """key -> parameters, with the top-level groups `trunk` and `head`."""
    apply: NetworkApply


def make_network(config: NetworkConfig, spec: EnvSpec) -> Network:
    """Builds the Q-network of a config for one environment.

    Args:
      config: trunk, head and widths.
      spec: the environment's shapes.

    Returns:
      The network. Noise in a flax module is drawn from its rng "noise", which it has if a key is given.

    Raises:
      InputError: for a trunk or head that does not exist, fails, or does not fit; for convolutions over observations that are
        not [H, W, C], or whose H or W is below `LEAST_SIDES`.
    """
    obs_shape, num_actions = spec.obs_shape, spec.num_actions
    trunk_name = _trunk_name(config, obs_shape)
    trunk, head = _part("trunk", trunk_name, TRUNKS, config), _part("head", config.head, HEADS, config, num_actions)
    module = _QNetwork(trunk=trunk, head=head)

    def init(key: jax.Array) -> Params:
        # Both groups are there, even of a part without parameters.
        return {"trunk": {}, "head": {}} | module.init(key, jnp.zeros(obs_shape))["params"]

    def apply(params: Params, obs: jax.Array, key: jax.Array | None, carry: Tree = None) -> Outputs:
        del carry
        noise = {} if key is None else {"noise": key}
        outputs: Any = module.apply({"params": params}, _scaled(obs), rngs=noise)
        return QValues(outputs) if isinstance(outputs, jax.Array) else outputs

    _check(config, trunk, init, apply, obs_shape, num_actions)
    return Network(init, apply)


def _trunk_name(config: NetworkConfig, obs_shape: tuple[int, ...]) -> str:
    """Finds the trunk that `auto` stands for; raises InputError where the one that is named is not for such observations."""
    side = min(obs_shape[:2]) if len(obs_shape) == 3 else 0
    fitting = "nature" if side >= LEAST_SIDES["nature"] else "conv" if side >= LEAST_SIDES["conv"] else "mlp"
    least = LEAST_SIDES.get(config.trunk, 0)
    large = f" with H and W of at least {least}" if fitting == "conv" else ""
    require(
        side >= least,
        f"network.trunk is {config.trunk!r}, and observations have shape {obs_shape}, not [H, W, C]{large}: use {fitting!r}",
    )
    return fitting if config.trunk == "auto" else config.trunk


def _scaled(obs: jax.Array) -> jax.Array:
    """Makes an observation float32; bytes, which are an image's, become numbers in [0, 1]."""
    return obs.astype(jnp.float32) / 255 if obs.dtype == jnp.uint8 else obs.astype(jnp.float32)


def _part(field: str, name: str, named: Mapping[str, Callable[..., nn.Module]], *args: Any) -> nn.Module:
    argument = f"network.{field}"
    made = function_of(argument, name, lookup(argument, name, named), len(args))(*args)
    check_kind(argument, name, made, nn.Module, "a flax module")
    return made


def _check(
    config: NetworkConfig,
    trunk: nn.Module,
    init: Callable[[jax.Array], Params],
    apply: NetworkApply,
    obs_shape: tuple[int, ...],
    num_actions: int,
) -> None:
    """Traces a network whose trunk or head is a user's own; raises InputError if it fails or gives no [A] action values."""
    users = {f"network.{field}": getattr(config, field) for field in ("trunk", "head") if is_users(getattr(config, field))}
    if not users:
        return
    key = jax.eval_shape(jax.random.key, 0)
    # The trunk alone first: what fails after that is the head's, if the head is the user's.
    with blamed_on("network.trunk", config.trunk):
        jax.eval_shape(lambda key: trunk.init(key, jnp.zeros(obs_shape)), key)
    argument, name = [*users.items()][-1]
    with blamed_on(argument, name):
        params = jax.eval_shape(init, key)
        for noise in (key, None):
            outputs = jax.eval_shape(lambda params, noise: apply(params, jnp.zeros(obs_shape), noise), params, noise)
    shape = getattr(getattr(outputs, "q_values", None), "shape", None)
    require(
        shape == (num_actions,),
        f"{argument} is {name!r}, whose q_values have shape {shape}: give one of each action, ({num_actions},)",
    )


class _QNetwork(nn.Module):
    trunk: nn.Module
    head: nn.Module

    def __call__(self, obs: jax.Array) -> Any:
        return self.head(self.trunk(obs))


TRUNKS: dict[str, Callable[..., nn.Module]] = {
    # Named so that a misspelt "auto" is recognised; it has become one of the others before it is looked up.
    "auto": lambda config: _of(config, None),
    "mlp": lambda config: _of(config, None),
    "conv": lambda config: _of(config, config.channels),
    "nature": lambda config: trunks.Nature(config.hidden_sizes, config.channels, config.layer_norm, _dense(config)),
    "impala": lambda config: trunks.Impala(config.hidden_sizes, config.channels, config.layer_norm, _dense(config)),
}
"""A user's own maps a NetworkConfig, and the numbers of its name, to a flax module: observation [...] -> features [F]."""

LEAST_SIDES = {"conv": 3, "impala": 3, "nature": 36}
"""Least height and width of the images that a trunk is for."""

HEADS: dict[str, Callable[..., nn.Module]] = {
    "linear": lambda config, num_actions: _dense(config)(num_actions),
    "dueling": lambda config, num_actions: heads.DuelingHead(num_actions, _dense(config)),
    "categorical": lambda config, num_actions, low, high, atoms=51.0: _categorical(config, num_actions, low, high, atoms),
    "dueling-categorical": lambda config, num_actions, low, high, atoms=51.0: _categorical(
        config, num_actions, low, high, atoms, dueling=True
    ),
    "quantile": lambda config, num_actions, number=51.0: heads.QuantileHead(
        num_actions, _count("network.head", config.head, number), _dense(config)
    ),
    "implicit-quantile": lambda config, num_actions, number=32.0: heads.ImplicitQuantileHead(
        num_actions, _count("network.head", config.head, number), dense=_dense(config)
    ),
}
"""A user's own maps a NetworkConfig, A, and its numbers, to a flax module: features [F] -> values [A] or `Outputs`."""


def _of(config: NetworkConfig, channels: int | None) -> nn.Module:
    return trunks.Trunk(config.hidden_sizes, channels, config.layer_norm, _dense(config))


def _dense(config: NetworkConfig) -> heads.Dense:
    return heads.NoisyDense if config.noisy else nn.Dense


def _categorical(
    config: NetworkConfig, num_actions: int, low: float, high: float, atoms: float, dueling: bool = False
) -> nn.Module:
    number = _count("network.head", config.head, atoms)
    require(low < high and number > 1, f"network.head is {config.head!r}: give a range LOW:HIGH and at least 2 atoms")
    return heads.CategoricalHead(num_actions, low, high, number, dueling, _dense(config))


def _count(argument: str, spec: str, number: float) -> int:
    require(number >= 1 and number == int(number), f"{argument} is {spec!r}: give a whole number of atoms or quantiles")
    return int(number)
