"""The federated driver compiles once, tells seeds and clients apart, gives each client its own stream, and refuses in words."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from federated.helpers import jit_in_a_hurry, refusal
from laws.common import ENV, STEADY, arrays, assert_bitwise, without_clocks
from laws.federation import config_of, small

from dqn_jax.agent import make_agent
from dqn_jax.config import NetworkConfig, RunnerConfig
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment
from dqn_jax.federated.driver import from_config, make_federated, named_parts
from dqn_jax.federated.heterogeneity import draw_all
from dqn_jax.mapping import stream_key
from dqn_jax.networks import make_network

pytestmark = pytest.mark.long

CLIENT = small(STEADY)
NETWORK = make_network(NetworkConfig(hidden_sizes=(8,)), ENV.spec)
DEVICES = jax.local_devices()
SEEDS = (3, 4)


def driver(config, env=ENV, agent=CLIENT, seeds=SEEDS, num_devices=1, rounds_per_step=1, parts=None, seeds_over_devices=True):
    return make_federated(
        env,
        NETWORK,
        agent,
        config,
        env_params=draw_all(env, config, len(seeds)).seen,
        seeds=seeds,
        devices=DEVICES[:num_devices],
        rounds_per_step=rounds_per_step,
        parts=parts,
        seeds_over_devices=seeds_over_devices,
    )


traces = []


def endless_step(*args):
    traces.append(1)
    state, step = ENV.step(*args)
    return state, step._replace(terminated=jnp.array(False), truncated=jnp.array(False))


# No episode ever ends, and clients begin apart in environments that differ.
ENDLESS = ENV._replace(step=endless_step)
APART = {"merge": {"initial": "per_client"}, "heterogeneity": "cartpole-length", "eval_clients": True}
# One of three clients is expected in a round, so often none comes.
FEW = {"num_clients": 3, "participation": "poisson", "num_clients_per_round": 1}
WEIGHTLESS = config_of(**FEW, local_steps=2, stragglers=0.5, weighting="episodes", **APART)


@pytest.fixture(scope="module")
def weightless():
    """Each seed on a device of its own: (driver, state before the first round)."""
    federated = driver(WEIGHTLESS, env=ENDLESS, num_devices=2)
    return federated, federated.init()


@pytest.fixture(scope="module")
def four_rounds(weightless):
    """(driver, parameters before and after four rounds, infos, traces of the environment by then, what each round compiled)."""
    federated, start = weightless
    compiled = []
    listener = logging.Handler()
    listener.emit = lambda record: compiled.append(record.getMessage())
    logger = logging.getLogger("jax")
    params, infos, counts, programs = [federated.params(start)], [], [], []
    # The first round gives its argument away.
    state = federated.init()
    logger.addHandler(listener)
    with jax.log_compiles():
        for _ in range(4):
            compiled.clear()
            state, info = federated.step(state)
            programs.append([message for message in compiled if message.startswith("Compiling")])
            counts.append(len(traces))
            params.append(federated.params(state))
            infos.append(info)
    logger.removeHandler(listener)
    return federated, params, infos, counts, programs


def test_rounds_are_traced_and_compiled_once(four_rounds):
    """However many clients take part, and for however many steps each."""
    _, _, infos, counts, programs = four_rounds
    assert counts == counts[:1] * 4
    assert [bool(program) for program in programs] == [True, False, False, False]
    participants = np.array([info["participants"] for info in infos])
    assert participants.min() == 0
    assert len(np.unique(participants)) > 2
    steps = [info["updates"] for info in infos]
    # Both somebody who managed one of two steps, and somebody who managed both.
    assert (participants < steps).any()
    assert (steps < 2 * participants).any()


def test_a_round_without_weight_is_a_problem(four_rounds):
    """Participants of whom none finished an episode weigh nothing; a round in which there are none is no error."""
    federated, params, infos, _, _ = four_rounds
    for info in infos:
        weightless = info["participants"] > 0
        np.testing.assert_array_equal(info["weightless"], weightless)
        assert info["finite"].all()
        seeds = np.array(SEEDS)[weightless].tolist()
        expected = (
            f"seed(s) {seeds}: the weights of a round's participants sum to zero under federated.weighting 'episodes': raise "
            "federated.local_steps, or weigh by 'uniform'"
        )
        assert federated.problem(info) == (expected if weightless.any() else None)
        # Of nobody there is no mean.
        np.testing.assert_array_equal(np.isnan(info["loss"]), ~weightless)
    assert {bool(value) for info in infos for value in info["weightless"]} == {True, False}
    # The server stays where it is.
    for after in params[1:]:
        assert_bitwise(after["global"], params[0]["global"])


@pytest.fixture(scope="module")
def federations(weightless):
    """{number of clients: (driver, state)} before the first round; six clients are divided over two devices."""
    sixes = driver(config_of(num_clients=6, **APART), env=ENDLESS, num_devices=2, seeds_over_devices=False)
    return {3: weightless, 6: (sixes, sixes.init())}


def test_a_client_is_the_same_in_a_larger_federation(federations):
    """Its environment, its stream, its parameters and the experience of its warm-up, wherever it lives.

    To the last bit, but for what the environment's arithmetic gives: it is rounded otherwise where more clients are in a block.
    """
    # Leaves [seed, 1, client, ...] and [device, seed, client, ...].
    three = arrays(without_clocks(federations[3][1].clients))
    six = {
        name: np.moveaxis(values, 0, 1).reshape(2, 6, *values.shape[3:])
        for name, values in arrays(without_clocks(federations[6][1].clients)).items()
    }
    assert three.keys() == six.keys()
    for name, values in three.items():
        if any(part in name for part in (".obs", ".env_state", ".s_tm1", ".s_t")):
            np.testing.assert_allclose(values[:, 0], six[name][:, :3], rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert values[:, 0].tobytes() == six[name][:, :3].tobytes(), name
    # Negative control: other clients, and those of other seeds, are others.
    for name in (".stream", ".agent.stream", ".agent.actor.streams", ".agent.actor.env_params.length", ".agent.actor.obs"):
        assert len(np.unique(six[name].reshape(12, -1), axis=0)) == 12, name
    assert len(np.unique(six[".agent.replay.storage.s_t"].reshape(12, -1), axis=0)) == 12


def test_params_are_in_the_order_of_seeds_and_clients(federations):
    agent = make_agent(ENV, NETWORK, CLIENT)

    @jit_in_a_hurry
    def alone():
        own = lambda seed, i: agent.init(stream_key(seed, i)).learner.params  # noqa: E731
        return jax.vmap(jax.vmap(own, (None, 0)), (0, None))(np.uint32(SEEDS), np.arange(6))

    expected = jax.device_get(alone())
    assert len(np.unique(expected["head"]["kernel"].reshape(12, -1), axis=0)) == 12
    for count, (federated, state) in federations.items():
        params = federated.params(state)
        assert set(params) == {"global", "clients"}
        for name, values in arrays(expected).items():
            clients, server = (arrays(params[kind])[name] for kind in ("clients", "global"))
            np.testing.assert_allclose(clients, values[:, :count], rtol=1e-6, atol=1e-7, err_msg=name)
            # Before anything is merged, the server stands at the mean of clients that begin apart.
            np.testing.assert_allclose(server, values[:, :count].mean(axis=1), rtol=1e-5, atol=1e-7, err_msg=name)


def test_environments_are_those_of_a_larger_draw(federations):
    three, six = (draw_all(ENV, config_of(num_clients=count, **APART), 2).seen.length for count in (3, 6))
    np.testing.assert_array_equal(three, six[:, :3])
    placed = np.asarray(federations[6][1].clients.agent.actor.env_params.length)
    np.testing.assert_array_equal(np.moveaxis(placed, 0, 1).reshape(2, 6), six)


def test_the_servers_parameters_alone_unless_asked(weightless):
    quiet = driver(dataclasses.replace(WEIGHTLESS, eval_clients=False), num_devices=2)
    assert set(quiet.params(weightless[1])) == {"global"}


def infos(**changes):
    good, bad = np.array([True, True]), np.array([False, False])
    quiet = {"finite": good, "weightless": bad, "uncounted": bad, "broken": np.zeros((2, 3), bool)}
    return quiet | changes


def test_problems_name_seeds_clients_and_remedies():
    config = config_of(num_clients=3)
    tolerant = driver(config)
    by_function = dataclasses.replace(config, aggregator="dqn_jax.federated.aggregation:mean_of")
    strict = driver(by_function)
    assert tolerant.problem(infos()) is None
    broken = np.array([[False, False, False], [True, False, True]])
    # A mean leaves clients out that are not finite: then nothing is wrong.
    assert tolerant.problem(infos(broken=broken)) is None
    message = strict.problem(infos(broken=broken, finite=np.array([True, False])))
    assert message == (
        "client(s) [0, 2] of seed 4: an update is not finite, and this aggregator does not leave it out: lower "
        "agent.learning_rate or set agent.max_grad_norm"
    )
    everywhere = strict.problem(infos(broken=~broken, finite=np.array([False, False])))
    assert everywhere.startswith("client(s) [0, 1, 2] of seed 3, client(s) [1] of seed 4: an update is not finite")
    # Where updates are finite, it was the server's step that was not.
    for made, clients in ((tolerant, broken), (strict, np.zeros((2, 3), bool))):
        message = made.problem(infos(broken=clients, finite=np.array([True, False])))
        assert message.startswith("seed(s) [4]: the server's parameters are not finite: lower federated.server_learning_rate")


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        # 16 frames of two environments are 8 acts, and the first transition of two steps takes one more.
        ({}, 3 * 9 * 2),
        # Gathered in each round, and counted there.
        ({"merge": {"replay": "clear"}}, 0),
        # Who is at work from the start has gathered it, whatever becomes of it.
        ({"merge": {"replay": "clear"}, "participation": "buffered", "num_clients_per_round": 1}, 3 * 9 * 2),
    ],
)
def test_frames_before_the_first_round(options, frames):
    federated = driver(config_of(num_clients=3, **options), rounds_per_step=4)
    assert (federated.initial_frames, federated.initial, federated.per_step, federated.unit) == (frames, 0, 4, "rounds")


def test_a_part_of_ones_own_replaces_the_named_one():
    """It is the parts given that are asked, and not those that the config names."""
    config = config_of(num_clients=3)
    parts = named_parts(ENV, NETWORK, CLIENT, config)
    leaves_nobody_out = parts.aggregator._replace(leaves_out_non_finite=False)
    made = driver(config, parts=parts._replace(aggregator=leaves_nobody_out))
    broken = infos(broken=np.eye(2, 3, dtype=bool), finite=np.array([False, True]))
    assert made.problem(broken).startswith("client(s) [0] of seed 3: ")


def experiment(federated=None, **changes):
    fields = {
        "num_seeds": 2,
        "num_devices": 2,
        "rounds": 4,
        "agent": CLIENT,
        "network": NetworkConfig(hidden_sizes=(8,)),
        "runner": RunnerConfig(log_every=2, eval_every=2, checkpoint_every=2),
    }
    return FederatedExperiment(
        federated=FederatedConfig(**{"num_clients": 3, "unseen_envs": 1} | (federated or {})), **fields | changes
    )


@pytest.mark.parametrize(
    ("federated", "changes", "words"),
    [
        ({}, {"seeds_over_devices": False}, ("federated.num_clients is 3", "2 devices", "make it a multiple")),
        ({}, {"num_seeds": 3}, ("num_seeds is 3", "2 devices", "make it a multiple")),
        ({}, {"num_devices": 5}, ("num_devices is 5", "4 cpu device(s)")),
        ({}, {"env": "CartPole-v2"}, ("env is 'CartPole-v2'", "did you mean CartPole-v1?")),
        (
            {"heterogeneity": "cartpole-lenght"},
            {},
            ("federated.heterogeneity is 'cartpole-lenght'", "did you mean cartpole-length?"),
        ),
        ({"heterogeneity": "zzz"}, {}, ("federated.heterogeneity is 'zzz'", "choose one of none, cartpole-length")),
        (
            {"heterogeneity": "acrobot-links"},
            {},
            (
                "federated.heterogeneity is 'acrobot-links'",
                "for Acrobot-v1",
                "env is 'CartPole-v1'",
                "choose none or cartpole-length",
            ),
        ),
    ],
)
def test_what_cannot_be_used_is_refused(federated, changes, words):
    message = refusal(lambda: from_config(experiment(federated, **changes)))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"transforms": ("int9",)}, ("federated.transforms is 'int9'", "did you mean int8?")),
        ({"aggregator": "json:nothing"}, ("federated.aggregator is 'json:nothing'", "correct it")),
        ({"weighting": ":thing"}, ("federated.weighting is ':thing'", "give module:attribute")),
        ({"server_optimizer": "fedadma"}, ("federated.server_optimizer is 'fedadma'", "did you mean fedadam?")),
    ],
)
def test_a_part_without_meaning_is_refused(part, words):
    message = refusal(lambda: driver(config_of(num_clients=3, **part)))
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": (1, 2, 3)}, "num_seeds is 3, which does not divide over 2 devices: make it a multiple of 2"),
        (
            {"seeds_over_devices": False},
            "federated.num_clients is 3, which does not divide over 2 devices: make it a multiple of 2",
        ),
    ],
)
def test_what_does_not_divide_is_refused(options, words):
    assert refusal(lambda: driver(config_of(num_clients=3), num_devices=2, **options)) == words


@pytest.mark.parametrize(("num_seeds", "devices"), [(5, 1), (6, 3)])
def test_left_open_as_many_devices_are_used_as_repetitions_divide_over(num_seeds, devices):
    made, evaluator = from_config(experiment(num_seeds=num_seeds, num_devices=None))
    assert len(made.devices) == devices
    assert (made.per_step, len(evaluator.columns), len(evaluator.columns[0])) == (2, num_seeds, 3 + 1 + 1)
