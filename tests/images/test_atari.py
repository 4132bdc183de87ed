"""Atari games: every step is that of the emulator itself, and whoever can step an environment on the host trains in them."""

import dataclasses
import json

import ale_py
import jax
import numpy as np
import pytest

from dqn_jax.config import AgentConfig, InputError, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, engines, server_on_workers, workers
from dqn_jax.distributed.actors import make_job
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment, ServerConfig, ServerExperiment
from dqn_jax.distributed.presets import ATARI_DQN, ATARI_RAINBOW
from dqn_jax.envs import env_of, eval_env_of, make_env
from dqn_jax.play.episodes import film
from dqn_jax.play.load import load
from dqn_jax.runner import loop

WHOLE_SCREEN = ("img_height=210", "img_width=160")
"""So that nothing is resized."""


def walk(running, actions):
    """Steps [T] of E games, actions [T, E]."""
    return [jax.device_get(running.step(action)) for action in actions]


def test_a_step_is_four_frames_of_the_emulator_of_which_the_last_two_are_joined():
    env = make_env("atari:Boxing", None, WHOLE_SCREEN, ("frame-stack:3",))
    running = env.start([7])
    # Another start of the same game has the same seed and the same first frame.
    own = ale_py.ALEInterface()
    own.setBool("sound", False)
    own.setInt("random_seed", 7)
    own.setFloat("repeat_action_probability", 0.0)
    own.loadROM(ale_py.roms.get_rom_path("boxing"))
    own.reset_game()
    frames = [own.getScreenGrayscale()] * 3
    np.testing.assert_array_equal(running.obs[0], np.stack(frames, -1))
    actions, total = np.random.default_rng(0).integers(0, 18, (200, 1)), 0.0
    for action, step in zip(actions, walk(running, actions), strict=True):
        reward, screens = 0.0, []
        for _ in range(4):
            reward += own.act(own.getMinimalActionSet()[action[0]])
            screens.append(own.getScreenGrayscale())
        frames = [*frames[1:], np.maximum(screens[2], screens[3])]
        np.testing.assert_array_equal(step.obs[0], np.stack(frames, -1))
        assert step.reward[0] == reward
        assert not step.terminated[0]
        total += abs(reward)
    assert total > 0


def lived(wrappers, steps=400, **options):
    env = make_env("atari:Breakout", options.pop("limit", None), (), wrappers)
    actions = np.random.default_rng(1).integers(0, 4, (steps, 2))
    running = env.start([1, 2])
    return env, running.obs, walk(running, actions)


@pytest.mark.parametrize("wrappers", [("frame-stack:4", "no-op:30"), ("frame-stack:4", "no-op:30", "life-loss")])
def test_stacks_begin_with_the_first_frame_and_end_with_the_games_own(wrappers):
    _, before, steps = lived(wrappers)
    before, ends = np.array(before), 0
    for step in steps:
        np.testing.assert_array_equal(step.final_obs[..., :-1], before[..., 1:])
        ended = step.terminated | step.truncated
        np.testing.assert_array_equal(step.obs[~ended], step.final_obs[~ended])
        first = step.obs[ended]
        np.testing.assert_array_equal(first, np.repeat(first[..., -1:], 4, axis=-1))
        assert not step.truncated.any()
        before, ends = step.obs, ends + ended.sum()
    # A game has five lives.
    assert (3 if "life-loss" in wrappers else 1) * 3 <= ends


def test_a_life_lost_ends_an_episode_and_not_the_game():
    """The bricks that are gone stay gone."""
    bricks = slice(24, 42)
    _, _, steps = lived(("frame-stack:4", "life-loss"))
    gone = [int((step.obs[0, bricks, 8:76, -1] == 0).sum()) for step in steps]
    lost = [time for time, step in enumerate(steps) if step.terminated[0]]
    kept = [time for time in lost if gone[time] >= gone[time - 1] > gone[0]]
    new = [time for time in lost if gone[time] < gone[time - 1]]
    assert kept
    assert new
    assert len(lost) == pytest.approx(5 * len(new), abs=4)


def test_a_limit_cuts_a_game_and_is_no_termination():
    env, _, steps = lived((), steps=30, limit=12)
    assert env.spec.max_episode_steps == 12
    ends = [time for time, step in enumerate(steps) if step.truncated.all()]
    assert ends == [11, 23]
    assert not any(step.terminated.any() for step in steps)
    # What the last step led to is this game's picture (where it cuts, not to the pixel that of one that goes on), not the next.
    _, _, uncut = lived((), steps=12)
    unlike = [(picture != uncut[11].obs).sum() for picture in (steps[11].final_obs, steps[11].obs)]
    assert unlike[0] < unlike[1]
    assert make_env("atari:Breakout").spec.max_episode_steps == 27_000 == 108_000 // 4


def test_the_protocol_of_machado_is_the_default_and_evaluations_have_the_games_own_rewards():
    config = ActorLearnerExperiment(env="atari:SpaceInvaders")
    env = env_of(config, on_host=True)
    assert env.spec == make_env("atari:SpaceInvaders", None, (), ("frame-stack:4",)).spec
    assert env.spec.obs_shape == (84, 84, 4)
    assert env.spec.stack == 4
    trained, played = ([], [])
    actions = np.random.default_rng(0).integers(0, 6, (300, 1))
    for one, rewards in ((env, trained), (eval_env_of(config, env), played)):
        rewards += [float(step.reward[0]) for step in walk(one.start([3]), actions)]
    assert set(trained) == {0.0, 1.0}
    assert max(played) > 1
    assert np.clip(played, -1, 1).tolist() == trained


def test_actions_stick():
    """The same games and actions: alike without, another game with; and the same game with the same seed."""

    def seen(wrappers, seed=5):
        actions = np.random.default_rng(0).integers(0, 6, (60, 1))
        return np.stack([step.obs[0] for step in walk(make_env("atari:Pong", None, (), wrappers).start([seed]), actions)])

    plain, sticky = seen(()), seen(("sticky:0.25",))
    np.testing.assert_array_equal(plain, seen((), seed=6))
    np.testing.assert_array_equal(sticky, seen(("sticky:0.25",)))
    assert np.any(plain != sticky)
    assert np.any(sticky != seen(("sticky:0.25",), seed=6))
    # Up to 30 frames without an action, drawn by the seed.
    assert any(np.any(seen(("no-op:30",), seed) != plain) for seed in range(4))


@pytest.mark.parametrize(
    ("name", "kwargs", "wrappers", "words"),
    [
        ("atari:Pongo", (), (), "env is 'atari:Pongo', which is none of "),
        ("atari:Pong", ("colour=1",), (), "env_kwargs has colour, and atari games: "),
        ("atari:Pong", (), ("json:dumps",), "wrappers has 'json:dumps', and games know no-op, "),
        ("atari:Pong", (), ("life-loss:3",), "wrappers has 'life-loss:3': give life-loss without a number"),
        ("atari:Pong", (), ("no-op",), "wrappers has 'no-op': give no-op a whole number of frames"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(name, kwargs, wrappers, words):
    with pytest.raises(InputError) as refused:
        make_env(name, None, kwargs, wrappers)
    assert str(refused.value).startswith(words)
    assert "\n" not in str(refused.value)


def test_names_of_two_words_are_found():
    assert make_env("atari:MsPacman").spec.num_actions == 9
    assert make_env("atari:SpaceInvaders").spec.num_actions == 6


COMMON = {
    "env": "atari:Pong",
    "env_kwargs": ("img_height=36", "img_width=36"),
    "max_episode_steps": 30,
    "num_seeds": 1,
    "num_devices": 1,
    "total_frames": 260,
    "agent": AgentConfig(num_envs=4, batch_size=8, replay_capacity=240, learning_starts=40, n_step=2),
    "network": NetworkConfig(trunk="nature", channels=1, hidden_sizes=(8,)),
    "runner": RunnerConfig(log_every=80, eval_every=100_000, eval_episodes=1, eval_epsilon=0.01, checkpoint_every=80),
}
ACTORS = ActorLearnerExperiment(actors=ActorLearnerConfig(num_actors=2, acts_per_block=4, exploration="shared"), **COMMON)
SERVER = ServerExperiment(server=ServerConfig(num_workers=2), backend="threads", **COMMON)


def trained(config, run_dir, **changes):
    """The summary of a run."""
    config = dataclasses.replace(config, run_dir=run_dir, **changes)
    makers = {ActorLearnerExperiment: (make_job, actor_learner), ServerExperiment: (workers.make_job, server_on_workers)}
    make, module = makers[config.__class__]
    number = config.actors.num_actors if hasattr(config, "actors") else config.server.num_workers
    engine = engines.start(config.backend, lambda: make(config), number)
    return loop.run(*_parts(module.from_config(config, engine), config))


def _parts(driver_and_evaluator, config):
    return driver_and_evaluator[0], config, driver_and_evaluator[1]


@pytest.mark.parametrize("config", [ACTORS, SERVER])
def test_actors_and_workers_train_and_go_on_after_a_resume(tmp_path, config):
    summary = trained(config, tmp_path)
    assert summary["updates"] > 10
    longer = trained(config, tmp_path, resume=True, total_frames=500)
    assert longer["updates"] > summary["updates"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]).all() for line in lines)
    # A game that is cut after thirty steps has had at most one point.
    assert -2 <= longer["final_return_mean"] <= 0


def test_a_trained_policy_is_loaded_played_and_drawn(tmp_path):
    trained(ACTORS, tmp_path)
    pictures, per_second, result = film(load(tmp_path))
    assert len(pictures) == int(result.lengths[0]) + 1 == 31
    assert per_second > 0
    assert {picture.shape for picture in pictures} == {(144, 144, 3)}
    assert np.any(pictures[0] != pictures[-1])


def test_a_replay_of_a_million_frames_of_the_preset_fits_in_8_gb():
    engine = engines.start("in-process", lambda: None, 4)
    config = dataclasses.replace(ATARI_DQN, env="atari:Pong")
    driver, _ = actor_learner.from_config(config, engine)
    assert driver.replay_bytes < 8e9
    assert ATARI_RAINBOW.agent.n_step == 3
