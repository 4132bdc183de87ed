"""What acting stores is what happened: n-step transitions agree with a plain-Python oracle on scripted episodes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dqn_jax.actor import make_actor
from dqn_jax.agent import hyperparams_of
from dqn_jax.config import AgentConfig
from dqn_jax.envs import Environment, EnvSpec, TimeStep
from dqn_jax.exploration import NO_EXPLORATION
from dqn_jax.networks import Network, QValues
from dqn_jax.types import Clock, Transition
from dqn_jax.windows import Window, n_step_transition, whole_window

GAMMA = 0.5  # A power of two, as are the parts of all rewards: sums are exact in float32, so comparisons can be exact too.
LENGTHS = (3, 1, 2, 5)
STEPS = 12
NUM_ENVS = 4


def script_obs(episode, time, noise):
    return jnp.stack([jnp.float32(episode), jnp.float32(time), noise])


def script_init(key, params):
    noise = jax.random.uniform(key)
    episode = jnp.int32(noise * len(LENGTHS))
    return (episode, jnp.int32(0)), script_obs(episode, 0, noise)


def script_step(key, state, action, params):
    """Episode i takes LENGTHS[i % 4] steps; even ones terminate, odd ones are cut by time. The noise tells the key."""
    episode, time = state
    noise = jax.random.uniform(key)
    final_obs = script_obs(episode, time + 1, noise)
    reward = jnp.float32(episode) + 0.5 * time + 0.25 * action
    ended = time + 1 == jnp.array(LENGTHS)[episode % len(LENGTHS)]
    state = (episode + ended, jnp.where(ended, 0, time + 1))
    odd = episode % 2 == 1
    return state, TimeStep(script_obs(*state, noise), final_obs, reward, ended & ~odd, ended & odd)


ENV = Environment(EnvSpec("script", (3,), np.dtype(np.float32), 2, max(LENGTHS)), script_init, script_step, ())
# With parameters +1 action 1 is greedy, with -1 action 0.
NETWORK = Network(lambda key: jnp.float32(1), lambda params, obs, key: QValues(params * jnp.array([0.0, 1.0])))


def config_of(**changes):
    settings = {"num_envs": NUM_ENVS, "replay_capacity": 400, "discount": GAMMA, "epsilon_start": 1.0, "epsilon_end": 1.0}
    return AgentConfig(**(settings | changes))


def start(config, num_shards=1, shard=0, seed=0):
    actor = make_actor(ENV, NETWORK, config, num_shards)
    first_env = shard * (config.num_envs // num_shards)
    return actor.init(jax.random.key(seed), ENV.params, hyperparams_of(config).actor, first_env)


def go_on(state, config, steps=STEPS, num_shards=1, params=1.0):
    """-> (state, (transitions [T, E, ...], valid [T], info [T]))."""
    actor = make_actor(ENV, NETWORK, config, num_shards)

    def act(state, _):
        state, transitions, valid, info = actor.act(state, params)
        return state, (transitions, jnp.asarray(valid), info)

    return jax.lax.scan(act, state, length=steps)


@functools.partial(jax.jit, static_argnames=("config", "num_shards"))
def start_and_go_on(config, num_shards, shard, seed, params):
    return go_on(start(config, num_shards, shard, seed), config, STEPS, num_shards, params)


@functools.cache
def play(config, num_shards=1, shard=0, seed=0, params=1.0):
    """As `go_on`, from the start, with all but the state as numpy: slicing jax arrays would compile each slice."""
    state, outputs = start_and_go_on(config, num_shards, shard, seed, params)
    return state, jax.device_get(outputs)


def rows(tree):
    """Leaves [T, E, ...] as a list over environments of lists over time of records."""
    return [[jax.tree.map(lambda x, t=t, e=e: x[t, e], tree) for t in range(STEPS)] for e in range(NUM_ENVS)]


def n_steps(steps, ended, n):
    """n-step transitions by definition, from single steps whose discount is gamma, or 0 after a termination."""
    items = []
    for begin in range(len(steps) - n + 1):
        reward, discount = 0.0, 1.0
        for k in range(begin, begin + n):
            reward += discount * steps[k].r_t
            discount *= steps[k].discount_t
            if ended[k]:
                break
        items.append(Transition(steps[begin].s_tm1, steps[begin].a_tm1, reward, discount, steps[k].s_t))
    return items


def assert_bitwise(actual, expected):
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_step_transition_of_random_windows(n):
    rng = np.random.default_rng(n)
    windows = 200
    terminated, truncated = rng.random((2, n, windows)) < 0.2
    ended = terminated | truncated
    steps = Transition(
        s_tm1=rng.normal(size=(n, windows, 2, 3)).astype(np.float32),
        a_tm1=rng.integers(5, size=(n, windows)).astype(np.int32),
        r_t=rng.integers(-8, 9, size=(n, windows)).astype(np.float32),
        discount_t=np.where(terminated, 0, GAMMA).astype(np.float32),
        s_t=rng.normal(size=(n, windows, 2, 3)).astype(np.float32),
    )
    actual = jax.device_get(jax.jit(n_step_transition)(Window(steps, ended)))
    discounts = set()
    for w in range(windows):
        singles = [jax.tree.map(lambda x, k=k, w=w: x[k, w], steps) for k in range(n)]
        (expected,) = n_steps(singles, ended[:, w], n)
        assert_bitwise(jax.tree.map(lambda x, w=w: x[w], actual), expected)
        discounts.add(float(expected.discount_t))
        # The contract also holds without an axis of environments.
        if w < 2:
            one = n_step_transition(Window(jax.tree.map(lambda x, w=w: x[:, w], steps), ended[:, w]))
            assert_bitwise(one, expected)
    # gamma to the power of the steps really taken, up to n, and 0 after a termination.
    assert discounts == {0.0} | {GAMMA**k for k in range(1, n + 1)}


def test_n_step_by_hand():
    # Rewards 1, 2, 4; a time limit after the second step: 1 + 0.9 * 2, bootstrapped with 0.9^2 from the second's s_t.
    steps = Transition(*(jnp.array(x) for x in ([10.0, 20, 30], [0, 1, 1], [1.0, 2, 4], [0.9, 0.9, 0.9], [11.0, 21, 31])))
    result = n_step_transition(Window(steps, jnp.array([False, True, False])))
    np.testing.assert_allclose(jnp.stack(result), [10, 0, 2.8, 0.81, 21], rtol=1e-6)
    # A termination there: the same reward, nothing to bootstrap from.
    terminal = n_step_transition(Window(steps._replace(discount_t=jnp.array([0.9, 0, 0.9])), jnp.array([False, True, False])))
    np.testing.assert_allclose(jnp.stack(terminal), [10, 0, 2.8, 0, 21], rtol=1e-6)
    # No end: 1 + 0.9 * 2 + 0.81 * 4 and 0.9^3.
    whole = n_step_transition(Window(steps, jnp.array([False, False, False])))
    np.testing.assert_allclose(jnp.stack(whole), [10, 0, 6.04, 0.729, 31], rtol=1e-6)


def test_a_whole_window_by_hand():
    steps = Transition(*(jnp.array(x) for x in ([10.0, 20, 30], [0, 1, 1], [1.0, 2, 4], [0.9, 0.9, 0.9], [11.0, 21, 31])))
    terminal = steps._replace(discount_t=jnp.array([0.9, 0, 0.9]))
    cases = {
        "no end": (steps, [0, 0, 0], ([1, 2, 4], [0.9, 0.9, 0.9], [11, 21, 31])),
        # After an end: no reward, no discount, its own observation.
        "a time limit in the middle": (steps, [0, 1, 0], ([1, 2, 0], [0.9, 0.9, 1], [11, 21, 21])),
        "a termination in the middle": (terminal, [0, 1, 0], ([1, 2, 0], [0.9, 0, 1], [11, 21, 21])),
        "an end at once": (steps, [1, 0, 1], ([1, 0, 0], [0.9, 1, 1], [11, 11, 11])),
        "an end at last": (steps, [0, 0, 1], ([1, 2, 4], [0.9, 0.9, 0.9], [11, 21, 31])),
    }
    for window, ended, expected in cases.values():
        assert_bitwise(whole_window(Window(window, jnp.array(ended, bool))), Transition(10.0, 0, *map(np.float32, expected)))


@functools.cache
def follow_the_script(time_limit):
    """Single steps and ends [E][T], each checked against the script, with totals over the environments at each time."""
    config = config_of(time_limit=time_limit)
    state, (transitions, valid, info) = play(config)
    assert valid.all()
    streams, ends = rows(transitions), []
    totals = {name: np.zeros(STEPS) for name in ("episodes", "return_sum", "terminated", "truncated")}
    for stream in streams:
        (episode, time), so_far, ended_at = stream[0].s_tm1[:2].astype(int), 0.0, []
        assert time == 0
        for t, step in enumerate(stream):
            assert tuple(step.s_tm1[:2]) == (episode, time)
            assert step.a_tm1 in (0, 1)
            assert step.r_t == episode + 0.5 * time + 0.25 * step.a_tm1
            # The episode's own last observation, even where the next step begins another episode.
            assert tuple(step.s_t[:2]) == (episode, time + 1)
            ended, odd = time + 1 == LENGTHS[episode % 4], episode % 2 == 1
            terminal = ended and (not odd or time_limit == "terminal")
            assert step.discount_t == (0 if terminal else GAMMA)
            if t + 1 < STEPS:
                assert stream[t + 1].s_tm1[2] == step.s_t[2]
            so_far += step.r_t
            totals["episodes"][t] += ended
            totals["return_sum"][t] += so_far * ended
            totals["terminated"][t] += ended and not odd
            totals["truncated"][t] += ended and odd
            ended_at.append(ended)
            episode, time, so_far = (episode + 1, 0, 0.0) if ended else (episode, time + 1, so_far)
        ends.append(ended_at)
    return state, streams, ends, totals, info


@pytest.mark.parametrize("time_limit", ["bootstrap", "terminal"])
def test_single_steps_follow_the_script(time_limit):
    state, streams, ends, totals, info = follow_the_script(time_limit)
    for name, expected in totals.items():
        assert expected.sum() > 0
        np.testing.assert_array_equal(info[name], expected)
    assert state.clock.count == STEPS
    # Both kinds of end occur, at different times in different environments.
    assert len({tuple(ended_at) for ended_at in ends}) > 1
    discounts = {
        float(step.discount_t)
        for stream, ended in zip(streams, ends, strict=True)
        for step, e in zip(stream, ended, strict=True)
        if e
    }
    assert discounts == ({0.0, GAMMA} if time_limit == "bootstrap" else {0.0})


@pytest.mark.parametrize(("n", "time_limit"), [(2, "bootstrap"), (3, "bootstrap"), (3, "terminal"), (5, "bootstrap")])
def test_each_step_emits_the_item_begun_n_minus_1_steps_earlier(n, time_limit):
    _, singles, ends, _, _ = follow_the_script(time_limit)
    config = config_of(n_step=n, time_limit=time_limit)
    _, (transitions, valid, _) = play(config)
    np.testing.assert_array_equal(valid, [t >= n - 1 for t in range(STEPS)])
    for stream, steps, ended in zip(rows(transitions), singles, ends, strict=True):
        for actual, expected in zip(stream[n - 1 :], n_steps(steps, ended, n), strict=True):
            assert_bitwise(actual, expected)


@pytest.mark.parametrize("n", [1, 3])
def test_chunk_borders_change_nothing(n):
    config = config_of(n_step=n)
    chunk = jax.jit(lambda state: go_on(state, config, STEPS // 2))
    state, first = chunk(jax.jit(lambda: start(config))())
    state, second = chunk(state)
    whole_state, whole = play(config)
    assert_bitwise(state, whole_state)
    assert_bitwise(jax.tree.map(lambda x, y: np.concatenate([x, y]), first, second), whole)


@pytest.mark.parametrize("num_shards", [1, 2])
def test_epsilon_counts_the_frames_of_all_shards(num_shards):
    config = config_of(epsilon_start=1.0, epsilon_end=0.0, epsilon_decay_frames=40)
    _, (_, _, info) = play(config, num_shards)
    # Four frames a step, however many of them are this shard's.
    np.testing.assert_allclose(info["epsilon"], [max(0, 1 - 4 * t / 40) for t in range(STEPS)], atol=1e-6)


def test_exponential_epsilon():
    config = config_of(epsilon_schedule="exponential", epsilon_start=1.0, epsilon_end=0.25, epsilon_decay_frames=16)
    _, (_, _, info) = play(config)
    np.testing.assert_allclose(info["epsilon"], [0.25 ** min(1, 4 * t / 16) for t in range(STEPS)], rtol=1e-6)


@pytest.mark.parametrize(("params", "greedy"), [(1.0, 1), (-1.0, 0)])
def test_epsilon_0_takes_the_networks_greedy_action(params, greedy):
    config = config_of(epsilon_start=0.0, epsilon_end=0.0)
    _, (transitions, _, _) = play(config, params=params)
    np.testing.assert_array_equal(transitions.a_tm1, np.full((STEPS, NUM_ENVS), greedy))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("shard", [0, 1])
def test_an_environment_sees_the_same_draws_in_a_shard(shard, n):
    config = config_of(n_step=n)
    _, (all_rows, _, _) = play(config)
    _, (shard_rows, _, _) = play(config, 2, shard)
    assert_bitwise(shard_rows, jax.tree.map(lambda x: x[:, 2 * shard : 2 * shard + 2], all_rows))


@pytest.mark.parametrize("num_envs", [1, 8])
def test_an_environment_sees_the_same_draws_among_more_or_fewer(num_envs):
    config, other = config_of(), config_of(num_envs=num_envs)
    _, (here, _, _) = play(config)
    _, (there, _, _) = play(other)
    shared = min(NUM_ENVS, num_envs)
    assert_bitwise(*(jax.tree.map(lambda x: x[:, :shared], x) for x in (here, there)))


def test_environments_steps_and_keys_draw_apart():
    config = config_of()
    noises = [np.asarray(play(config, seed=seed)[1][0].s_t)[:, :, 2] for seed in (0, 1)]
    assert np.unique(noises).size == 2 * STEPS * NUM_ENVS


def test_exploring_the_network_and_the_environment_draw_from_keys_of_their_own():
    """A network and a rule that choose what they were given as a key: three keys for each environment, each step others."""
    data = jax.random.key_data
    network = NETWORK._replace(apply=lambda params, obs, key: QValues(data(key)))
    rule = NO_EXPLORATION._replace(choose=lambda key, q_values, *_: jnp.stack([data(key), q_values]))
    config = config_of()
    choose = make_actor(ENV, network, config, exploration=rule).choose
    state, keys = start(config), []
    for _ in range(3):
        choice = choose(state, 1.0)
        keys += [*choice.actions.reshape(-1, 2).tolist(), *data(choice.env_keys).tolist()]
        state = state.replace(clock=Clock(state.clock.count + 1))
    assert len({tuple(key) for key in keys}) == len(keys) == 3 * 3 * NUM_ENVS
