"""Builds the environment and network of a config, and tries the parts that are a user's own.

Not here: checks of shapes, made where parts are traced; agents, which each way of training divides as it needs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.actor import ActorState, make_actor
from dqn_jax.agent import hyperparams_of, keys_of
from dqn_jax.config import AgentConfig, Experiment, NetworkConfig, require
from dqn_jax.envs import Environment, env_of
from dqn_jax.learner import make_learner
from dqn_jax.lookup import is_users
from dqn_jax.mapping import stream_key
from dqn_jax.networks import Network, make_network
from dqn_jax.types import Sample, Transition


def build(config: Experiment, on_host: bool = False, trial: bool = True) -> tuple[Environment, Network]:
    """Builds what every way of training begins with.

    Args:
      config: names them.
      on_host: whether the caller can also step an environment on the host.
      trial: whether to try a user's own parts; workers skip it, the main process has done it.

    Raises:
      InputError: for an environment or part that cannot be used.
    """
    env = env_of(config, on_host)
    network = make_network(config.network, env.spec)
    if trial:
        try_users_parts(env, network, config.agent, config.network)
    return env, network


def try_users_parts(env: Environment, network: Network, agent: AgentConfig, networks: NetworkConfig) -> None:
    """Collects a batch and makes one update, if any part of the agent is a user's own; nothing is kept.

    Args:
      env: the environment; nothing is tried in one that is stepped on the host.
      network: the Q-network.
      agent: the agent's config.
      networks: the network's.

    Raises:
      InputError: for values that are not finite, priorities below 0, or actions that there are not, naming the part.
    """
    names = {f"agent.{name}": getattr(agent, name) for name in ("loss", "optimizer", "exploration")}
    names |= {f"network.{name}": getattr(networks, name) for name in ("trunk", "head")}
    users = {argument: spec for argument, spec in names.items() if is_users(spec)}
    if not users or env.start is not None:
        return
    found = {name: np.asarray(x) for name, x in jax.jit(lambda: _one_update(env, network, agent))().items()}
    actions, lowest = found.pop("actions"), found.pop("lowest priority")
    wrong = [f"{name} that are not finite" for name, finite in found.items() if not finite]
    if lowest < 0:
        wrong.append(f"a priority of {lowest:g}, below 0")
    if not 0 <= actions.min() <= actions.max() < env.spec.num_actions:
        wrong = [f"actions from {actions.min()} to {actions.max()}"]
    parts = " and ".join(f"{argument} is {spec!r}" for argument, spec in users.items())
    require(not wrong, f"{parts}, and a first update on {agent.batch_size} transitions gives {' and '.join(wrong)}: correct it")


def _one_update(env: Environment, network: Network, config: AgentConfig) -> dict[str, jax.Array]:
    """Makes one update: {what: whether all of it is finite}, the actions and the lowest priority."""
    network_key, actor_key, learner_key = keys_of(stream_key(0))
    hyperparams = hyperparams_of(config)
    # An actor of a plain replay: it gives whole transitions.
    acting = dataclasses.replace(
        config,
        memory="uniform",
        return_lambda=config.window_lambda,
        learning_starts=config.batch_size,
        replay_capacity=config.num_envs * config.batch_size,
    )
    actor = make_actor(env._replace(spec=env.spec._replace(stack=1)), network, acting)
    learner = make_learner(network, config)
    actor_state = actor.init(actor_key, env.params, hyperparams.actor)
    state = learner.init(network_key, hyperparams.learner, hyperparams.loss)

    def act(actor_state: ActorState, _: None) -> tuple[ActorState, Transition]:
        return actor.act(actor_state, state.params)[:2]

    # The first n - 1 steps of an actor give no transitions.
    moments = -(-config.batch_size // config.num_envs) + config.n_step - 1
    _, transitions = jax.lax.scan(act, actor_state, length=moments)
    batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[-config.batch_size :], transitions)
    ones = jnp.ones(config.batch_size)
    grads, priority, info = learner.grad(state, Sample(batch, indices=ones, weights=ones, age=ones), learner_key)
    after, _ = learner.apply(state, grads)
    values = {
        "initial parameters": state.params,
        "losses": info["loss"],
        "priorities": priority,
        "gradients": grads,
        "parameters": after.params,
    }
    finite = {name: jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])) for name, tree in values.items()}
    return finite | {"actions": batch.a_tm1, "lowest priority": jnp.min(priority)}
