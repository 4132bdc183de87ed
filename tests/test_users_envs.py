"""An environment of a user's own ends, is cut, starts again and shows its last observation as worked out by hand."""

import gymnax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import one_line, refusal
from walks import play, walk

from dqn_jax.config import DataParallelExperiment
from dqn_jax.envs import env_of, from_functions, make_env, parameter, parse_kwargs, with_parameters
from dqn_jax.federated.heterogeneity import draw_envs, varied_fields


def test_episodes_by_hand():
    env = from_functions("walk", walk())
    assert (env.spec.obs_shape, env.spec.obs_dtype, env.spec.num_actions, env.spec.max_episode_steps) == (
        (2,),
        np.float32,
        2,
        5,
    )
    first, steps = play(env, [1, 1, 1, 1, 0, 0, 0, 0, 1])
    assert first.tolist() == [0.0, 0.5]
    # The goal in the third step; then a limit of five in the eighth, and the next episode.
    assert steps.reward.tolist() == [10, 20, 30, 10, 10, 10, 10, 10, 10]
    assert steps.terminated.tolist() == [False, False, True] + [False] * 6
    assert steps.truncated.tolist() == [False] * 7 + [True, False]
    assert steps.final_obs[:, 0].tolist() == [1, 2, 3, 1, 1, 1, 1, 1, 1]
    assert steps.final_obs[:, 1].tolist() == [1.0] * 9
    # After an end, the next episode's first.
    assert steps.obs[:, 0].tolist() == [1, 2, 0, 1, 1, 1, 1, 0, 1]
    assert steps.obs[:, 1].tolist() == [1, 1, 0.5, 1, 1, 1, 1, 0.5, 1]


def test_an_end_at_the_limit_is_a_termination():
    _, steps = play(from_functions("walk", walk(max_episode_steps=3)), [1, 1, 1])
    assert (steps.terminated.tolist(), steps.truncated.tolist()) == ([False, False, True], [False] * 3)


def test_another_limit_and_other_parameters():
    env = from_functions("walk", walk(max_episode_steps=None), max_episode_steps=2)
    assert env.spec.max_episode_steps == 2
    assert play(env, [0, 0])[1].truncated.tolist() == [False, True]
    near = with_parameters(env.params, goal=jnp.int32(1))
    assert parameter(near, "goal") == 1
    assert parameter(near, "max_steps_in_episode") == 2
    assert parameter(near, "gol") is None
    assert play(env, [1], near)[1].terminated.tolist() == [True]


def test_a_function_may_return_one_of_three(mine):
    env, params = gymnax.make("CartPole-v1")
    mine.functions, mine.gymnax_pair = walk, lambda: (env, params)
    mine.whole = lambda: from_functions("mine", walk())
    assert make_env("mine:functions").spec.max_episode_steps == 5
    assert make_env("mine:gymnax_pair", 7).spec.max_episode_steps == 7
    assert make_env("mine:gymnax_pair").spec.obs_shape == (4,)
    assert make_env("mine:whole").spec.max_episode_steps == 5
    # Another limit for one that resets itself.
    cut = make_env("mine:whole", 2)
    assert play(cut, [0, 0, 1, 1])[1].truncated.tolist() == [False, True, False, True]
    message = refusal(lambda: make_env("mine:whole", 6))
    assert message == "env 'mine' ends after 5 steps by itself, before a time limit of 6: give less"


def test_arguments_reach_the_function_and_gymnax(mine):
    mine.walk = lambda limit, words="": walk(max_episode_steps=limit)
    assert make_env("mine:walk", kwargs=("limit=9", "words=left or right")).spec.max_episode_steps == 9
    assert make_env("Catch-bsuite", kwargs=("rows=7", "columns=3")).spec.obs_shape == (7, 3)
    assert parse_kwargs(("size=12", "shape=(2, 3)", "name=x-1", "flag=True")) == {
        "size": 12,
        "shape": (2, 3),
        "name": "x-1",
        "flag": True,
    }
    for text in ("size", "=3", "a b=1"):
        assert "give each argument once, as size=12" in refusal(lambda text=text: parse_kwargs((text,)))
    assert "'size=2'" in refusal(lambda: parse_kwargs(("size=1", "size=2")))
    message = refusal(lambda: make_env("CartPole-v1", kwargs=("size=3",)))
    assert message.startswith("env_kwargs is {'size': 3}, and CartPole-v1 cannot be made with it (")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: walk(max_episode_steps=None),
            "which has no time limit, and a greedy episode may never end: set --max",
        ),
        (lambda: walk(reset=lambda key, params: (0, {"x": jnp.zeros(2)})), "whose observations are a dict: give arrays"),
        (
            lambda: 3,
            "which gives a int: return an envs.Environment, a gymnax environment and its parameters, or",
        ),
        (lambda: missing, "which fails at"),  # noqa: F821
        (
            lambda: walk(step=lambda key, place, action, params: (place, jnp.zeros(3), 0.0, False)),
            "its['observation'] has shape (3,): give (2,)",
        ),
        (lambda: walk(step=lambda key, place, action, params: (place, jnp.zeros(2), jnp.zeros(2), False)), "reward"),
        (lambda: walk(reset=lambda key, params: (jnp.int8(0), jnp.zeros(2))), "give the same types"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(mine, make, words):
    mine.make = make
    message = one_line(lambda: make_env("mine:make"))
    assert message.startswith("env is 'mine:make'")
    assert words in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("LunarLander-v3", "or give module:function for one of your own, gymnasium:NAME for one of Gymnasium's"),
        ("ALE/Breakout-v5", "gymnasium:NAME for one of Gymnasium's"),
        ("CartPole-v2", "did you mean CartPole-v1?"),
        ("nomodule:thing", "has no module nomodule"),
        ("json:dumps:3", "give numbers by name, as --env-kwargs size=12"),
    ],
)
def test_names_that_mean_nothing_here(name, words):
    assert words in refusal(lambda: make_env(name))


def test_who_cannot_step_it_says_who_can():
    message = refusal(lambda: env_of(DataParallelExperiment(env="gymnasium:CartPole-v1")))
    assert message == (
        "env is 'gymnasium:CartPole-v1', which is stepped on the host: train it with experiments/actor_learner.py, or with "
        "experiments/parameter_server.py --backend threads, in-process or ray"
    )


def test_a_range_of_any_parameter(mine):
    mine.walk = walk
    env = make_env("mine:walk")
    envs = draw_envs(env, "range:goal:2:4", 0, 32, 2)
    goals = np.asarray(parameter(envs.seen, "goal"))
    assert 2 <= goals.min() < 2.3 < 3.7 < goals.max() <= 4
    assert [list(one) for one in varied_fields(envs.seen, "range:goal:2:4")] == [["goal"]] * 32
    # What follows from a field follows from it here too.
    cartpole = make_env("CartPole-v1")
    poles = draw_envs(cartpole, "range:length:0.2:0.4", 0, 8, 2).seen
    np.testing.assert_allclose(poles.polemass_length, poles.masspole * poles.length, rtol=1e-6)
    for spec in ("range:goal:2", "range:goal:4:2", "range::1:2", "range:goal:a:b", "range:goal:0:inf"):
        assert "as range:length:0.1:0.9" in refusal(lambda spec=spec: draw_envs(env, spec, 0, 2, 2))
    assert "has no parameter gaol" in refusal(lambda: draw_envs(env, "range:gaol:2:4", 0, 2, 2))
