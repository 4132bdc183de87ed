"""Games of jumanji: steps are its own, a loss is an end, and a game's limit is a limit, though jumanji calls it an end."""

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
import pytest

from dqn_jax.config import InputError
from dqn_jax.envs import make_env, reset_key

SNAKE, FIELD = "jumanji:Snake-v1", ("field=grid",)


def steps_of(env, actions):
    """Steps with a key for each: (keys, state and observation after the reset, time steps)."""
    key = jax.random.key(3)
    keys = [jax.random.fold_in(key, time) for time in range(len(actions))]
    state, obs = env.init(reset_key(key), env.params)
    step, steps = jax.jit(env.step), []
    for own, action in zip(keys, actions, strict=True):
        state, time_step = step(own, state, jnp.int32(action), env.params)
        steps.append(time_step)
    return reset_key(key), obs, steps


def test_a_game_is_jumanjis_own_until_it_ends_by_its_rules():
    env, own = make_env(SNAKE, None, FIELD), jumanji.make("Snake-v1")
    assert (env.spec.obs_shape, env.spec.num_actions) == ((12, 12, 5), 4)
    assert env.spec.max_episode_steps == own.time_limit
    # Always the same way: into a wall.
    key, obs, steps = steps_of(env, [1] * 13)
    state, theirs = own.reset(jax.random.key_data(key))
    np.testing.assert_array_equal(obs, theirs.observation.grid)
    for step in steps:
        state, theirs = jax.jit(own.step)(state, jnp.int32(1))
        np.testing.assert_array_equal(step.final_obs, theirs.observation.grid)
        assert step.reward == theirs.reward
        assert bool(step.terminated) == bool(theirs.last())
        assert not step.truncated
        if step.terminated:
            break
    assert step.terminated
    assert np.any(step.obs != step.final_obs)


@pytest.mark.parametrize(("limit", "kwargs"), [(4, ()), (None, ("time_limit=4",))])
def test_a_limit_is_no_end(limit, kwargs):
    """jumanji itself gives no value to what comes after it."""
    game = "jumanji:Game2048-v1" if not kwargs else "jumanji:Maze-v0"
    field = "board" if not kwargs else "walls"
    env = make_env(game, limit, (*kwargs, f"field={field}"))
    assert env.spec.max_episode_steps == 4
    _, _, steps = steps_of(env, [0, 1, 2, 3, 0, 1, 2, 3])
    assert [bool(step.truncated) for step in steps] == [False, False, False, True] * 2
    assert not any(step.terminated for step in steps)
    if kwargs:
        own = jumanji.make("Maze-v0", time_limit=4)
        state, _ = own.reset(jax.random.PRNGKey(0))
        for action in range(4):
            state, theirs = own.step(state, jnp.int32(action))
        assert theirs.last()
        assert theirs.discount == 0


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("jumanji:Snake-v0", FIELD, "env is 'jumanji:Snake-v0', which jumanji does not know: its games are BinPack-v2, "),
        (
            SNAKE,
            (),
            "env is 'jumanji:Snake-v1', with observations of grid, step_count, action_mask: name one, as ",
        ),
        (SNAKE, ("field=board",), "env is 'jumanji:Snake-v1', with observations of grid, "),
        (SNAKE, (*FIELD, "colour=1"), "env is 'jumanji:Snake-v1' with env_kwargs {'colour': 1}, which jumanji cannot make: "),
        ("jumanji:Tetris-v0", ("field=grid",), "env is 'jumanji:Tetris-v0', whose actions are not one number: take another"),
        ("jumanji:Game2048-v1", ("field=board",), "env is 'jumanji:Game2048-v1', which has no time limit, "),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, kwargs, words):
    with pytest.raises(InputError) as refused:
        make_env(name, None, kwargs)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)
