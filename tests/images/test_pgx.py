"""Games of pgx: steps are its own, a forbidden action ends a game, and a limit does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pgx
import pytest

from dqn_jax.config import InputError
from dqn_jax.envs import make_env, reset_key


def test_a_game_is_pgxs_own_until_it_ends_by_a_forbidden_action():
    env, own = make_env("pgx:2048", 500), pgx.make("2048")
    assert env.spec.obs_shape == (4, 4, 31)
    assert (env.spec.num_actions, env.spec.max_episode_steps) == (4, 500)
    key, step = jax.random.key(3), jax.jit(env.step)
    state, obs = env.init(reset_key(key), env.params)
    theirs = own.init(reset_key(key))
    np.testing.assert_array_equal(obs, theirs.observation)
    scored = 0
    for time in range(200):
        # Always the same two directions: soon neither moves anything.
        action = jnp.int32(time % 2)
        allowed = bool(theirs.legal_action_mask[action])
        step_key = jax.random.fold_in(key, time)
        # The first half of the key is the step's, the second a reset's.
        theirs = own.step(theirs, action, jax.random.split(step_key)[0])
        state, time_step = step(step_key, state, action, env.params)
        np.testing.assert_array_equal(time_step.final_obs, theirs.observation)
        assert time_step.reward == theirs.rewards[0]
        assert bool(time_step.terminated) == bool(theirs.terminated)
        assert not time_step.truncated
        scored += float(time_step.reward) > 0
        if time_step.terminated:
            break
        assert allowed
    assert not allowed
    assert time_step.reward == -1
    assert scored > 0
    assert np.any(time_step.obs != time_step.final_obs)


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        ("pgx:chess", 9, "env is 'pgx:chess', a game for 2 players: take one for one, as pgx:2048"),
        ("pgx:2049", 9, "env is 'pgx:2049', which pgx does not know: its games are 2048, "),
        ("pgx:2048", None, "env is 'pgx:2048', which has no time limit, and a greedy episode may never end"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, limit, words):
    with pytest.raises(InputError) as refused:
        make_env(name, limit)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(InputError, match=r"^env is 'pgx:2048' with env_kwargs \{'colour': 1\}, which pgx cannot make: "):
        make_env("pgx:2048", 9, ("colour=1",))
