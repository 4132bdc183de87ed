"""Worlds of craftax: steps are its own, death is an end, and its limit is a limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from craftax.craftax_env import make_craftax_env_from_name

from dqn_jax.config import InputError
from dqn_jax.envs import make_env, reset_key

WORLD = "Craftax-Classic-Symbolic-v1"
STEPS = 400


def test_a_world_is_craftaxs_own_until_death_and_its_limit_is_none():
    """Random actions in several worlds of 200 steps: some die before, others are cut."""
    env, own = make_env(f"craftax:{WORLD}", 200), make_craftax_env_from_name(WORLD, auto_reset=False)
    assert (env.spec.num_actions, env.spec.max_episode_steps) == (17, 200)
    assert make_env(f"craftax:{WORLD}").spec.max_episode_steps == own.default_params.max_timesteps
    params = own.default_params.replace(max_timesteps=2**30)

    def play(key):
        def step(carry, time):
            state, theirs = carry
            step_key, action_key = jax.random.split(jax.random.fold_in(key, time))
            action = jax.random.randint(action_key, (), 0, 17)
            state, ours = env.step(step_key, state, action, env.params)
            # The first half of the key is the step's, the second a reset's.
            halves = jax.random.split(step_key)
            obs, theirs, reward, done, _ = own.step_env(halves[0], theirs, action, params)
            ended = ours.terminated | ours.truncated
            _, begun = own.reset_env(halves[1], params)
            theirs = jax.tree.map(lambda new, old: jnp.where(ended, new, old), begun, theirs)
            same = jnp.allclose(ours.final_obs, obs, atol=1e-6) & jnp.isclose(ours.reward, reward) & (ours.terminated == done)
            return (state, theirs), (same, ours.terminated, ours.truncated, ours.reward)

        state, _ = env.init(reset_key(key), env.params)
        _, theirs = own.reset_env(reset_key(key), params)
        return jax.lax.scan(step, (state, theirs), jnp.arange(STEPS))[1]

    same, terminated, truncated, reward = map(np.asarray, jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), 8)))
    assert same.all()
    assert terminated.any()
    assert truncated.any()
    assert reward.max() == 1
    for ends, cuts in zip(terminated | truncated, truncated, strict=True):
        times = np.flatnonzero(ends)
        lengths = np.diff(times, prepend=-1)
        assert (lengths[cuts[times]] == 200).all()
        assert (lengths <= 200).all()


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("craftax:Minecraft", (), "env is 'craftax:Minecraft', which craftax does not know: take one as craftax:Craftax-"),
        (f"craftax:{WORLD}", ("colour=1",), f"env is 'craftax:{WORLD}' with env_kwargs {{'colour': 1}}, which craftax cannot"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, kwargs, words):
    with pytest.raises(InputError) as refused:
        make_env(name, None, kwargs)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)
