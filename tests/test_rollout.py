"""A rollout's returns are those of the definition over random ends and limits, and every step is drawn once an epoch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import refusal
from laws.common import assert_bitwise
from test_q_lambda import ENV, KEY, NETWORK, ONLINE
from test_td import lambda_return_slowly

from dqn_jax.actor import make_actor
from dqn_jax.agent import example_of, hyperparams_of, make_agent
from dqn_jax.config import AgentConfig
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment, MergeConfig
from dqn_jax.losses import make_loss
from dqn_jax.replay import make_ring
from dqn_jax.rollout import make_rollout
from dqn_jax.types import Transition
from dqn_jax.windows import Window

NUM_ENVS, ACTS, BATCH, EPOCHS = 4, 15, 12, 3
FRAMES = NUM_ENVS * ACTS
SIZES = {
    "num_envs": NUM_ENVS,
    "acts_per_step": ACTS,
    "batch_size": BATCH,
    "updates_per_step": EPOCHS * FRAMES // BATCH,
    "learning_starts": 0,
    "discount": 0.5,
    "epsilon_end": 1.0,
}


def config_of(return_lambda=0.75, **changes):
    return AgentConfig(**SIZES, memory="rollout", return_lambda=return_lambda, **changes)


def value(obs):
    return jnp.max(NETWORK.apply(ONLINE, obs, None).q_values)


@functools.cache
def gathered(time_limit="bootstrap", skip=0):
    """The steps [T, E, ...] of the rollout after `skip` others."""
    actor = make_actor(ENV, NETWORK, config_of(time_limit=time_limit))

    @jax.jit
    def act():
        state = actor.init(KEY, ENV.params, hyperparams_of(config_of()).actor)
        steps = jax.lax.scan(lambda state, _: actor.act(state, ONLINE)[:2], state, length=(skip + 1) * ACTS)[1]
        return jax.tree.map(lambda x: x[skip * ACTS :], steps)

    return jax.device_get(act())


@functools.cache
def programs(config):
    memory = make_rollout(make_ring(Window(example_of(ENV, config), jnp.bool_(False)), FRAMES), config)

    @jax.jit
    def fill(state, steps, key):
        state = jax.lax.scan(lambda state, step: (memory.add(state, step), None), state, steps)[0]
        return memory.prepare(state, value, key)

    @jax.jit
    def draw(state):
        def one(state, _):
            sample = memory.sample(KEY, state)
            return memory.update(state, sample.indices, sample.weights), sample

        return jax.lax.scan(one, state, length=config.updates_per_step)

    return memory, fill, draw


def drawn(config, steps, key=KEY, state=None):
    """(state, samples [updates, B, ...]) after a rollout's steps are added."""
    memory, fill, draw = programs(config)
    state = memory.init(hyperparams_of(config).replay) if state is None else state
    return jax.device_get(draw(fill(state, steps, key)))


def by_step(samples):
    """What was drawn in each epoch, in the order of the steps: (transitions [K, T, E, ...])."""
    indices = samples.indices.reshape(EPOCHS, FRAMES)
    order = np.argsort(indices, axis=1)
    np.testing.assert_array_equal(np.take_along_axis(indices, order, axis=1), np.tile(np.arange(FRAMES), (EPOCHS, 1)))

    def put(x):
        x = x.reshape(EPOCHS, FRAMES, *x.shape[2:])
        return np.stack([epoch[places] for epoch, places in zip(x, order, strict=True)]).reshape(
            EPOCHS, ACTS, NUM_ENVS, *x.shape[2:]
        )

    return jax.tree.map(put, samples.transitions)


@pytest.mark.parametrize("return_lambda", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_returns_are_those_of_the_definition(return_lambda, time_limit):
    steps = gathered(time_limit)
    _, samples = drawn(config_of(return_lambda), steps)
    items = by_step(samples)
    values = np.asarray(jax.vmap(jax.vmap(value))(steps.transition.s_t))
    kinds = set()
    for time, env in np.ndindex(ACTS, NUM_ENVS):
        ends = np.flatnonzero(steps.ended[time:, env])
        stop = time + (ends[0] if len(ends) else ACTS - 1 - time)
        part = slice(time, stop + 1)
        numbers = (steps.transition.r_t[part, env], steps.transition.discount_t[part, env], values[part, env])
        # Multiples of powers of two: exact in any order.
        assert items.r_t[0, time, env] == lambda_return_slowly(*numbers, return_lambda)
        kinds.add("horizon" if not len(ends) else "end" if steps.transition.discount_t[stop, env] == 0 else "limit")
    assert kinds == ({"horizon", "end", "limit"} if time_limit == "bootstrap" else {"horizon", "end"})
    # The rest of an item is the step itself, and there is nothing to bootstrap from.
    for epoch in range(EPOCHS):
        for name in ("s_tm1", "a_tm1", "s_t"):
            np.testing.assert_array_equal(getattr(items, name)[epoch], getattr(steps.transition, name))
        np.testing.assert_array_equal(items.r_t[epoch], items.r_t[0])
    assert not items.discount_t.any()


def test_by_hand():
    """Two environments of three steps: a termination in the second step of one, a limit in the second of the other."""
    config = AgentConfig(
        memory="rollout",
        return_lambda=0.5,
        num_envs=2,
        acts_per_step=3,
        batch_size=6,
        updates_per_step=1,
        learning_starts=0,
    )
    memory = make_rollout(make_ring(Window(example_of(ENV, config), jnp.bool_(False)), 6), config)
    transition = Transition(
        s_tm1=jnp.zeros((3, 2, 3)),
        a_tm1=jnp.zeros((3, 2), jnp.int32),
        r_t=jnp.array([[1.0, 1], [2, 2], [4, 4]]),
        discount_t=jnp.array([[0.5, 0.5], [0, 0.5], [0.5, 0.5]]),
        s_t=jnp.array([[8.0, 8], [16, 16], [32, 32]])[..., None] * jnp.array([1.0, 0, 0]),
    )
    like = jax.tree.map(jnp.asarray, gathered())._replace(
        transition=transition,
        ended=jnp.array([[False, False], [True, True], [False, False]]),
        age=jnp.zeros((3, 2), jnp.int32),
        time=jnp.zeros((3, 2), jnp.int32),
        env=jnp.zeros((3, 2), jnp.int32),
    )
    state = memory.init(hyperparams_of(config).replay)
    for time in range(3):
        state = memory.add(state, jax.tree.map(lambda x, t=time: x[t], like))
    state = memory.prepare(state, lambda obs: obs[0], KEY)
    # Last: 4 + 0.5 * 32 = 20. Terminated: 2; before it 1 + 0.5 * (0.5 * 8 + 0.5 * 2) = 3.5.
    # At a limit: 2 + 0.5 * 16 = 10; before it 1 + 0.5 * (0.5 * 8 + 0.5 * 10) = 5.5.
    sample = memory.sample(KEY, state)
    assert sample.transitions.r_t[jnp.argsort(sample.indices)].tolist() == [3.5, 5.5, 2, 10, 20, 20]
    assert sample.weights.tolist() == [1] * 6


def test_every_epoch_has_an_order_of_its_own():
    config = config_of()
    state, samples = drawn(config, gathered())
    epochs = samples.indices.reshape(EPOCHS, FRAMES)
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS
    # Steps beside each other in time are not beside each other in a batch.
    assert np.abs(np.mean(np.diff(epochs) == 1)) < 0.1
    assert not np.array_equal(drawn(config, gathered(), jax.random.key(1))[1].indices, samples.indices)
    # The next rollout takes the place of this one, from its first batch on.
    _, after = drawn(config, gathered(skip=1), jax.random.key(1), jax.tree.map(jnp.asarray, state))
    _, fresh = drawn(config, gathered(skip=1), jax.random.key(1))
    assert_bitwise(after, fresh)
    assert not np.array_equal(by_step(after).r_t, by_step(samples).r_t)


@functools.cache
def agent_of(config):
    agent = make_agent(ENV, NETWORK, config)
    return agent, jax.jit(agent.step)


def test_an_agent_learns_from_what_it_just_gathered():
    """Plain descent on the squared difference of lambda returns by the first parameters: worked out by hand in numpy."""
    config = config_of(optimizer="sgd", learning_rate=0.01)
    agent, step = agent_of(config)
    begun = agent.init(KEY)
    state, info = step(begun)
    assert int(state.learner.updates.count) == config.updates_per_step
    before = np.asarray(begun.learner.params["head"], np.float64)
    ready, _ = jax.jit(agent.gather)(begun)
    head, losses = before.copy(), []
    for _ in range(config.updates_per_step):
        sample = agent.memory.sample(KEY, ready.replay)
        ready = ready.replace(replay=agent.memory.update(ready.replay, sample.indices, sample.weights))
        s, a, g = (np.asarray(x) for x in (sample.transitions.s_tm1, sample.transitions.a_tm1, sample.transitions.r_t))
        error = g - np.einsum("bo,bo->b", head[a], s)
        losses.append(np.mean(error**2))
        np.add.at(head, a, 0.01 * 2 * error[:, None] * s / BATCH)
    np.testing.assert_allclose(state.learner.params["head"], head, rtol=1e-5)
    np.testing.assert_allclose(info["loss"], np.mean(losses), rtol=1e-5)
    assert not np.allclose(head, before)
    # A target network is of no account.
    other, _ = step(
        begun.replace(learner=begun.learner.replace(target_params=jax.tree.map(jnp.zeros_like, begun.learner.params)))
    )
    assert_bitwise(other.learner.params, state.learner.params)
    # The next step's rollout is the next in time.
    again, _ = step(state)
    assert int(again.actor.clock.count) == 2 * ACTS
    assert np.any(np.asarray(again.replay.rollout.returns) != np.asarray(state.replay.rollout.returns))


def test_a_batch_that_is_not_learnt_from_is_drawn_again():
    memory, fill, _ = programs(config_of())
    state = fill(memory.init(hyperparams_of(config_of()).replay), gathered(), KEY)
    first = memory.sample(KEY, state)
    refused, taken = (
        memory.update(state, first.indices, first.weights, valid) for valid in (jnp.array(False), jnp.array(True))
    )
    assert_bitwise(memory.sample(KEY, refused), first)
    assert not np.array_equal(memory.sample(KEY, taken).indices, first.indices)


def test_a_step_that_is_not_taken_changes_nothing():
    agent, _ = agent_of(config_of())
    state = jax.jit(agent.step)(agent.init(KEY))[0]
    kept, _ = jax.jit(agent.step)(state, active=jnp.array(False))
    assert_bitwise(kept, state)


@pytest.mark.parametrize("loss", ["huber:1", "squared"])
def test_values_after_a_step_are_not_computed(loss):
    config = config_of(loss=loss)
    _, samples = drawn(config, gathered())
    items = jax.tree.map(lambda x: jnp.asarray(x[0]), samples.transitions)
    poison = items._replace(s_t=jnp.full_like(items.s_t, jnp.nan))
    run = make_loss(NETWORK, config)
    outputs = [run(ONLINE, ONLINE, batch, KEY, hyperparams_of(config).loss) for batch in (items, poison)]
    assert_bitwise(*outputs)


CLIENTS = {"heterogeneity": "none", "unseen_envs": 0}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: config_of(n_step=3),
            "agent.n_step is 3 and agent.return_lambda 0.75, and agent.memory 'rollout' learns lambda returns over all its "
            "steps: make the first 1, the second a number from 0 to 1",
        ),
        (lambda: config_of(None), "agent.n_step is 1 and agent.return_lambda None, and agent.memory 'rollout' learns "),
        (
            lambda: AgentConfig(**SIZES | {"learning_starts": 100}, memory="rollout", return_lambda=1.0),
            "agent.learning_starts is 100, and agent.memory 'rollout' gathers nothing before: make it 0",
        ),
        (
            lambda: AgentConfig(**SIZES | {"batch_size": 7}, memory="rollout", return_lambda=1.0),
            "agent.batch_size is 7 with agent.updates_per_step 15, and a rollout has 60 frames (agent.num_envs times "
            "agent.acts_per_step): make the first a divisor of those, the second a multiple of 8",
        ),
        (
            lambda: AgentConfig(**SIZES | {"updates_per_step": 7}, memory="rollout", return_lambda=1.0),
            "agent.batch_size is 12 with agent.updates_per_step 7, and a rollout has 60 frames ",
        ),
        (lambda: AgentConfig(learning_starts=0), "agent.learning_starts is 0: give a whole number from 1 to "),
        (
            lambda: FederatedExperiment(
                agent=config_of(), federated=FederatedConfig(**CLIENTS, merge=MergeConfig(replay="clear"))
            ),
            "federated.merge.replay is 'clear' and agent.memory 'rollout', which keeps nothing from step to step: leave it out",
        ),
        (
            lambda: ServerExperiment(agent=config_of(), server=ServerConfig(push="delta", replay="shared")),
            "server.replay is 'shared' and agent.memory 'rollout': a rollout is learnt from by the worker that gathered it, ",
        ),
        (
            lambda: ServerExperiment(agent=config_of()),
            "agent.updates_per_step is 15 and server.push 'gradient': a gradient is of one update, so push 'delta'",
        ),
        (
            lambda: ActorLearnerExperiment(agent=config_of(), actors=ActorLearnerConfig(num_actors=4)),
            "actors.num_actors is 4, and a block is a rollout of 15 frames for a share of agent.updates_per_step 15 with "
            "agent.batch_size 12: make the updates a multiple of the actors, and the batch a divisor of the frames",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence(make, said):
    assert refusal(make).startswith(said)


def test_an_actor_sends_its_whole_rollout():
    config = ActorLearnerExperiment(
        agent=dataclasses.replace(config_of(), batch_size=15, updates_per_step=8), actors=ActorLearnerConfig(num_actors=2)
    )
    assert (config.acts_per_block, config.frames_per_block, config.updates_per_block) == (ACTS, 2 * ACTS, 4)
    learner = config.learners_agent
    assert (learner.num_envs, learner.updates_per_step, learner.batch_size) == (2, 4, 15)
    together = dataclasses.replace(config, actors=ActorLearnerConfig(num_actors=2, mode="synchronous"))
    assert (together.frames_per_block, together.updates_per_block) == (FRAMES, 8)
    assert together.learners_agent == together.agent
