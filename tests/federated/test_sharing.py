"""Personal parameters stay with their client: divided, merged, broadcast, trained and billed as worked out by hand."""

import dataclasses
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federated.helpers import one_line, refusal
from federated.quadratics import CENTRES, RATE, SGD, SLOPES, by_hand, descended, driver_of, quadratic
from laws.common import ENV, FREE, assert_bitwise, assert_close
from laws.federation import config_of, small

from dqn_jax.agent import AgentState, hyperparams_of
from dqn_jax.config import AgentConfig
from dqn_jax.federated.client import ClientState
from dqn_jax.federated.driver import named_parts
from dqn_jax.federated.server import ServerState
from dqn_jax.federated.sharing import make_sharing
from dqn_jax.learner import LearnerState, make_optimizer
from dqn_jax.networks import Network, QValues
from dqn_jax.types import Clock


def tree(trunk, head):
    """Parameters of two groups, each all of one value."""
    scale = {"trunk": {"b": (), "w": (2, 2)}, "head": {"w": (2,)}}
    fill = lambda value, shapes: {name: jnp.full(shape, value, jnp.float32) for name, shape in shapes.items()}  # noqa: E731
    return {"trunk": fill(trunk, scale["trunk"]), "head": fill(head, scale["head"])}


GROUPS = Network(lambda key: tree(1, 1), lambda params, obs, key: QValues(params["head"]["w"]))
ADAM = AgentConfig(optimizer="adam", learning_rate=0.1)


def divided(personal="head", agent_config=ADAM, network=GROUPS, **merge):
    return make_sharing(network, agent_config, config_of(personal=personal, merge=merge))


@pytest.fixture
def own(monkeypatch):
    """A user's module."""
    module = types.ModuleType("own_parts")
    module.lopsided = lambda rate: optax.chain(
        optax.trace(0.9),
        optax.masked(optax.scale_by_adam(), lambda params: jax.tree.map(lambda x: x.ndim > 0, params)),
        optax.scale(-rate),
    )
    module.flat = lambda rate: optax.flatten(optax.adam(rate))
    module.small = lambda params, most=1: jax.tree.map(lambda x: x.ndim <= most, params)
    module.weights = lambda params: {"head": True, "trunk": False}
    module.arrays = lambda params: jax.tree.map(lambda x: jnp.array(True), params)
    module.everything = lambda params: jax.tree.map(lambda x: True, params)
    module.fails = lambda params: params["missing"]
    monkeypatch.setitem(sys.modules, "own_parts", module)


@pytest.mark.parametrize(
    ("personal", "merged"), [("none", tree(2, 2)), ("head", tree(2, 1)), ("trunk", tree(1, 2)), ("own_parts:small:0", None)]
)
def test_split_and_merge_by_hand(own, personal, merged):
    sharing = divided(personal)
    if merged is None:
        merged = tree(2, 2)
        merged["trunk"]["b"] = jnp.float32(1)
    part = sharing.shared(tree(2, 2))
    assert_bitwise(sharing.merged(tree(1, 1), part), merged)
    # What is personal is no leaf; an axis of clients in front does not matter.
    assert {float(x.mean()) for x in jax.tree.leaves(part)} == {2.0}
    rows = jax.tree.map(lambda x: jnp.stack([x, x]), tree(2, 2))
    assert_bitwise(sharing.shared(rows), jax.tree.map(lambda x: jnp.stack([x, x]), part))
    assert len(jax.tree.leaves(part)) == sum(float(x.mean()) == 2 for x in jax.tree.leaves(merged))


OPTIMIZERS = {
    "adam": {"optimizer": "adam"},
    "centred rmsprop, clipped": {"optimizer": "rmsprop", "max_grad_norm": 100.0},
    "sgd, clipped": {"optimizer": "sgd", "max_grad_norm": 100.0},
    "momentum": {"optimizer": "sgd:0.9"},
    "a user's": {"optimizer": "own_parts:lopsided"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_go_with_their_parameters(own, name):
    """The shared part is what the optimizer has after the same steps on the shared parameters alone."""
    agent_config = AgentConfig(**OPTIMIZERS[name])
    sharing = divided("head", agent_config, moments="average")
    optimizer = make_optimizer(agent_config)(hyperparams_of(agent_config).learner)

    def after(params, steps):
        state = optimizer.init(params)
        for _ in range(steps):
            _, state = optimizer.update(params, state, params)
        return state

    mine, theirs = after(tree(3, 4), 1), after(sharing.shared(tree(5, 6)), 2)
    assert_bitwise(sharing.shared_moments(after(tree(5, 6), 2)), theirs)
    merged = sharing.merged_moments(mine, theirs)
    assert jax.tree.structure(merged) == jax.tree.structure(mine)
    # All of theirs, and of the head what was mine.
    assert_bitwise(sharing.shared_moments(merged), theirs)
    head = lambda state: [x for path, x in jax.tree_util.tree_leaves_with_path(state) if "head" in str(path)]  # noqa: E731
    assert_bitwise(head(merged), head(mine))
    assert len(head(mine)) == {"adam": 2, "centred rmsprop, clipped": 2, "momentum": 1, "a user's": 3}.get(name, 0)


@pytest.mark.parametrize(
    ("personal", "words"),
    [
        ("haed", "did you mean head?"),
        ("head:2", "called with 1 argument(s) and then its 1 number(s), which do not fit"),
        ("own_parts:weights", "does not make the tree of the parameters with True or False for each leaf: correct it"),
        ("own_parts:arrays", "does not make the tree of the parameters with True or False for each leaf: correct it"),
        ("own_parts:everything", "nothing is left to share: make fewer parameters personal"),
        ("own_parts:small:2", "nothing is left to share"),
        ("own_parts:fails", f"which fails at {__file__}:"),
    ],
)
def test_what_cannot_be_divided_is_refused(own, personal, words):
    message = one_line(lambda: divided(personal))
    assert message.startswith(f"federated.personal is {personal!r}")
    assert words in message


def test_other_refusals(own):
    bare = GROUPS._replace(init=lambda key: {"w": jnp.float32(1)})
    assert refusal(lambda: divided("head", network=bare)).endswith("have no group of that name: give module:function")
    flat = AgentConfig(optimizer="own_parts:flat")
    message = refusal(lambda: divided("head", flat, moments="reset"))
    assert "the moments of agent.optimizer 'own_parts:flat' do not divide as the parameters do" in message
    # They need not be divided where a client keeps them, or where all is shared.
    divided("head", flat)
    divided("none", flat, moments="reset")


def moments(trunk, head, count):
    """Adam's state, after that of no clipping."""
    adam = optax.ScaleByAdamState(jnp.int32(count), tree(trunk, head), tree(trunk + 1, head + 1))
    return (optax.EmptyState(), (adam, optax.EmptyState()))


@pytest.mark.parametrize("target", ["keep", "global", "average"])
@pytest.mark.parametrize("kept", ["keep", "reset", "average"])
def test_a_broadcast_by_hand(target, kept):
    """Own head, target's head and head's moments stay, whatever becomes of the trunk's."""
    config = config_of(personal="head", merge={"target": target, "moments": kept})
    parts = named_parts(ENV, GROUPS, ADAM, config)
    shared = parts.sharing.shared
    clock = Clock(jnp.int32(0))
    learner = LearnerState(tree(1, 2), tree(3, 4), moments(5, 7, count=9), hyperparams_of(ADAM).learner, {}, clock)
    state = ClientState(AgentState((), learner, (), (), clock), control=(), transform=(), stream=())
    server = ServerState(
        params=shared(tree(10, 99)),
        opt_state=(),
        learning_rate=(),
        control=(),
        moments=parts.sharing.shared_moments(moments(30, 40, count=50)) if kept == "average" else (),
        target_params=shared(tree(20, 99)) if target == "average" else (),
    )
    begun = parts.client.begin(state, server, jnp.int32(1)).agent.learner
    assert_bitwise(begun.params, tree(10, 2))
    assert_bitwise(begun.target_params, tree({"keep": 3, "global": 10, "average": 20}[target], 4))
    (_, (adam, _)), expected = begun.opt_state, {"keep": (5, 6, 9), "reset": (0, 0, 0), "average": (30, 31, 50)}[kept]
    assert_bitwise((adam.mu, adam.nu, adam.count), (tree(expected[0], 7), tree(expected[1], 8), jnp.int32(expected[2])))


@pytest.mark.parametrize(
    ("options", "down", "up"),
    [
        # Of the trunk 5 numbers in two leaves, of four bytes each; a report is five.
        ({}, 20, 20 + 20),
        ({"algorithm": "scaffold"}, 40, 40 + 20),
        ({"merge": {"target": "average"}}, 40, 40 + 20),
        # Adam's two moments and its count.
        ({"merge": {"moments": "average"}}, 64, 64 + 20),
        # A byte of each number, and a scale of each leaf.
        ({"transforms": ("int8",)}, 20, 5 + 8 + 20),
        # Two of five numbers with their positions.
        ({"transforms": ("top-k:0.4",)}, 20, 2 * 8 + 20),
    ],
)
def test_bytes_are_those_of_the_shared_part(options, down, up):
    parts = named_parts(ENV, GROUPS, dataclasses.replace(small(FREE), optimizer="adam"), config_of(personal="head", **options))
    state = jax.eval_shape(lambda: parts.client.init(jax.random.key(0), ENV.params, None))
    assert parts.client.num_bytes(state) == (down, up)


START = 5.0
"""Where each client's own weight begins; the shared one begins at 0."""
PAIR = Network(
    init=lambda key: {"own": jnp.float32(START), "w": jnp.float32(0.0)},
    apply=lambda params, obs, key: QValues(jnp.stack([params["w"], params["own"]])),
)


def own_weight(params):
    return {"own": True, "w": False}


PERSONAL = {"personal": "federated.test_sharing:own_weight", "local_steps": 2}


def paired(rounds, clients=2, **options):
    agent_config = options.pop("agent_config", SGD)
    poison = options.pop("poison", None)
    config = config_of(num_clients=clients, **PERSONAL | options)
    weights, state, infos = quadratic(config, rounds, poison=poison, agent_config=agent_config, network=PAIR)
    assert state.server.params["own"] is None
    return weights, state, infos


OWN_ENDS = [descended(START, client, 4) for client in range(2)]
"""Of a client's own weight after four plain steps: two rounds."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "shared"),
    [
        ({}, {}),
        ({"algorithm": "fedprox", "proximal": 2.0}, {"mu": 2.0}),
        ({"algorithm": "scaffold"}, {"scaffold": True}),
        # Of a single number nothing is rounded away.
        ({"transforms": ("int8",)}, {}),
    ],
)
def test_two_rounds_by_hand(options, shared):
    """The shared weight as in a federation that has no other; the own one as if there were no federation."""
    weights, state, infos = paired(2, **options)
    expected, controls, control = by_hand((2, 2), 2, **shared)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    learner = state.clients.agent.learner
    np.testing.assert_allclose(learner.params["own"], OWN_ENDS, rtol=1e-6)
    ends = np.asarray(learner.params["w"])
    assert (np.abs(ends - weights[1]) > 1e-3).all()
    np.testing.assert_allclose(infos["delta_norm"], np.abs(np.diff([0.0, *expected])), rtol=1e-4)
    # A drift is that of what was sent.
    np.testing.assert_allclose(infos["drift_sum"][1], np.abs(ends - weights[1]).sum(), rtol=1e-4)
    if shared.get("scaffold"):
        np.testing.assert_allclose(state.clients.control["w"], controls, rtol=1e-5)
        np.testing.assert_allclose(state.server.control["w"], control, rtol=1e-5)
        assert state.clients.control["own"] is None


@pytest.mark.long
def test_two_rounds_of_averaged_moments_by_hand():
    """Adam, one step a round: the shared weight goes on from the mean of both moments, the own one from its client's."""
    agent_config = dataclasses.replace(SGD, optimizer="adam")
    weights, state, _ = paired(2, local_steps=1, merge={"moments": "average"}, agent_config=agent_config)

    def step(w, mean, square, count):
        gradient = SLOPES[:2] * (w - CENTRES[:2])
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        return w - RATE * mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + SGD.optimizer_eps), mean, square

    shared, alone = (0.0, 0.0, 0.0), (START, 0.0, 0.0)
    for count in (1, 2):
        shared, alone = tuple(x.mean() for x in step(*shared, count)), step(*alone, count)
    np.testing.assert_allclose(weights[1], shared[0], rtol=1e-4)
    adam = state.clients.agent.learner.opt_state[1][0]
    np.testing.assert_allclose([state.clients.agent.learner.params["own"], adam.mu["own"], adam.nu["own"]], alone, rtol=1e-4)
    assert state.server.moments[1][0].mu["own"] is None


@pytest.mark.long
def test_two_rounds_of_averaged_targets_by_hand():
    """Copied after every third update: the own weight's copy is the client's, of three plain steps."""
    agent_config = dataclasses.replace(SGD, target_period=3)
    weights, state, _ = paired(2, merge={"target": "average"}, agent_config=agent_config)
    copies = [descended(weights[0], client) for client in range(2)]
    target = state.clients.agent.learner.target_params
    np.testing.assert_allclose(target["w"], copies, rtol=1e-6)
    np.testing.assert_allclose(target["own"], [descended(START, client, 3) for client in range(2)], rtol=1e-6)
    np.testing.assert_allclose(state.server.target_params["w"], np.mean(copies), rtol=1e-6)
    assert state.server.target_params["own"] is None


@pytest.mark.long
def test_a_client_that_breaks_goes_back_whole():
    """Client 1 breaks in the second of three rounds: it loses that round, of its own weight too, and no other."""
    _, state, infos = paired(3, poison={1: 3})
    assert infos["left_out"].tolist() == [0, 1, 0]
    np.testing.assert_allclose(state.clients.agent.learner.params["own"], [descended(START, 0, 6), OWN_ENDS[1]], rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("seeds_over_devices", [True, False])
def test_a_drivers_policies_are_of_each_client(seeds_over_devices):
    """Two repetitions of two clients on two devices: the server's weight beside each client's own, in the order of clients."""
    config = config_of(num_clients=2, eval_clients=True, **PERSONAL)
    options = {"network": PAIR, "seeds": (3, 4), "num_devices": 2, "seeds_over_devices": seeds_over_devices}
    driver = driver_of(config, **options)
    state, info = driver.step(driver.init())
    driver.check(state)
    params = driver.params(state)
    assert set(params) == {"personal", "clients"}
    ends = np.array([descended(0.0, client, 2) for client in range(2)])
    own = [descended(START, client, 2) for client in range(2)]
    both = {"own": np.float32([own] * 2), "w": np.full((2, 2), ends.mean(), np.float32)}
    assert_close(params["personal"], both)
    assert_close(params["clients"], both | {"w": np.float32([ends] * 2)})
    # A broadcast of one weight to each of two, and of each its change and five numbers.
    assert info["bytes"].tolist() == [2 * (4 + 4 + 20)] * 2
