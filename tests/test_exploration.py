"""Epsilon follows its schedule, and epsilon-greedy draws each action as often as epsilon says."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.config import AgentConfig, InputError
from dqn_jax.exploration import at_random, exploration_numbers, exponential_epsilon, linear_epsilon, make_exploration
from dqn_jax.types import ActorHyperparams

DRAWS = 20_000


def hyperparams(start, end, frames, first=0, **exploration):
    return ActorHyperparams(
        jnp.float32(0.99), jnp.float32(start), jnp.float32(end), jnp.int32(frames), jnp.int32(first), exploration
    )


def schedule(fn, start, end, decay_frames, frames, first=0):
    numbers = hyperparams(start, end, decay_frames, first)
    return np.asarray(jax.jit(jax.vmap(fn, in_axes=(0, None)))(jnp.array(frames), numbers))


def test_linear_schedule():
    # A fall of 0.8 over 1000 frames: 0.2 every 250.
    epsilons = schedule(linear_epsilon, 0.9, 0.1, 1000, [0, 250, 500, 1000, 1001, 2**31 - 1])
    np.testing.assert_allclose(epsilons, [0.9, 0.7, 0.5, 0.1, 0.1, 0.1], rtol=1e-6)


def test_linear_schedule_may_end_at_0():
    np.testing.assert_array_equal(schedule(linear_epsilon, 1.0, 0.0, 8, [0, 6, 8, 9]), [1.0, 0.25, 0.0, 0.0])


def test_exponential_schedule():
    # From 1 to 1/16 over 8 frames: a factor of 1/sqrt(2) every frame, and the end is kept.
    epsilons = schedule(exponential_epsilon, 1.0, 0.0625, 8, range(12))
    np.testing.assert_allclose(epsilons, [2.0 ** (-min(t, 8) / 2) for t in range(12)], rtol=1e-6)


def test_exponential_schedule_starts_at_its_start():
    np.testing.assert_allclose(
        schedule(exponential_epsilon, 0.8, 0.05, 100, [0, 50, 100, 10**6]), [0.8, 0.2, 0.05, 0.05], rtol=1e-6
    )


def test_decay_begins_at_its_first_frame():
    """Frames 100 to 108; before, epsilon is its start. A late first frame is the plain schedule later, for both."""
    epsilons = schedule(linear_epsilon, 0.9, 0.1, 8, [0, 99, 100, 102, 106, 108, 2**31 - 1], first=100)
    np.testing.assert_allclose(epsilons, [0.9, 0.9, 0.9, 0.7, 0.3, 0.1, 0.1], rtol=1e-6)
    epsilons = schedule(exponential_epsilon, 1.0, 0.0625, 8, [0, 100, 102, 104, 108, 200], first=100)
    np.testing.assert_allclose(epsilons, [1, 1, 0.5, 0.25, 0.0625, 0.0625], rtol=1e-6)


@pytest.mark.parametrize("fn", [linear_epsilon, exponential_epsilon])
def test_epsilon_is_a_strong_float32(fn):
    epsilon = jax.jit(fn)(jnp.int32(3), hyperparams(1.0, 0.1, 10))
    assert epsilon.dtype == jnp.float32
    assert not epsilon.weak_type


@jax.jit
def actions_of(q_values, epsilon):
    keys, numbers = jax.random.split(jax.random.key(0), DRAWS), hyperparams(epsilon, epsilon, 1)
    return jax.vmap(make_exploration(AgentConfig()).choose, in_axes=(0, None, None, None))(
        keys, q_values, jnp.int32(0), numbers
    )


def counts_of(q_values, epsilon):
    actions = actions_of(jnp.array(q_values, jnp.float32), jnp.float32(epsilon))
    assert actions.dtype == jnp.int32
    assert actions.min() >= 0
    assert actions.max() < len(q_values)
    return np.bincount(actions, minlength=len(q_values))


def chi_square(counts, probabilities):
    expected = DRAWS * np.array(probabilities)
    return np.sum((counts - expected) ** 2 / expected)


def test_epsilon_0_is_greedy():
    np.testing.assert_array_equal(counts_of([0, 3, 1, 2, -1], 0.0), [0, DRAWS, 0, 0, 0])


def test_epsilon_1_is_uniform():
    # With 4 degrees of freedom a chi-square above 23.5 has a probability of 1e-4.
    assert chi_square(counts_of([0, 3, 1, 2, -1], 1.0), [0.2] * 5) < 23.5


def test_epsilon_a_quarter():
    # Every action has a random share of 0.05, the greedy one 0.75 on top.
    probabilities = [0.05, 0.8, 0.05, 0.05, 0.05]
    counts = counts_of([0, 3, 1, 2, -1], 0.25)
    assert chi_square(counts, probabilities) < 23.5
    # The bound is tight enough to tell a random share that leaves the greedy action out.
    assert chi_square(counts, [0.0625, 0.75, 0.0625, 0.0625, 0.0625]) > 23.5


def test_ties_take_the_first():
    np.testing.assert_array_equal(counts_of([1, 5, 5, 0, 5], 0.0), [0, DRAWS, 0, 0, 0])


@pytest.mark.parametrize("num_actions", [1, 2, 3, 4, 5, 7, 10, 18, 33, 1000])
def test_largest_uniform_is_still_an_action(monkeypatch, num_actions):
    # jax draws a float32 uniform from 23 bits, so 1 - 2^-23 is the largest there is; times A it could round up to A.
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.array([0.0, 1 - 2**-23], jnp.float32))
    action = at_random(jax.random.key(0), num_actions, jnp.float32(1.0), jnp.int32(0))
    assert action == num_actions - 1


def choices(exploration, q_values, *, give_way=False, epsilon=0.0, **numbers):
    """How often each action is chosen, by any rule."""
    rule = make_exploration(AgentConfig(exploration=exploration), give_way=give_way)
    keys = jax.random.split(jax.random.key(1), DRAWS)
    choose = jax.jit(jax.vmap(rule.choose, in_axes=(0, None, None, None)))
    own = {name: jnp.float32(value) for name, value in numbers.items()}
    actions = choose(keys, jnp.float32(q_values), jnp.int32(0), hyperparams(epsilon, epsilon, 1, **own))
    assert actions.dtype == jnp.int32
    return np.bincount(actions, minlength=len(q_values))


def test_boltzmann_draws_in_proportion_to_the_exponential():
    q_values = np.log([1.0, 2, 3, 4])
    assert chi_square(choices("boltzmann", q_values, temperature=1.0), [0.1, 0.2, 0.3, 0.4]) < 21.1
    # At half the temperature the odds are squares.
    assert chi_square(choices("boltzmann:0.5", q_values, temperature=0.5), np.array([1, 4, 9, 16]) / 30) < 21.1
    numbers = exploration_numbers(AgentConfig(exploration="boltzmann:0.5"))
    assert {name: float(x) for name, x in numbers.items()} == {"temperature": 0.5}


def test_greedy_does_not_explore_unless_it_is_mixed_with_chance():
    np.testing.assert_array_equal(choices("greedy", [0, 3, 1], epsilon=0.6), [0, DRAWS, 0])
    assert chi_square(choices("greedy", [0, 3, 1], give_way=True, epsilon=0.6), [0.2, 0.6, 0.2]) < 18.4
    for spec, give_way, epsilon in (("greedy", False, 0.0), ("greedy", True, 0.6), ("epsilon-greedy", False, 0.6)):
        rule = make_exploration(AgentConfig(exploration=spec), give_way=give_way)
        np.testing.assert_allclose(rule.epsilon(jnp.int32(0), hyperparams(0.6, 0.6, 1)), epsilon)


def test_chance_and_the_rule_it_gives_way_to_draw_apart():
    """Boltzmann with epsilon a half: with one key for both, who explores would be decided by what the rule draws."""
    expected = 0.5 * np.array([0.1, 0.2, 0.3, 0.4]) + 0.5 * 0.25
    assert (
        chi_square(choices("boltzmann", np.log([1.0, 2, 3, 4]), give_way=True, epsilon=0.5, temperature=1.0), expected) < 21.1
    )


def test_a_users_rule_sees_frames_and_its_own_numbers(monkeypatch):
    module = types.ModuleType("mine")
    module.rule = lambda key, q_values, frames, hyperparams: frames + hyperparams.exploration["offset"].astype(jnp.int32)
    module.rule.numbers = {"offset": 2.0}
    monkeypatch.setitem(sys.modules, "mine", module)
    config = AgentConfig(exploration="mine:rule:5")
    choose = make_exploration(config).choose
    # 7 frames of this life, and 100 of earlier ones.
    for first, action in ((0, 12), (-100, 112)):
        numbers = hyperparams(0.0, 0.0, 1, first, **exploration_numbers(config))
        assert choose(jax.random.key(0), jnp.zeros(2), jnp.int32(7), numbers) == action
    module.rule = lambda key, q_values, frames, hyperparams: q_values
    with pytest.raises(InputError, match=r"^agent.exploration is 'mine:rule', and it has shape \(2,\): give \(\)$"):
        make_exploration(AgentConfig(exploration="mine:rule")).choose(jax.random.key(0), jnp.zeros(2), jnp.int32(7), numbers)


@pytest.mark.parametrize("spec", ["boltzmann:0", "boltzmann:-1"])
def test_numbers_of_ours_are_above_0(spec):
    with pytest.raises(InputError, match=rf"^agent.exploration is '{spec}': give numbers above 0$"):
        exploration_numbers(AgentConfig(exploration=spec))
