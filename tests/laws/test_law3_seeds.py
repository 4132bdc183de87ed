"""Law 3: row i of a run over many seeds is the single run with seed i."""

import jax
import numpy as np
import pytest
from laws import federation
from laws.common import ENV, NETWORK, STEADY, assert_close, assert_differs, clocks, without_clocks

from dqn_jax.agent import make_agent, make_chunk
from dqn_jax.distributed.data_parallel import make_data_parallel
from dqn_jax.federated.driver import make_federated
from dqn_jax.federated.heterogeneity import draw_all
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
    counts = {"frames": np.int64(STEPS * STEADY.num_envs), "updates": np.int64(STEPS)}
    assert_close({name: values[row] for name, values in info.items()}, one_info | counts, rtol=1e-4)


def test_another_seed_is_another_run(many, single):
    state, _ = many
    one, _ = single(SEEDS[1])
    assert_differs(jax.tree.map(lambda x: x[0, 0], state.learner.params), one.learner.params)


@pytest.mark.long
def test_a_repetition_of_a_federation_is_the_single_federation():
    """Row i of many federations is the one with seed i and its draw of environments, also where clients' clocks differ."""
    config = federation.config_of(
        num_clients=3,
        local_steps=5,
        heterogeneity="cartpole-length",
        participation="fixed",
        num_clients_per_round=2,
        stragglers=0.5,
    )
    agent = federation.small(STEADY)
    envs = draw_all(ENV, config, len(SEEDS)).seen
    driver = make_federated(
        ENV, NETWORK, agent, config, env_params=envs, seeds=SEEDS, devices=jax.local_devices()[:1], rounds_per_step=6
    )
    many, info = driver.step(driver.init())
    own = jax.tree.map(lambda x: x[1], envs)
    one, _ = federation.train(agent, config, 6, env_params=own, seed=SEEDS[1])
    assert_close(jax.tree.map(lambda x: x[0, 1], many.clients), one.clients)
    assert_close(jax.tree.map(lambda x: x[0, 1], many.server), one.server)
    assert_differs(jax.tree.map(lambda x: x[0, 0], many.server.params), one.server.params)
    # Clients really differed in how far they got.
    assert len(set(one.clients.agent.learner.updates.count.tolist())) > 1
    assert info["participants"].tolist() == [12] * 3
