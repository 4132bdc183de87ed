"""The agent's contracts carry other ways of training: a parameter server and a FedProx client, without touching the core."""

import dataclasses

import jax
import optax
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_close, assert_differs

from dqn_jax.agent import hyperparams_of, make_agent
from dqn_jax.learner import make_learner
from dqn_jax.mapping import stream_key

pytestmark = pytest.mark.long

AGENT = make_agent(ENV, NETWORK, STEADY)
LEARNER = make_learner(NETWORK, STEADY)


def parameter_server(num_workers, num_rounds, delay):
    """Workers act and take gradients at parameters `delay` server updates old; the server applies each push on arrival.

    Returns the server's state and all it was sent.
    """

    @jax.jit
    def work(worker, stale):
        worker, _ = AGENT.act(worker.replace(learner=stale))
        worker, grads, _ = AGENT.grad(worker)
        return worker, grads

    push = jax.jit(lambda server, grads: LEARNER.apply(server, grads)[0])
    start = jax.jit(lambda i: AGENT.warm_up(AGENT.init(stream_key(0, i))))
    workers = [start(i) for i in range(num_workers)]
    server = LEARNER.init(jax.random.key(0), hyperparams_of(STEADY).learner)
    history, pushes = [server] * (delay + 1), []
    for _ in range(num_rounds):
        for i, worker in enumerate(workers):
            workers[i], grads = work(worker, history[0])
            server = push(server, grads)
            history = [*history[1:], server]
            pushes.append(grads)
    return server, pushes


def learn_in_turn(num_workers, num_rounds):
    """The plain agent's own `act` and `learn`, one worker after the other, the learner handed on."""
    step = jax.jit(lambda worker, learner: AGENT.learn(AGENT.act(worker.replace(learner=learner))[0])[0])
    start = jax.jit(lambda i: AGENT.warm_up(AGENT.init(stream_key(0, i))))
    workers = [start(i) for i in range(num_workers)]
    learner = LEARNER.init(jax.random.key(0), hyperparams_of(STEADY).learner)
    for _ in range(num_rounds):
        for i, worker in enumerate(workers):
            workers[i] = step(worker, learner)
            learner = workers[i].learner
    return learner


def test_a_parameter_server_is_act_grad_and_apply():
    server, pushes = parameter_server(num_workers=3, num_rounds=20, delay=0)
    assert int(server.updates.count) == len(pushes) == 60
    assert_close(server, learn_in_turn(num_workers=3, num_rounds=20))


def test_a_delayed_one_is_not_the_plain_learner():
    server, _ = parameter_server(num_workers=3, num_rounds=20, delay=2)
    assert_differs(server, learn_in_turn(num_workers=3, num_rounds=20))


def test_a_worker_at_an_unchanged_server_draws_new_batches():
    worker = jax.jit(lambda: AGENT.warm_up(AGENT.init(stream_key(0))))()
    grad = jax.jit(AGENT.grad)
    worker, first, _ = grad(worker)
    _, second, _ = grad(worker)
    assert_differs(first, second)


def fedprox(mu, anchor):
    """The gradient of mu/2 |w - anchor|^2, added to the loss's own (Li et al. 2020, equation 2)."""
    return lambda grads, params, memory: (jax.tree.map(lambda g, w, a: g + mu * (w - a), grads, params, anchor), memory)


def test_a_fedprox_client_is_a_correction():
    state = jax.jit(lambda key: AGENT.warm_up(AGENT.init(key)))(jax.random.key(1))
    anchor = jax.tree.map(lambda w: w + 1.0, state.learner.params)
    plain, _ = jax.jit(AGENT.step)(state)
    client, _ = jax.jit(lambda state: AGENT.step(state, fedprox(0.1, anchor)))(state)
    # SGD: the correction moves each weight by -learning_rate * mu * (w - anchor) = +learning_rate * mu.
    moved = jax.tree.map(lambda w: w + STEADY.learning_rate * 0.1, plain.learner.params)
    assert_close(client.learner.params, moved)


def drift(mu):
    config = dataclasses.replace(STEADY, updates_per_step=30, learning_rate=0.05)
    agent = make_agent(ENV, NETWORK, config)
    state = jax.jit(lambda key: agent.warm_up(agent.init(key)))(jax.random.key(1))
    anchor = state.learner.params
    state, _ = jax.jit(lambda state: agent.step(state, fedprox(mu, anchor)))(state)
    return float(optax.tree.norm(optax.tree.sub(state.learner.params, anchor)))


def test_fedprox_holds_a_client_near_the_global_model():
    assert drift(mu=5.0) < 0.5 * drift(mu=0.0)
