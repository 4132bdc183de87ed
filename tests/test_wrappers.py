"""Wrappers do by hand-worked numbers what they say, alike on the walk of a program and on that of the host."""

import dataclasses

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import one_line, refusal
from walks import HostWalk, play, walk

from dqn_jax.config import DataParallelExperiment, RunnerConfig
from dqn_jax.envs import Functions, TimeStep, eval_env_of, from_functions, make_env, with_parameters
from dqn_jax.envs.wrappers import sticky, wrap

WALK = from_functions("walk", walk())
ACTIONS = [1, 1, 1, 1, 0, 0, 0, 0, 1]
"""A goal in the third step, a limit in the eighth."""


@pytest.fixture(scope="module")
def host():
    gymnasium.register("Walk-v0", entry_point=HostWalk, max_episode_steps=5)
    yield "gymnasium:Walk-v0"
    del gymnasium.registry["Walk-v0"]


def play_host(env, actions):
    running = env.start([0])
    first = running.obs[0]
    steps = [running.step(np.array([action])) for action in actions]
    running.close()
    return first, jax.tree.map(lambda *x: np.stack(x)[:, 0], *steps)


def alike(host, wrappers, actions=ACTIONS):
    """The walk with wrappers, as both kinds of environments play it."""
    pure, hosted = wrap(WALK, wrappers), make_env(host, wrappers=wrappers)
    assert hosted.spec._replace(name="walk") == pure.spec._replace(stack=1)
    first, steps = play(pure, actions)
    for ours, theirs in zip((first, *steps), (lambda one: (one[0], *one[1]))(play_host(hosted, actions)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    return first, steps


def test_frames_by_hand(host):
    first, steps = alike(host, ("frame-stack:3",))
    assert first.tolist() == [0, 0.5, 0, 0.5, 0, 0.5]
    assert steps.final_obs[0].tolist() == [0, 0.5, 0, 0.5, 1, 1]
    assert steps.final_obs[2].tolist() == [1, 1, 2, 1, 3, 1]
    # After an end, the next episode's first alone.
    assert steps.obs[2].tolist() == [0, 0.5, 0, 0.5, 0, 0.5]
    assert steps.final_obs[3].tolist() == [0, 0.5, 0, 0.5, 1, 1]
    assert steps.final_obs[7].tolist() == [1, 1] * 3
    assert steps.obs[7].tolist() == [0, 0.5] * 3
    np.testing.assert_array_equal(steps.obs[[0, 1, 3, 4, 5, 6, 8]], steps.final_obs[[0, 1, 3, 4, 5, 6, 8]])


@pytest.mark.parametrize(("shape", "stacked"), [((3, 4), (3, 4, 2)), ((3, 4, 5), (3, 4, 10)), ((), (2,)), ((7,), (14,))])
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.bool_])
def test_images_are_stacked_as_channels(shape, stacked, dtype):
    """Step t shows the number t everywhere; what is in storage keeps its type."""
    rules = Functions(
        reset=lambda key, params: (jnp.int32(1), jnp.ones(shape, dtype)),
        step=lambda key, time, action, params: (time + 1, jnp.full(shape, time + 1, dtype), 0.0, False),
        num_actions=2,
        max_episode_steps=9,
    )
    env = wrap(from_functions("grid", rules), ("frame-stack:2",))
    assert (env.spec.obs_shape, env.spec.obs_dtype) == (stacked, dtype)
    first, steps = play(env, [0, 0])
    assert (first.shape, first.dtype) == (stacked, dtype)
    last = steps.obs[1]
    assert (last.shape, last.dtype) == (stacked, dtype)
    halves = last.reshape(-1, 2).T if len(shape) in (0, 2) else np.split(last, 2, axis=-1)
    assert [set(np.unique(half)) for half in halves] == ([{2}, {3}] if dtype == jnp.uint8 else [{True}] * 2)


class Screen(gymnasium.Env):
    """Shows the number t everywhere at step t, in bytes."""

    observation_space = gymnasium.spaces.Box(0, 255, (3, 4), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.show(), {}

    def step(self, action):
        self.time += 1
        return self.show(), 0.0, False, False, {}

    def show(self):
        return np.full((3, 4), self.time, np.uint8)


def test_bytes_of_the_host_stay_bytes():
    gymnasium.register("Screen-v0", entry_point=Screen, max_episode_steps=9)
    try:
        env = make_env("gymnasium:Screen-v0", wrappers=("frame-stack:2",))
        first, steps = play_host(env, [0, 0])
    finally:
        del gymnasium.registry["Screen-v0"]
    assert (env.spec.obs_shape, env.spec.obs_dtype) == ((3, 4, 2), np.uint8)
    assert (first.dtype, steps.obs.dtype, steps.final_obs.dtype) == (np.uint8,) * 3
    assert [set(np.unique(steps.obs[1, :, :, channel])) for channel in range(2)] == [{1}, {2}]


def test_rewards_are_clipped(host):
    assert alike(host, ("reward-clip",))[1].reward.tolist() == [1] * 9
    assert alike(host, ("reward-clip:15",))[1].reward.tolist() == [10, 15, 15, 10, 10, 10, 10, 10, 10]
    minus = WALK._replace(
        step=lambda *args: (lambda state, step: (state, step._replace(reward=-step.reward)))(*WALK.step(*args))
    )
    assert play(wrap(minus, ("reward-clip:15",)), [1, 1])[1].reward.tolist() == [-10, -15]


def test_a_shorter_limit(host):
    _, steps = alike(host, ("time-limit:3",), [1, 0, 0, 1, 1, 1, 0, 0, 0])
    # A goal at the limit is a termination.
    assert steps.truncated.tolist() == [False, False, True, False, False, False, False, False, True]
    assert steps.terminated.tolist() == [False] * 5 + [True] + [False] * 3
    assert steps.obs[2].tolist() == [0, 0.5]
    assert steps.final_obs[2].tolist() == [1, 1]


def test_wrappers_are_applied_in_order(host):
    # What is shown of a cut episode is cut from stacked frames, or stacked of cut ones: the same here.
    for order in (("frame-stack:2", "time-limit:2"), ("time-limit:2", "frame-stack:2")):
        _, steps = alike(host, order, [1, 1, 0])
        assert steps.final_obs.tolist() == [[0, 0.5, 1, 1], [1, 1, 2, 1], [0, 0.5, 0, 1]]
        assert steps.obs[1].tolist() == [0, 0.5, 0, 0.5]
    twice = wrap(WALK, ("reward-clip:15", "reward-clip:12"))
    assert play(twice, [1, 1])[1].reward.tolist() == [10, 12]
    assert wrap(WALK, ("frame-stack:2", "frame-stack:3")).spec.obs_shape == (12,)


ECHO = from_functions(
    "echo",
    Functions(
        # Shows the action carried out; every fifth step ends the episode.
        reset=lambda key, params: (jnp.int32(0), jnp.array([-1.0])),
        step=lambda key, time, action, params: (time + 1, jnp.array([action], float), 0.0, time == 4),
        num_actions=10_000,
        max_episode_steps=9,
    ),
)


def carried_out(env, steps=4000):
    """Whether step t carried out what was carried out before it, the chosen actions being all different: [T, 5]."""
    state, _ = env.init(jax.random.key(0), env.params)

    def step(carry, t):
        state, last = carry
        state, time_step = env.step(jax.random.fold_in(jax.random.key(1), t), state, t, env.params)
        done = time_step.final_obs[0]
        return (state, done), (done == last, done == t)

    _, (stuck, chosen) = jax.jit(lambda: jax.lax.scan(step, (state, -1.0), jnp.arange(steps)))()
    assert (stuck ^ chosen).all()
    return np.asarray(stuck).reshape(-1, 5)


def test_actions_stick_as_often_as_said():
    stuck = carried_out(sticky(ECHO, 0.25))
    # Never in an episode's first step; else in a quarter: four standard deviations of 3,200 coins.
    assert not stuck[:, 0].any()
    assert abs(stuck[:, 1:].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 3200)
    # What sticks may stick again.
    assert (stuck[:, 1] & stuck[:, 2]).mean() > 0.03
    assert not carried_out(sticky(ECHO, 0.0), 50).any()


PICTURES = {
    np.bool_: [[[1, 0, 0], [0, 0, 1]], [[0, 1, 1], [1, 0, 0]]],
    np.uint8: [[[10, 0, 5], [255, 3, 1]], [[7, 8, 9], [0, 1, 2]]],
}
"""The first picture of an episode, and every other."""


@pytest.mark.parametrize(
    ("dtype", "parameters", "shown"),
    [
        (np.bool_, {}, [[[255, 0, 0], [0, 0, 255]], [[0, 255, 255], [255, 0, 0]]]),
        (np.bool_, {"mirrored": 1, "dimmed": 0.6}, [[[0, 0, 102], [102, 0, 0]], [[102, 102, 0], [0, 0, 102]]]),
        (np.uint8, {}, PICTURES[np.uint8]),
        (np.uint8, {"mirrored": 1}, [[[5, 0, 10], [1, 3, 255]], [[9, 8, 7], [2, 1, 0]]]),
        (np.uint8, {"dimmed": 0.8}, [[[2, 0, 1], [51, 1, 0]], [[1, 2, 2], [0, 0, 0]]]),
    ],
)
@pytest.mark.parametrize("channels", [(), (2,)])
def test_images_are_shown_as_their_parameters_say(dtype, parameters, shown, channels):
    first, others, *shown = (
        np.broadcast_to(np.asarray(x).reshape(2, 3, *[1 for _ in channels]), (2, 3, *channels))
        for x in (*PICTURES[dtype], *shown)
    )
    rules = Functions(
        reset=lambda key, params: (jnp.int32(0), jnp.asarray(first, dtype)),
        step=lambda key, time, action, params: (time + 1, jnp.asarray(others, dtype), 1.0, time == 1),
        num_actions=2,
        max_episode_steps=9,
    )
    env = wrap(from_functions("pictures", rules), ("view",))
    assert env.spec.obs_dtype == np.uint8
    env = env._replace(params=with_parameters(env.params, **{name: jnp.float32(x) for name, x in parameters.items()}))
    begun, steps = play(env, [0, 1])
    for seen, wanted in ((begun, 0), (steps.final_obs[0], 1), (steps.obs[0], 1), (steps.final_obs[1], 1), (steps.obs[1], 0)):
        np.testing.assert_array_equal(seen, shown[wanted])
        assert seen.dtype == np.uint8
    assert steps.terminated.tolist() == [False, True]
    assert steps.reward.tolist() == [1, 1]


def test_actions_stick_as_often_as_a_parameter_says():
    grid = ECHO._replace(
        spec=ECHO.spec._replace(obs_shape=(1, 1), obs_dtype=np.dtype(np.uint8)),
        init=lambda *args: (lambda state, obs: (state, obs.astype(jnp.uint8)[None]))(*ECHO.init(*args)),
        step=lambda *args: (
            lambda state, step: (
                state,
                step._replace(**{x: getattr(step, x).astype(jnp.uint8)[None] for x in ("obs", "final_obs")}),
            )
        )(*ECHO.step(*args)),
    )
    env = wrap(grid, ("view",))

    def stuck(probability):
        """The share of second steps of an episode that repeat the first's action, 7, and not the chosen 9."""

        def episode(key):
            state, _ = env.init(key, params)
            state, _ = env.step(jax.random.fold_in(key, 0), state, jnp.int32(7), params)
            return env.step(jax.random.fold_in(key, 1), state, jnp.int32(9), params)[1].final_obs[0, 0] == 7

        params = env.params._replace(sticky=jnp.float32(probability))
        return np.mean(jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 1000)))

    assert stuck(0) == 0
    assert abs(stuck(0.25) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)


def test_what_is_no_image_is_refused():
    assert refusal(lambda: wrap(WALK, ("view",))) == (
        "env is 'walk', with observations (2,) of float32: the wrapper view is for images of uint8 or bool"
    )


def test_actions_stick_on_the_host(host):
    running = make_env(host, wrappers=("sticky:0.9",)).start([7] * 40)
    # Forty walkers that step to the right once and then would stand: most go on to the goal.
    places = [np.asarray(running.step(np.full(40, action)).final_obs)[:, 0] for action in (1, 0, 0)]
    running.close()
    assert (places[0] == 1).all()
    assert (places[2] == 3).mean() > 0.5
    assert make_env(host, wrappers=("sticky:0.9",)).spec.num_actions == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("frame-stack", "wrappers has 'frame-stack': give frame-stack a whole number of frames, as frame-stack:4"),
        ("frame-stack:1.5", "wrappers has 'frame-stack:1.5': give frame-stack a whole number of frames, as frame-stack:4"),
        ("frame-stack:2:3", "wrappers has 'frame-stack:2:3': give frame-stack a whole number of frames, as frame-stack:4"),
        ("reward-clip:0", "wrappers has 'reward-clip:0': give reward-clip a bound above 0, as reward-clip:1"),
        ("sticky:1", "wrappers has 'sticky:1': give sticky a probability from 0 and below 1, as sticky:0.25"),
        ("time-limit:-1", "wrappers has 'time-limit:-1': give time-limit a whole number of steps, as time-limit:200"),
        ("view:1", "wrappers has 'view:1': give view without a number"),
        ("stiky:0.25", "wrappers is 'stiky:0.25', which has no meaning here: did you mean sticky?"),
        ("time-limit:6", "env 'walk' ends after 5 steps by itself, before a time limit of 6: give less"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(spec, message, host):
    assert message == refusal(lambda: wrap(WALK, (spec,)))
    if spec not in ("time-limit:6", "view:1"):
        assert message == refusal(lambda: make_env(host, wrappers=(spec,)))


def test_a_users_own(mine, host):
    def scaled(env, factor):
        def step(key, state, action, params):
            state, time_step = env.step(key, state, action, params)
            return state, time_step._replace(reward=factor * time_step.reward)

        return env._replace(step=step)

    mine.scaled, mine.nothing, mine.torn = scaled, lambda env: None, lambda env: env._replace(step=torn)
    mine.on_host = lambda env: gymnasium.wrappers.TransformReward(env, lambda reward: reward / 2)

    def torn(key, state, action, params):
        return state, TimeStep(jnp.zeros(3), jnp.zeros(3), 0.0, False, False)

    assert play(wrap(WALK, ("mine:scaled:0.5",)), [1, 1])[1].reward.tolist() == [5, 10]
    assert play_host(make_env(host, wrappers=("mine:on_host",)), [1, 1])[1].reward.tolist() == [5, 10]
    # The first is next to the environment.
    for order, reward in (("mine:scaled:0.5", "reward-clip:4"), 4.0), (("reward-clip:4", "mine:scaled:0.5"), 2.0):
        assert play(wrap(WALK, order), [1])[1].reward.tolist() == [reward]
        hosted = [name.replace("mine:scaled:0.5", "mine:on_host") for name in order]
        assert play_host(make_env(host, wrappers=hosted), [1])[1].reward.tolist() == [reward]
    assert "which makes a NoneType: make an envs.Environment" in refusal(lambda: wrap(WALK, ("mine:nothing",)))
    assert "wrappers is 'mine:torn', and its['final_obs'] has shape (3,): give (2,)" in one_line(
        lambda: wrap(WALK, ("mine:torn",))
    )


def test_evaluations_have_the_same_without_reward_clip(mine):
    mine.walk = walk
    config = DataParallelExperiment(env="mine:walk", wrappers=("frame-stack:2", "reward-clip:1", "time-limit:4"))
    env = make_env("mine:walk", wrappers=config.wrappers)
    evaluated = eval_env_of(config, env)
    assert evaluated.spec == env.spec
    assert play(env, [1, 1])[1].reward.tolist() == [1, 1]
    assert play(evaluated, [1, 1, 0, 0])[1].reward.tolist() == [10, 20, 20, 20]
    assert play(evaluated, [1, 1, 0, 0])[1].truncated.tolist() == [False, False, False, True]
    # Others, where they are given; the very same environment, where they are no others.
    other = dataclasses.replace(config, runner=RunnerConfig(eval_wrappers=("frame-stack:2", "time-limit:2")))
    assert play(eval_env_of(other, env), [1, 1])[1].truncated.tolist() == [False, True]
    same = dataclasses.replace(config, runner=RunnerConfig(eval_wrappers=config.wrappers))
    assert eval_env_of(same, env) is env
    wrong = dataclasses.replace(config, runner=RunnerConfig(eval_wrappers=("frame-stack:3",)))
    message = refusal(lambda: eval_env_of(wrong, env))
    assert message.startswith("runner.eval_wrappers is ('frame-stack:3',), with observations (6,), and those of training, (")
