"""Law 3: row i of a run over many seeds is the single run with seed i."""

import jax
import pytest
from laws.common import ENV, NETWORK, STEADY, assert_close

from dqn_jax.agent import make_agent, make_chunk
from dqn_jax.distributed.data_parallel import make_data_parallel

SEEDS = (5, 7, 11)
STEPS = 50


@pytest.fixture(scope="module")
def many():
    driver = make_data_parallel(ENV, NETWORK, STEADY, seeds=SEEDS, devices=jax.local_devices()[:1], steps_per_chunk=STEPS)
    state, info = driver.step(driver.step(driver.init())[0])
    # Clocks are shared by the lanes: give each lane its own view of them.
    lanes = state.replace(
        actor=state.actor.replace(clock=None),
        replay=state.replay.replace(added=None),
        learner=state.learner.replace(updates=None),
    )
    return state, lanes, info


@pytest.fixture(scope="module")
def single():
    agent = make_agent(ENV, NETWORK, STEADY)
    chunk = jax.jit(make_chunk(agent, STEPS))

    def run(seed):
        state, info = chunk(chunk(jax.jit(lambda key: agent.warm_up(agent.init(key)))(jax.random.key(seed)))[0])
        return state, info

    return run


@pytest.mark.parametrize("row", range(len(SEEDS)))
def test_row_is_the_single_run(many, single, row):
    state, lanes, info = many
    one, one_info = single(SEEDS[row])
    expected = one.replace(
        actor=one.actor.replace(clock=None), replay=one.replay.replace(added=None), learner=one.learner.replace(updates=None)
    )
    assert_close(jax.tree.map(lambda x: x[0, row], lanes), expected)
    assert state.actor.clock.count[0] == one.actor.clock.count
    assert state.replay.added.count[0] == one.replay.added.count
    assert state.learner.updates.count[0] == one.learner.updates.count == 2 * STEPS
    assert_close({name: values[row] for name, values in info.items()}, one_info, rtol=1e-4)


def test_another_seed_is_another_run(many, single):
    _, lanes, _ = many
    one, _ = single(SEEDS[1])
    with pytest.raises(AssertionError):
        assert_close(jax.tree.map(lambda x: x[0, 0], lanes.learner.params), one.learner.params)
