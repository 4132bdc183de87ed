"""Law 2: all replicas are bitwise identical after any number of updates, while each sees its own experience."""

import jax
import numpy as np
import pytest
from laws.common import ENV, FREE, NETWORK

from dqn_jax.agent import make_agent, make_chunk
from dqn_jax.config import TrainingError
from dqn_jax.distributed.data_parallel import make_data_parallel
from dqn_jax.mapping import check_replicas, over, place


@pytest.mark.parametrize("num_devices", [2, pytest.param(4, marks=pytest.mark.long)])
def test_replicas_stay_identical(num_devices):
    driver = make_data_parallel(ENV, NETWORK, FREE, seeds=[3, 4], devices=jax.local_devices()[:num_devices], steps_per_chunk=25)
    state = driver.init()
    before = jax.tree.map(np.asarray, state.learner.params)
    for _ in range(3):
        state, _ = driver.step(state)
        driver.check(state)
    replay = np.asarray(state.replay.storage.s_tm1)
    assert not np.array_equal(replay[0], replay[1])
    assert not np.array_equal(before["head"]["kernel"], np.asarray(state.learner.params["head"]["kernel"]))


def test_without_the_mean_the_check_fails():
    devices = jax.local_devices()[:2]
    agent = make_agent(ENV, NETWORK, FREE, axis_name=None, num_shards=2)

    def run(shard):
        state = agent.warm_up(agent.init(jax.random.key(3), shard=shard))
        return make_chunk(agent, 2)(state)[0]

    state = over(run, "devices", devices)(place(np.arange(2), devices))
    with pytest.raises(TrainingError, match=r"replicas differ in .*\[1\]"):
        check_replicas(state.learner.params)
