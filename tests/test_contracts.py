"""The agent's contracts carry other ways of training: a parameter server and a FedProx client, without touching the core."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_close

from dqn_jax.actor import make_actor
from dqn_jax.agent import hyperparams_of, make_agent
from dqn_jax.config import AgentConfig
from dqn_jax.learner import make_learner
from dqn_jax.replay import make_uniform_replay
from dqn_jax.types import Transition

CONFIG = dataclasses.replace(STEADY, n_step=1)
NUMBERS = hyperparams_of(CONFIG)
EXAMPLE = Transition(jnp.zeros(4), jnp.int32(0), jnp.float32(0), jnp.float32(0), jnp.zeros(4))


def parameter_server(num_workers, num_rounds, delay):
    """Workers act and take gradients at parameters `delay` server updates old; the server applies each push on arrival."""
    actor, learner = make_actor(ENV, NETWORK, CONFIG), make_learner(NETWORK, CONFIG)
    replay = make_uniform_replay(EXAMPLE, CONFIG.replay_capacity, CONFIG.batch_size)

    @jax.jit
    def work(actor_state, memory, stale, key):
        actor_state, transitions, valid, _ = actor.act(actor_state, stale.params)
        memory = replay.add(memory, transitions, valid)
        sample = replay.sample(key, memory)
        grads, _, _ = learner.grad(stale, sample, key)
        return actor_state, memory, grads, sample

    push = jax.jit(lambda server, grads: learner.apply(server, grads)[0])
    server = learner.init(jax.random.key(0), NUMBERS.learner)
    history = [server] * (delay + 1)
    workers = [(actor.init(jax.random.key(i), ENV.params, NUMBERS.actor), replay.init()) for i in range(num_workers)]
    samples = []
    for step in range(num_rounds):
        for i, (actor_state, memory) in enumerate(workers):
            key = jax.random.fold_in(jax.random.key(i), step)
            actor_state, memory, grads, sample = work(actor_state, memory, history[0], key)
            workers[i] = (actor_state, memory)
            server = push(server, grads)
            history = [*history[1:], server]
            samples.append(sample)
    return server, samples


def learn_in_turn(samples):
    """The plain learner on the same batches, one after the other."""
    learner = make_learner(NETWORK, CONFIG)
    step = jax.jit(lambda state, sample: learner.step(state, sample, jax.random.key(0))[0])
    state = learner.init(jax.random.key(0), NUMBERS.learner)
    for sample in samples:
        state = step(state, sample)
    return state


def test_a_parameter_server_is_act_grad_and_apply():
    server, samples = parameter_server(num_workers=3, num_rounds=20, delay=0)
    assert int(server.updates.count) == 60
    assert_close(server, learn_in_turn(samples))


def test_a_delayed_one_is_not_the_plain_learner():
    server, samples = parameter_server(num_workers=3, num_rounds=20, delay=2)
    with pytest.raises(AssertionError):
        assert_close(server, learn_in_turn(samples))


def fedprox(mu, anchor):
    """The gradient of mu/2 |w - anchor|^2, added to the loss's own (Li et al. 2020, equation 2)."""
    return lambda grads, params: jax.tree.map(lambda g, w, a: g + mu * (w - a), grads, params, anchor)


def test_a_fedprox_client_is_a_correction():
    agent = make_agent(ENV, NETWORK, STEADY)
    state = jax.jit(lambda key: agent.warm_up(agent.init(key)))(jax.random.key(1))
    anchor = jax.tree.map(lambda w: w + 1.0, state.learner.params)
    plain, _ = jax.jit(agent.step)(state)
    client, _ = jax.jit(lambda state: agent.step(state, fedprox(0.1, anchor)))(state)
    # SGD: the correction moves each weight by -learning_rate * mu * (w - anchor) = +learning_rate * mu.
    moved = jax.tree.map(lambda w: w + STEADY.learning_rate * 0.1, plain.learner.params)
    assert_close(client.learner.params, moved)


def drift(mu):
    config: AgentConfig = dataclasses.replace(STEADY, updates_per_step=30, learning_rate=0.05)
    agent = make_agent(ENV, NETWORK, config)
    state = jax.jit(lambda key: agent.warm_up(agent.init(key)))(jax.random.key(1))
    anchor = state.learner.params
    state, _ = jax.jit(lambda state: agent.step(state, fedprox(mu, anchor)))(state)
    return float(optax.tree.norm(optax.tree.sub(state.learner.params, anchor)))


def test_fedprox_holds_a_client_near_the_global_model():
    assert drift(mu=5.0) < 0.5 * drift(mu=0.0)
