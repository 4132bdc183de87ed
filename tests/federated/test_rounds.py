"""Whole rounds by hand, on federations of one weight: who trains from what, what a merge makes of it, and what is counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.quadratics import (
    CENTRES,
    NETWORK,
    RATE,
    SGD,
    SLOPES,
    by_hand,
    descended,
    driver_of,
    env_params_of,
    parts_of,
    planned,
    quadratic,
)
from laws.common import assert_bitwise, assert_differs
from laws.federation import config_of

from dqn_jax.federated.aggregation import mean_of, stateless
from dqn_jax.federated.rounds import make_federation
from dqn_jax.federated.transforms import compressor
from dqn_jax.runner import checkpoint

pytestmark = pytest.mark.long

DOWN, UP = 4, 4 + 20
"""Bytes of a broadcast of one weight, and of an update with its five numbers."""


def changes_of(start, steps=2):
    """What each of three clients would send from `start`."""
    return np.array([descended(start, client, steps) - start for client in range(3)])


def chunk(driver, rounds):
    """(server's w after each call, infos) of a driver with one round a call."""
    state, weights, infos = driver.init(), [], []
    for _ in range(rounds):
        state, info = driver.step(state)
        weights.append(driver.params(state)["global"]["w"].item())
        infos.append({name: values[0] for name, values in info.items()})
    return weights, infos


def test_buffered_rounds_train_from_what_was_sent():
    """FedBuff: a client descends from the parameters of the merge at which it started, and its update shrinks with its age."""
    config = config_of(num_clients=3, local_steps=2, participation="buffered", num_clients_per_round=1, concurrency=2)
    script = planned(
        starts=[[False, False, True], [True, False, False], [False, True, False], [False, False, True]],
        delivers=[[True, False, False], [False, True, False], [False, False, True], [True, False, False]],
        staleness=[[0, 0, 0], [0, 1, 0], [0, 0, 2], [2, 0, 0]],
    )
    weights, infos = chunk(driver_of(config, change=script), 4)
    # Clients 0, 1 and 2 left with the initial 0; client 0 left again with the result of the first merge.
    first = changes_of(0.0)
    expected = [first[0]]
    expected.append(expected[0] + first[1] / np.sqrt(2))
    expected.append(expected[1] + first[2] / np.sqrt(3))
    expected.append(expected[2] + changes_of(expected[0])[0] / np.sqrt(3))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    assert [info["staleness"] for info in infos] == [0, 1, 2, 2]
    # Two were at work from the start; then each that delivers is replaced by one.
    assert [info["bytes"] for info in infos] == [3 * DOWN + UP, *[DOWN + UP] * 3]
    assert [info["updates"] for info in infos] == [2] * 4


def test_a_buffer_of_two_is_the_mean_of_shrunk_updates():
    config = config_of(num_clients=3, local_steps=1, participation="buffered", num_clients_per_round=2, concurrency=1)
    script = planned(starts=[False, False, True], delivers=[True, True, False], staleness=[1, 3, 0])
    weights, _, infos = quadratic(config, 1, script)
    sent = changes_of(0.0, steps=1)
    np.testing.assert_allclose(weights, [(sent[0] / np.sqrt(2) + sent[1] / 2) / 2], rtol=1e-6)
    assert infos["staleness_sum"].tolist() == [4]
    assert infos["participants"].tolist() == [2]


def test_who_drops_out_was_sent_parameters_and_sends_nothing():
    config = config_of(num_clients=3, local_steps=2, drop_out=0.5)
    weights, infos = chunk(driver_of(config, change=planned(starts=[True] * 3, delivers=[True, False, False])), 2)
    np.testing.assert_allclose(weights, [descended(0.0, 0, 2), descended(0.0, 0, 4)], rtol=1e-6)
    assert [info["bytes"] for info in infos] == [3 * DOWN + UP] * 2
    assert [info["participants"] for info in infos] == [1, 1]


def test_who_is_not_chosen_stays_as_it_is():
    config = config_of(num_clients=3, local_steps=2, participation="fixed", num_clients_per_round=2)
    chosen = [True, False, True]
    weights, state, infos = quadratic(config, 1, planned(starts=chosen, delivers=chosen))
    np.testing.assert_allclose(weights, [changes_of(0.0)[[0, 2]].mean()], rtol=1e-6)
    np.testing.assert_allclose(state.clients.agent.learner.params["w"], changes_of(0.0) * chosen, rtol=1e-6)
    assert state.clients.agent.learner.updates.count.tolist() == [2, 0, 2]
    assert infos["updates"].tolist() == [4]


def test_a_round_ends_with_its_episodes():
    """Every second update ends one: two episodes are four of ten steps, in each round."""
    config = config_of(num_clients=2, local_steps=10, local_episodes=2)
    weights, _, infos = quadratic(config, 2)
    np.testing.assert_allclose(weights, by_hand((4, 4), 2)[0], rtol=1e-5)
    assert infos["updates"].tolist() == [8, 8]
    assert infos["episodes"].tolist() == [4, 4]
    assert infos["return_sum"].tolist() == [28, 28]


def test_scaffold_divides_by_the_updates_taken():
    """Stragglers, and two updates in each step: a control is the mean of the gradients that there were."""
    config = config_of(num_clients=2, local_steps=4, stragglers=0.5, algorithm="scaffold")
    agent_config = dataclasses.replace(SGD, updates_per_step=2)
    weights, state, _ = quadratic(config, 3, planned(steps=[1, 3]), agent_config=agent_config)
    expected, controls, control = by_hand((1, 3), 3, scaffold=True, updates_per_step=2)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    np.testing.assert_allclose(state.clients.control["w"], controls, rtol=1e-5)
    np.testing.assert_allclose(state.server.control["w"], control, rtol=1e-5)


@pytest.mark.parametrize(("weighting", "weights"), [("uniform", (1, 1)), ("samples", (1, 3)), ("episodes", (1, 2))])
def test_weights_of_unequal_clients(weighting, weights):
    """By their frames, one a step; or by their episodes, of which every second update ends one."""
    config = config_of(num_clients=2, local_steps=4, stragglers=0.5, weighting=weighting)
    steps = [2, 4] if weighting == "episodes" else [1, 3]
    merged, _, _ = quadratic(config, 1, planned(steps=steps))
    sent = [descended(0.0, client, count) for client, count in enumerate(steps)]
    np.testing.assert_allclose(merged, [np.average(sent, weights=weights)], rtol=1e-6)


def test_the_median_of_three():
    config = config_of(num_clients=3, local_steps=2, aggregator="median")
    weights, _, _ = quadratic(config, 2)
    first = np.median(changes_of(0.0))
    np.testing.assert_allclose(weights, [first, first + np.median(changes_of(first))], rtol=1e-6)


def clipped(last, sent, radius):
    """The next centre of centred clipping, of single numbers: none moves it by more than the radius."""
    return last + np.mean(np.clip(sent - last, -radius, radius))


def test_centred_clipping_by_hand():
    """Around 0 at first, and then around the last aggregate; a round of nobody moves neither, though it is between two."""
    some = {"participation": "fixed", "num_clients_per_round": 2}
    config = config_of(num_clients=3, local_steps=2, aggregator="centred-clip:0.2", **some)
    deliver = [[True, True, False], [False] * 3, [False, True, True]]
    weights, state, infos = quadratic(config, 3, planned(starts=[[True] * 3], delivers=deliver))
    # Their changes are 0.19, 0.83 and -0.2: the second is cut.
    first = clipped(0.0, changes_of(0.0)[:2], 0.2)
    assert first == pytest.approx((0.19 + 0.2) / 2)
    second = clipped(first, changes_of(first)[1:], 0.2)
    np.testing.assert_allclose(weights, [first, first, first + second], rtol=1e-5)
    np.testing.assert_allclose(state.server.aggregator["w"], second, rtol=1e-5)
    np.testing.assert_allclose(infos["delta_norm"], np.abs([first, 0, second]), rtol=1e-5)
    assert infos["participants"].tolist() == [2, 0, 2]


def test_a_client_that_breaks_does_not_touch_the_centre():
    config = config_of(num_clients=2, local_steps=2, aggregator="centred-clip:0.2")
    _, state, infos = quadratic(config, 2, poison={1: 2})
    assert infos["left_out"].tolist() == [0, 1]
    first = clipped(0.0, changes_of(0.0)[:2], 0.2)
    np.testing.assert_allclose(state.server.aggregator["w"], clipped(first, changes_of(first)[:1], 0.2), rtol=1e-5)


def test_the_centre_goes_through_a_checkpoint(tmp_path):
    """Two rounds, saved, restored into a state that has not begun, and two more are four rounds, to the last bit."""
    driver = driver_of(config_of(num_clients=3, local_steps=2, aggregator="centred-clip:0.2"), rounds_per_step=2)
    half, _ = driver.step(driver.init())
    checkpoint.save(tmp_path, half, {}, 2, {}, {}, keep=1)
    whole, _ = driver.step(half)
    found, _ = checkpoint.newest_valid(tmp_path)
    again, _ = driver.step(found.restore(driver.init()))
    assert_bitwise(again, whole)
    start = driver.init()
    begun_anew = found.restore(start)
    begun_anew = begun_anew.replace(server=begun_anew.server.replace(aggregator=start.server.aggregator))
    assert_differs(driver.step(begun_anew)[0].server.params, whole.server.params)


HALVES = compressor(lambda key, delta: jax.tree.map(lambda x: x / 2, delta), payload=lambda before: before._replace(bits=16))


def test_what_a_compressor_holds_back_is_sent_later():
    config = config_of(num_clients=2, local_steps=2, transforms=("federated.test_rounds:HALVES",))
    weights, infos = chunk(driver_of(config), 2)
    first = changes_of(0.0)[:2] / 2
    second = (changes_of(first.mean())[:2] + first) / 2
    np.testing.assert_allclose(weights, [first.mean(), first.mean() + second.mean()], rtol=1e-6)
    assert infos[0]["bytes"] == 2 * (DOWN + UP - 2)


def test_averaged_moments_by_hand():
    """Adam, one step a round: each goes on from the mean of both moments, at the count that both have."""
    config = config_of(num_clients=2, local_steps=1, merge={"moments": "average"})
    agent_config = dataclasses.replace(SGD, optimizer="adam")
    weights, state, _ = quadratic(config, 3, agent_config=agent_config)
    w, mean, square, expected = 0.0, 0.0, 0.0, []
    for count in range(1, 4):
        gradients = SLOPES[:2] * (w - CENTRES[:2])
        means, squares = 0.9 * mean + 0.1 * gradients, 0.999 * square + 0.001 * gradients**2
        w += (-RATE * means / (1 - 0.9**count) / (np.sqrt(squares / (1 - 0.999**count)) + SGD.optimizer_eps)).mean()
        mean, square = means.mean(), squares.mean()
        expected.append(w)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    adam = state.server.moments[1][0]
    np.testing.assert_allclose([adam.mu["w"], adam.nu["w"]], [mean, square], rtol=1e-4)
    assert int(adam.count) == 3


def test_averaged_moments_begin_as_the_optimizer_does():
    """Adagrad's sum of squares is 0.1 in optax before the first step: 0 + 0.1 g / sqrt(0.1 + g^2), of two clients."""
    config = config_of(num_clients=2, local_steps=1, merge={"moments": "average"})
    weights, _, _ = quadratic(config, 1, agent_config=dataclasses.replace(SGD, optimizer="adagrad"))
    gradients = -SLOPES[:2] * CENTRES[:2]
    np.testing.assert_allclose(weights, [(-RATE * gradients / np.sqrt(0.1 + gradients**2)).mean()], rtol=1e-5)


def test_averaged_targets_by_hand():
    """Copied after every third update: so after the first of the second round, from where that round began."""
    config = config_of(num_clients=2, local_steps=2, merge={"target": "average"})
    weights, state, _ = quadratic(config, 2, agent_config=dataclasses.replace(SGD, target_period=3))
    copies = [descended(weights[0], client) for client in range(2)]
    np.testing.assert_allclose(state.clients.agent.learner.target_params["w"], copies, rtol=1e-6)
    np.testing.assert_allclose(state.server.target_params["w"], np.mean(copies), rtol=1e-6)


def test_clients_that_begin_apart():
    network = NETWORK._replace(init=lambda key: {"w": jax.random.normal(key)})
    config = config_of(num_clients=2, local_steps=2, merge={"initial": "per_client"})
    federation = make_federation(network, parts_of(config, network=network), config)
    state = jax.jit(federation.init)(0, env_params_of(2), jnp.arange(2))
    own = np.asarray(state.clients.agent.learner.params["w"])
    assert abs(own[0] - own[1]) > 0.01
    run = jax.jit(federation.round)
    state, _ = run(state)
    # From their mean, by the mean of their changes.
    first = np.mean([descended(own[client], client, 2) for client in range(2)])
    np.testing.assert_allclose(state.server.params["w"], first, rtol=1e-5)
    state, _ = run(state)
    np.testing.assert_allclose(state.server.params["w"], np.mean([descended(first, i, 2) for i in range(2)]), rtol=1e-5)


def test_means_are_of_those_that_counted():
    """Client 1 breaks in the second round: loss and drift are those of the two others."""
    config = config_of(num_clients=3, local_steps=2)
    weights, infos = chunk(driver_of(config, poison={1: 2}), 2)
    start, sent = weights[0], changes_of(weights[0])[[0, 2]]
    np.testing.assert_allclose(weights[1], start + sent.mean(), rtol=1e-6)
    # The loss of a step is its gradient.
    gradients = [SLOPES[i] * (descended(start, i, steps) - CENTRES[i]) for i in (0, 2) for steps in (0, 1)]
    np.testing.assert_allclose(infos[1]["loss"], np.mean(gradients), rtol=1e-5)
    np.testing.assert_allclose(infos[1]["drift"], np.abs(sent - sent.mean()).mean(), rtol=1e-5)
    assert [info["left_out"] for info in infos] == [0, 1]


@pytest.mark.parametrize(
    ("poison", "second", "mean", "left_out", "sent"),
    [
        ({}, [True, True], (1 + (2 + 4) / 2 + 2 + (6 + 8) / 2) / 4, 0, 4),
        ({1: 2}, [True, True], (1 + (2 + 4) / 2 + 2) / 3, 1, 4),
        ({}, [True, False], (1 + (2 + 4) / 2 + 2) / 3, 0, 3),
    ],
    ids=["both", "one breaks", "one is absent"],
)
def test_the_numbers_of_a_loss_are_averaged_as_it_is_and_nobody_is_billed_for_them(poison, second, mean, left_out, sent):
    """Client i has i + 1 times its updates after each step: it makes i + 1 steps in each of two rounds, which are one chunk.

    In the second round client 1 takes part as in the first, breaks, or is absent.
    """
    some = {"participation": "poisson", "num_clients_per_round": 2, "stragglers": 0.5}
    there = [[True, True], second]
    script = planned(steps=[1, 2], starts=there, delivers=there)
    driver = driver_of(config_of(num_clients=2, local_steps=2, **some), rounds_per_step=2, change=script, poison=poison)
    _, info = driver.step(driver.init())
    assert info["left_out"].tolist() == [left_out]
    np.testing.assert_allclose(info["so_far"], [mean], rtol=1e-6)
    assert info["bytes"].tolist() == [sent * (DOWN + UP)]


def test_the_client_that_broke_first_is_named():
    """The server passes it on, so that in the last of the chunk's rounds everybody is broken."""
    config = config_of(num_clients=3, local_steps=2)
    strict = stateless(mean_of)
    driver = driver_of(config, rounds_per_step=4, poison={2: 3}, change=lambda parts: parts._replace(aggregator=strict))
    _, info = driver.step(driver.init())
    assert info["broken"].tolist() == [[False, False, True]]
    assert driver.problem(info).startswith("client(s) [2] of seed 0: an update is not finite")


def test_a_round_in_which_nobody_counts_is_named_with_its_clients():
    """In the second round the only two that deliver break; a third has broken before, and a round of nobody is none."""
    part = jnp.array([[True, True, True], [True, False, True], [False] * 3, [True] * 3])
    config = config_of(num_clients=3, local_steps=2, participation="poisson", num_clients_per_round=3)
    options = {"rounds_per_step": 4, "change": planned(starts=part, delivers=part)}
    driver = driver_of(config, poison={0: 2, 2: 2}, **options)
    _, info = driver.step(driver.init())
    assert (info["finite"].tolist(), info["uncounted"].tolist()) == ([False], [True])
    assert driver.problem(info) == (
        "client(s) [0, 2] of seed 0: no update of a round is finite, and the server has nothing to merge: "
        "lower agent.learning_rate or set agent.max_grad_norm"
    )
    # One that counts is enough; and a round without anybody is no trouble.
    driver = driver_of(config, poison={0: 2}, **options)
    _, info = driver.step(driver.init())
    assert (info["finite"].tolist(), info["uncounted"].tolist(), info["left_out"].tolist()) == ([True], [False], [1])
    assert driver.problem(info) is None
