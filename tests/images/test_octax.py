"""Games of octax: steps are its own, and ends and limits mean what they mean elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from octax.environments import create_environment

from dqn_jax.config import InputError
from dqn_jax.envs import make_env, reset_key

pytestmark = pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")


def walk(env, length, seed=0):
    """Time steps [length, ...] of random actions, and those actions."""
    stream = jax.random.key(seed)
    actions = jax.random.randint(jax.random.fold_in(stream, 0), (length,), 0, env.spec.num_actions)

    def step(state, inputs):
        action, time = inputs
        return env.step(jax.random.fold_in(stream, time), state, action, env.params)

    @jax.jit
    def run():
        state, obs = env.init(reset_key(stream), env.params)
        return obs, jax.lax.scan(step, state, (actions, jnp.arange(length)))[1]

    obs, steps = run()
    return np.asarray(obs), jax.device_get(steps), np.asarray(actions)


def test_a_game_is_octaxs_own_until_it_ends():
    env, own = make_env("octax:brix"), create_environment("brix")[0]
    assert env.spec.obs_shape == (32, 64, 4)
    assert env.spec.obs_dtype == np.dtype(bool)
    assert (env.spec.num_actions, env.spec.max_episode_steps) == (own.num_actions, 4_500)
    first, steps, actions = walk(env, 200)
    ends = np.flatnonzero(steps.terminated)
    assert len(ends) > 1
    assert not steps.truncated.any()
    state, frames, _ = own.reset(jax.random.key_data(reset_key(jax.random.key(0))))
    np.testing.assert_array_equal(first, np.transpose(frames, (2, 1, 0)))
    for time in range(ends[0] + 1):
        state, frames, reward, terminated, _, _ = own.step(state, actions[time])
        np.testing.assert_array_equal(steps.final_obs[time], np.transpose(frames, (2, 1, 0)))
        assert (steps.reward[time], steps.terminated[time]) == (reward, terminated)
    # After the end the next game's first picture is acted on, and the last one's final is kept.
    np.testing.assert_array_equal(steps.obs[ends[0]], first)
    assert np.any(steps.final_obs[ends[0]] != first)


def test_a_limit_is_no_termination():
    env = make_env("octax:tetris", 5)
    first, steps, _ = walk(env, 12)
    assert np.flatnonzero(steps.truncated).tolist() == [4, 9]
    assert not steps.terminated.any()
    np.testing.assert_array_equal(steps.obs[4], first)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("octax:brics", (), "env is 'octax:brics', which octax does not know: choose one of airplane, "),
        ("octax:cavern99", (), "env is 'octax:cavern99' with env_kwargs {}, which octax cannot make: "),
        ("octax:brix", ("colour=1",), "env is 'octax:brix' with env_kwargs {'colour': 1}, which octax cannot make: "),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, kwargs, words):
    with pytest.raises(InputError) as refused:
        make_env(name, None, kwargs)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)
