"""Law 3: row i of a run over many seeds is the single run with seed i."""

import jax
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_close, clocks, without_clocks

from dqn_jax.agent import make_agent, make_chunk
from dqn_jax.distributed.data_parallel import make_data_parallel
from dqn_jax.mapping import stream_key

SEEDS = (5, 7, 11)
STEPS = 50


@pytest.fixture(scope="module")
def many():
    driver = make_data_parallel(ENV, NETWORK, STEADY, seeds=SEEDS, devices=jax.local_devices()[:1], steps_per_chunk=STEPS)
    state, info = driver.step(driver.step(driver.init())[0])
    return state, info


@pytest.fixture(scope="module")
def single():
    agent = make_agent(ENV, NETWORK, STEADY)
    chunk = jax.jit(make_chunk(agent, STEPS))

    def run(seed):
        state, info = chunk(chunk(jax.jit(lambda key: agent.warm_up(agent.init(key)))(stream_key(seed)))[0])
        return state, info

    return run


@pytest.mark.parametrize("row", range(len(SEEDS)))
def test_row_is_the_single_run(many, single, row):
    state, info = many
    one, one_info = single(SEEDS[row])
    assert_close(jax.tree.map(lambda x: x[0, row], without_clocks(state)), without_clocks(one))
    assert [int(count[0]) for count in clocks(state)] == [int(count) for count in clocks(one)]
    assert int(one.learner.updates.count) == 2 * STEPS
    assert_close({name: values[row] for name, values in info.items()}, one_info, rtol=1e-4)


def test_another_seed_is_another_run(many, single):
    state, _ = many
    one, _ = single(SEEDS[1])
    with pytest.raises(AssertionError):
        assert_close(jax.tree.map(lambda x: x[0, 0], state.learner.params), one.learner.params)
