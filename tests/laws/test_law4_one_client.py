"""Law 4: a federation of one client that keeps everything is the plain agent, for every K; and what other merges do to it."""

import dataclasses

import jax
import numpy as np
import pytest
from laws.common import ENV, FREE, NETWORK, STEADY, arrays, assert_close, assert_differs
from laws.federation import SEED, client, config_of, small, train

from dqn_jax.agent import make_agent, repeat
from dqn_jax.mapping import stream_key

# Forty plain steps; eight of Adam, whose last bits grow faster. Exploration decays, so that its clock matters.
PLAIN = small(dataclasses.replace(STEADY, epsilon_end=1.0))
ADAM = small(dataclasses.replace(FREE, learning_rate=1e-2, epsilon_end=0.9, target_period=3))


def alone(agent_config, steps):
    """The plain agent with client 0's stream."""
    agent = make_agent(ENV, NETWORK, agent_config)

    start = jax.jit(lambda seed: agent.warm_up(agent.init(stream_key(seed))))
    return jax.jit(lambda state: repeat(agent.step, steps)(state)[0])(start(SEED))


@pytest.fixture(scope="module")
def plain():
    return alone(PLAIN, 40)


@pytest.fixture(scope="module")
def adam():
    return alone(ADAM, 8)


def one(**options):
    return config_of(num_clients=1, **options)


@pytest.mark.parametrize(
    ("local_steps", "rounds"),
    [pytest.param(1, 40, marks=pytest.mark.long), (8, 5), pytest.param(40, 1, marks=pytest.mark.long)],
)
def test_for_every_number_of_local_steps(plain, local_steps, rounds):
    state, _ = train(PLAIN, one(local_steps=local_steps), rounds)
    assert_close(client(state, 0), plain)
    assert_close(state.server.params, plain.learner.params)


@pytest.mark.long
# An average over one client is the client's own; its own initial parameters are the common ones; a participant drawn from one
# is that one; a client that has time for a thousand episodes takes all of its steps.
@pytest.mark.parametrize(
    "options",
    [
        {"merge": {"moments": "average", "target": "average", "initial": "per_client"}},
        {"participation": "fixed", "num_clients_per_round": 1, "local_episodes": 1000},
        {"algorithm": "scaffold", "transforms": ("top-k:1",)},
    ],
)
def test_choices_that_are_nothing_for_one_client(adam, options):
    state, _ = train(ADAM, one(local_steps=4, **options), 2)
    own_clocks = "participation" in options
    assert_close(client(state, 0, shared_clocks=not own_clocks), adam)


@pytest.mark.long
def test_with_prioritised_replay():
    config = dataclasses.replace(PLAIN, memory="prioritised", n_step=1)
    state, _ = train(config, one(local_steps=4), 2)
    assert_close(client(state, 0), alone(config, 8))


def differs(state, expected, part):
    assert_differs(part(client(state, 0)), part(expected))


@pytest.mark.long
def test_a_target_copied_from_the_server_is_another(adam):
    state, _ = train(ADAM, one(local_steps=4, merge={"target": "global"}), 2)
    differs(state, adam, lambda agent: agent.learner.target_params)


@pytest.mark.long
def test_reset_moments_are_those_of_the_last_round_alone(adam):
    state, _ = train(ADAM, one(local_steps=4, merge={"moments": "reset"}), 2)
    differs(state, adam, lambda agent: agent.learner.params)
    counts = [values for name, values in arrays(client(state, 0).learner.opt_state).items() if "count" in name]
    assert [int(count) for count in counts] == [4] * len(counts)
    # All else follows its course: the same number of frames.
    assert_close(client(state, 0).actor.clock, adam.actor.clock)
    assert_close(client(state, 0).replay.added, adam.replay.added)


@pytest.mark.long
def test_a_cleared_replay_is_filled_before_the_first_update():
    config = one(local_steps=4, merge={"replay": "clear"})
    state, infos = train(ADAM, config, 2)
    refill = ADAM.warm_up_frames
    assert infos["frames"].tolist() == [refill + 8] * 2
    assert infos["updates"].tolist() == [4] * 2
    # One frame of the n-step window is written a step later.
    assert int(client(state, 0).replay.added.count) == refill + 8
    assert int(client(state, 0).actor.clock.count) * ADAM.num_envs == 2 * (refill + 8)


@pytest.mark.long
def test_epsilon_restarts_with_the_round():
    decaying = dataclasses.replace(ADAM, epsilon_end=0.0, epsilon_decay_frames=40)
    restarted, infos = train(decaying, one(local_steps=4, merge={"epsilon": "restart"}), 3)
    # The fourth step of a round has six frames behind it, whatever came before the round.
    np.testing.assert_allclose(infos["epsilon_sum"], [1 - 6 / 40] * 3, rtol=1e-6)
    # The streams go on: only exploration begins anew.
    assert int(client(restarted, 0).actor.clock.count) * decaying.num_envs == decaying.warm_up_frames + 3 * 8


@pytest.mark.long
def test_a_client_on_its_own_is_the_plain_agent_and_the_server_its_copy(adam):
    state, _ = train(ADAM, one(local_steps=4, merge={"parameters": "keep"}), 2)
    assert_close(client(state, 0), adam)
    assert_close(state.server.params, adam.learner.params)


def test_a_server_that_goes_half_way_breaks_the_law(plain):
    state, _ = train(PLAIN, one(local_steps=8, server_learning_rate=0.5), 5)
    differs(state, plain, lambda agent: agent.learner.params)
