"""A run whose replays were not saved fills them again when it is resumed, says so, and goes on from what it had learnt."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from laws.common import STEADY

from dqn_jax.config import DataParallelExperiment, InputError, NetworkConfig, RunnerConfig
from dqn_jax.distributed import actor_learner, actors, data_parallel, engines
from dqn_jax.distributed.config import ActorLearnerConfig, ActorLearnerExperiment
from dqn_jax.federated import driver as federated
from dqn_jax.federated.config import FederatedExperiment
from dqn_jax.runner import checkpoint, loop
from dqn_jax.runner.records import SUMMARY

pytestmark = pytest.mark.long

AGENT = dataclasses.replace(STEADY, num_envs=4, batch_size=16, replay_capacity=256, learning_starts=32, memory="prioritised")
RUNNER = RunnerConfig(log_every=80, eval_every=10_000, eval_episodes=1, checkpoint_every=80, checkpoint_replay=False)
COMMON = {"agent": AGENT, "network": NetworkConfig(hidden_sizes=(8,)), "runner": RUNNER, "total_frames": 272, "num_devices": 1}
IN_PARALLEL = DataParallelExperiment(num_seeds=2, seeds_over_devices=True, **COMMON)
ACTORS = ActorLearnerExperiment(backend="in-process", actors=ActorLearnerConfig(num_actors=2, acts_per_block=4), **COMMON)


def parts_of(config):
    """(driver, evaluator, states that the run saved)."""
    if config.__class__ is ActorLearnerExperiment:
        engine = engines.start("in-process", lambda: actors.make_job(config), config.actors.num_actors)
        driver, evaluator = actor_learner.from_config(config, engine)
    else:
        driver, evaluator = data_parallel.from_config(config)
    return driver, evaluator


def agent_of(state):
    return state.agent if isinstance(state, actor_learner.LearnerRunState) else state


@pytest.mark.parametrize("config", [IN_PARALLEL, ACTORS])
def test_a_run_without_saved_replays_goes_on_with_new_ones(tmp_path, capsys, config):
    config = dataclasses.replace(config, run_dir=tmp_path)
    driver, evaluator = parts_of(config)
    loop.run(driver, config, evaluator)
    paths = sorted((tmp_path / "checkpoints").iterdir())
    assert len(paths) == 3
    assert not [file for path in paths for file in path.glob("replay*")]
    longer = dataclasses.replace(config, resume=True, total_frames=512)
    driver, evaluator = parts_of(longer)
    before = checkpoint.read(paths[-1]).restore(driver.init())
    seen = []

    def step(state):
        seen.append(jax.device_get((agent_of(state).learner.params, agent_of(state).replay.added.count)))
        return driver.step(state)

    capsys.readouterr()
    loop.run(driver._replace(step=step), longer, evaluator)
    said = capsys.readouterr().out
    assert "its replays were not saved: they are filled again, so the run is not the same to the bit" in said
    params, added = seen[0]
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(agent_of(before).learner.params))
    assert added.max() == (0 if config.__class__ is ActorLearnerExperiment else AGENT.warm_up_frames)
    summary = json.loads((tmp_path / SUMMARY).read_text())
    trained = driver.initial_frames + (512 - driver.initial + driver.per_step - 1) // driver.per_step * driver.per_step
    assert summary["env_steps"] == config.num_seeds * (trained + driver.initial_frames)


def test_a_replay_is_filled_by_acting_with_the_restored_parameters():
    """Greedy actors, so that what they do is what the parameters say."""
    greedy = dataclasses.replace(AGENT, epsilon_start=0.0, epsilon_end=0.0, memory="uniform")
    driver, _ = data_parallel.from_config(dataclasses.replace(IN_PARALLEL, agent=greedy))
    state = driver.init()
    always = jax.tree.map(np.zeros_like, jax.device_get(state.learner.params))
    (bias,) = [leaf for leaf in jax.tree.leaves(always["head"]) if leaf.shape[-1:] == (2,) and leaf.ndim == 3]
    bias[..., 1] = 1
    params = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), always, state.learner.params)
    # The first transitions began before, with the old parameters.
    later = slice((greedy.n_step - 1) * greedy.num_envs, greedy.warm_up_frames)
    untrained = np.unique(np.asarray(state.replay.storage.a_tm1)[..., : greedy.learning_starts])
    state = driver.refill(state.replace(learner=state.learner.replace(params=params)))
    assert untrained.tolist() == [0, 1]
    assert np.unique(np.asarray(state.replay.storage.a_tm1)[..., later]).tolist() == [1]
    assert np.asarray(state.replay.added.count).tolist() == [greedy.warm_up_frames]


def test_who_cannot_fill_replays_again_must_save_them(tmp_path):
    config = FederatedExperiment(run_dir=tmp_path, runner=RUNNER, num_devices=1)
    driver, evaluator = federated.from_config(config)
    with pytest.raises(InputError, match=r"^runner\.checkpoint_replay is False, and this way of training cannot"):
        loop.run(driver, config, evaluator)
