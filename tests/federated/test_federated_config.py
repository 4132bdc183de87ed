"""Every setting of a federated run that cannot be used is refused in one sentence: the field, its value and the remedy."""

import dataclasses
import math

import pytest
from federated.helpers import refusal

from dqn_jax.config import MAX_COUNT, AgentConfig, RunnerConfig
from dqn_jax.federated.config import FederatedConfig, FederatedExperiment, MergeConfig, PooledExperiment

FED, MERGE = "federated.", "federated.merge."
BAD_COUNTS = (0, -1, True, 8.0, 0.5, math.nan, math.inf, "8", None, 2**31)
BAD_NUMBERS = (-0.1, math.nan, math.inf, -math.inf, "0.5", [0.5], None, True)
BAD_WORDS = ("zzz", "", None, 1, "Plain")
NAMES = ("heterogeneity", "aggregator", "weighting", "server_optimizer", "personal")
OPTIONAL = ("local_episodes", "num_clients_per_round", "concurrency", "block_size")

REFUSED = [
    *(
        (FederatedConfig, FED, name, value, "whole number from 1")
        for name in ("num_clients", "local_steps")
        for value in BAD_COUNTS
    ),
    *((FederatedConfig, FED, name, value, "from 1 to") for name in OPTIONAL for value in BAD_COUNTS if value is not None),
    *((FederatedConfig, FED, name, v, "from 0 to") for name in ("env_seed", "unseen_envs") for v in BAD_COUNTS if v != 0),
    *(
        (FederatedConfig, FED, name, value, "finite number of at least 0")
        for name in ("heterogeneity_level", "proximal", "drop_out", "stragglers")
        for value in BAD_NUMBERS
    ),
    *(
        (FederatedConfig, FED, name, value, "of at least 0 and at most 1")
        for name in ("heterogeneity_level", "drop_out", "stragglers")
        for value in (1.01, 2)
    ),
    *((FederatedConfig, FED, "server_learning_rate", value, "finite number above 0") for value in (0.0, *BAD_NUMBERS)),
    *((FederatedExperiment, "", name, value, "from 1 to") for name in ("num_seeds", "rounds") for value in BAD_COUNTS),
    *(
        (FederatedExperiment, "", name, value, "from 1 to")
        for name in ("num_devices", "max_episode_steps")
        for value in BAD_COUNTS
        if value is not None
    ),
    *((FederatedExperiment, "", "seed", value, "from 0 to") for value in BAD_COUNTS if value != 0),
]

CHOICES = {
    (FederatedConfig, FED, "participation"): ("all", "fixed", "poisson", "buffered"),
    (FederatedConfig, FED, "service_time"): ("constant", "uniform", "exponential", "lognormal"),
    (FederatedConfig, FED, "algorithm"): ("plain", "fedprox", "scaffold", "fednova"),
    (MergeConfig, MERGE, "parameters"): ("global", "keep"),
    (MergeConfig, MERGE, "moments"): ("reset", "keep", "average"),
    (MergeConfig, MERGE, "target"): ("global", "keep", "average"),
    (MergeConfig, MERGE, "replay"): ("keep", "clear"),
    (MergeConfig, MERGE, "epsilon"): ("own", "restart"),
    (MergeConfig, MERGE, "initial"): ("common", "per_client"),
}
FLAGS = [
    (FederatedConfig, FED, "eval_clients"),
    (FederatedExperiment, "", "seeds_over_devices"),
    (FederatedExperiment, "", "resume"),
]


@pytest.mark.parametrize(("kind", "section", "name", "value", "remedy"), REFUSED)
def test_a_bad_value_is_refused_by_name(kind, section, name, value, remedy):
    message = refusal(lambda: kind(**{name: value}))
    assert message.startswith(f"{section}{name} is {value}: give ")
    assert remedy in message


@pytest.mark.parametrize(("kind", "section", "name"), CHOICES)
@pytest.mark.parametrize("value", BAD_WORDS)
def test_a_bad_word_is_refused_with_the_good_ones(kind, section, name, value):
    words = ", ".join(map(repr, CHOICES[kind, section, name]))
    assert refusal(lambda: kind(**{name: value})) == f"{section}{name} is {value!r}: give one of {words}"


@pytest.mark.parametrize(("kind", "section", "name"), FLAGS)
@pytest.mark.parametrize("value", ["yes", None, 2])
def test_a_bad_flag_is_refused(kind, section, name, value):
    assert refusal(lambda: kind(**{name: value})) == f"{section}{name} is {value!r}: give one of True, False"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [None, 3, max, ("mean",)])
def test_what_is_not_a_name_is_refused(name, value):
    """Which names there are is found out where they are looked up."""
    words = f"federated.{name} is {value!r}: give a name; a Python object goes to make_federated"
    assert refusal(lambda: FederatedConfig(**{name: value})) == words


@pytest.mark.parametrize(
    ("value", "message"),
    [
        # One name is a sequence of letters.
        ("int8", "federated.transforms is 'int8': give a tuple of names, even of one"),
        (["int8"], "federated.transforms is ['int8']: give a tuple of names, even of one"),
        ("", "federated.transforms is '': give a tuple of names, even of one"),
        (("int8", 3), "federated.transforms is 3: give a name; a Python object goes to make_federated"),
        ((max,), f"federated.transforms is {max!r}: give a name; a Python object goes to make_federated"),
    ],
)
def test_transforms_are_a_tuple_of_names(value, message):
    assert refusal(lambda: FederatedConfig(transforms=value)) == message


def test_every_field_with_a_range_or_a_choice_is_tested():
    """What is left are names, looked up where they are used, and parts that check themselves."""
    tested = {(kind, name) for kind, _, name, *_ in (*REFUSED, *CHOICES, *FLAGS)}
    rest = {
        FederatedConfig: {*NAMES, "transforms", "merge"},
        MergeConfig: set(),
        FederatedExperiment: {"env", "env_kwargs", "wrappers", "run_dir", "agent", "network", "federated", "runner"},
    }
    for kind, others in rest.items():
        fields = {field.name for field in dataclasses.fields(kind)}
        assert fields - {name for of, name in tested if of is kind} == others


def buffered(**settings):
    return FederatedConfig(**{"participation": "buffered", "num_clients_per_round": 3} | settings)


def pooled(federated=None, **settings):
    return PooledExperiment(federated=federated or FederatedConfig(), **settings)


def experiment(federated=None, agent=None, runner=None, **settings):
    return FederatedExperiment(
        federated=federated or FederatedConfig(),
        agent=agent or AgentConfig(),
        runner=runner or RunnerConfig(log_every=1, eval_every=10, checkpoint_every=50),
        **settings,
    )


SGD = AgentConfig(optimizer="sgd")
NOVA = FederatedConfig(algorithm="fednova")
ALONE = MergeConfig(parameters="keep")

COMBINATIONS = [
    (
        lambda: FederatedConfig(drop_out=1.0),
        ("federated.drop_out is 1", "nobody would ever send anything", "make it less"),
    ),
    *(
        (
            lambda kind=kind: FederatedConfig(participation=kind),
            ("federated.num_clients_per_round is None", f"participation {kind!r}", "needs a number"),
        )
        for kind in ("fixed", "poisson", "buffered")
    ),
    (
        lambda: FederatedConfig(num_clients_per_round=7),
        ("federated.num_clients_per_round is 7", "participation 'all' takes all 8", "choose 'fixed' or 'poisson'"),
    ),
    *(
        (
            lambda kind=kind: FederatedConfig(participation=kind, num_clients_per_round=9),
            ("federated.num_clients_per_round is 9", "federated.num_clients 8", "ask for no more"),
        )
        for kind in ("fixed", "poisson", "buffered")
    ),
    *(
        (
            lambda kind=kind, each=each: FederatedConfig(participation=kind, num_clients_per_round=each, concurrency=2),
            ("federated.concurrency is 2", f"participation {kind!r}", "leave it out"),
        )
        for kind, each in (("all", None), ("fixed", 4), ("poisson", 4))
    ),
    # Three that delivered and six at work are nine.
    (
        lambda: buffered(concurrency=6),
        ("federated.concurrency is 6", "3 updates a merge", "8 clients", "at most federated.num_clients"),
    ),
    # Nobody is left to be at work.
    (lambda: buffered(num_clients_per_round=8), ("federated.concurrency is None", "8 updates a merge", "8 clients", "at most")),
    *(
        (
            lambda algorithm=algorithm: buffered(algorithm=algorithm),
            (f"federated.algorithm is {algorithm!r}", "buffered", "choose 'plain' or 'fedprox'"),
        )
        for algorithm in ("scaffold", "fednova")
    ),
    *(
        (
            lambda name=name, value=value: FederatedConfig(**{name: value}, merge=ALONE),
            (f"federated.{name} is {value!r}", "merge.parameters 'keep'", "on their own send nothing", "leave it out"),
        )
        for name, value in (
            ("algorithm", "fedprox"),
            ("algorithm", "scaffold"),
            ("algorithm", "fednova"),
            ("transforms", ("int8",)),
            ("aggregator", "median"),
            ("weighting", "samples"),
            ("server_optimizer", "fedadam"),
            ("server_learning_rate", 0.5),
            ("personal", "head"),
        )
    ),
    *(
        (
            lambda algorithm=algorithm, weighting=weighting: FederatedConfig(algorithm=algorithm, weighting=weighting),
            (f"federated.weighting is {weighting!r}", f"algorithm {algorithm!r}", "choose 'uniform'"),
        )
        for algorithm in ("scaffold", "fednova")
        for weighting in ("samples", "episodes")
    ),
    (
        lambda: FederatedConfig(algorithm="scaffold", aggregator="median"),
        ("federated.aggregator is 'median'", "'scaffold'", "choose 'mean'"),
    ),
    (lambda: buffered(drop_out=0.1), ("federated.drop_out is 0.1", "buffered", "leave it out")),
    *(
        (
            lambda moments=moments, target=target: MergeConfig(parameters="keep", moments=moments, target=target),
            ("federated.merge.parameters is 'keep'", f"moments {moments!r}", f"target {target!r}", "keep those too"),
        )
        for moments, target in (("reset", "keep"), ("average", "keep"), ("keep", "global"), ("keep", "average"))
    ),
    (
        lambda: experiment(NOVA),
        ("federated.algorithm is 'fednova'", "agent.optimizer 'adam'", "right for 'sgd' alone"),
    ),
    (
        lambda: experiment(NOVA, dataclasses.replace(SGD, max_grad_norm=10.0)),
        ("federated.algorithm is 'fednova'", "agent.max_grad_norm 10.0", "leave it out"),
    ),
    (
        lambda: experiment(NOVA, dataclasses.replace(SGD, learning_rate_decay_updates=10)),
        ("federated.algorithm is 'fednova'", "agent.learning_rate_decay_updates 10", "leave it out"),
    ),
    (lambda: pooled(batch_size=12), ("batch_size is 12", "8 clients", "make it a multiple")),
    (lambda: pooled(batch_size=0), ("batch_size is 0", "whole number from 1")),
    (lambda: pooled(FederatedConfig(eval_clients=True)), ("federated.eval_clients", "leave both out")),
    (lambda: pooled(FederatedConfig(personal="trunk")), ("federated.personal", "leave both out")),
    (lambda: pooled(seeds_over_devices=False), ("seeds_over_devices is False", "leave it on")),
    (
        lambda: experiment(seed=MAX_COUNT - 1, num_seeds=2),
        (f"seed is {MAX_COUNT - 1}", "the last of 2", f"pass {MAX_COUNT}", "start lower"),
    ),
    (
        lambda: experiment(FederatedConfig(env_seed=MAX_COUNT - 1), num_seeds=2),
        (f"federated.env_seed is {MAX_COUNT - 1}", "the last of 2", "start lower"),
    ),
    (
        lambda: experiment(rounds=9, runner=RunnerConfig(log_every=10)),
        ("runner.log_every is 10", "rounds 9", "make it shorter"),
    ),
    # Frames of one client: 50 steps of 16, and 1008 of warm-up in each round when the replay is cleared.
    (
        lambda: experiment(rounds=MAX_COUNT // (50 * 16 + 1008)),
        (f"rounds is {MAX_COUNT // 1808}", "wrap", "train for fewer rounds"),
    ),
    # Updates of one client, which are more than its frames.
    (
        lambda: experiment(agent=AgentConfig(updates_per_step=100), rounds=MAX_COUNT // 5000),
        (f"rounds is {MAX_COUNT // 5000}", "wrap", "train for fewer rounds"),
    ),
    # Frames of all clients in one line of metrics.
    (
        lambda: experiment(
            FederatedConfig(num_clients=10_000),
            rounds=1000,
            runner=RunnerConfig(log_every=119, eval_every=119, checkpoint_every=119),
        ),
        ("rounds is 1000", "all clients between two lines of metrics", "lower runner.log_every"),
    ),
    # Frames of the one agent that learns from all eight clients: it alone counts 8 (50 * 16 + 1008) a round.
    (
        lambda: pooled(rounds=MAX_COUNT // (8 * 1808), runner=RunnerConfig(log_every=1)),
        (f"rounds is {MAX_COUNT // 14464}", "wrap", "train for fewer rounds"),
    ),
]


@pytest.mark.parametrize(("build", "words"), COMBINATIONS)
def test_a_bad_combination_is_refused_with_both_values(build, words):
    message = refusal(build)
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    "build",
    [
        FederatedConfig,
        MergeConfig,
        FederatedExperiment,
        lambda: FederatedConfig(num_clients=1, local_steps=1, local_episodes=1, block_size=1, unseen_envs=0, env_seed=0),
        lambda: FederatedConfig(heterogeneity_level=0, proximal=0, drop_out=0, stragglers=1, server_learning_rate=1e-6),
        lambda: FederatedConfig(heterogeneity_level=1, drop_out=0.999),
        lambda: FederatedConfig(num_clients_per_round=8),
        lambda: FederatedConfig(participation="fixed", num_clients_per_round=8),
        lambda: FederatedConfig(participation="poisson", num_clients_per_round=1),
        lambda: buffered(concurrency=5, algorithm="fedprox"),
        lambda: buffered(concurrency=1),
        lambda: buffered(num_clients_per_round=7),
        lambda: FederatedConfig(merge=ALONE, participation="fixed", num_clients_per_round=3, stragglers=0.5),
        lambda: FederatedConfig(algorithm="fednova", aggregator="median"),
        lambda: FederatedConfig(algorithm="fedprox", aggregator="median", weighting="samples"),
        lambda: buffered(stragglers=0.5),
        lambda: FederatedConfig(algorithm="scaffold", merge=MergeConfig(moments="average", target="average")),
        lambda: MergeConfig(parameters="keep", replay="clear", epsilon="restart", initial="per_client"),
        lambda: pooled(batch_size=256),
        lambda: experiment(NOVA, SGD),
        lambda: experiment(rounds=10, runner=RunnerConfig(log_every=10)),
        lambda: experiment(seed=MAX_COUNT - 2, num_seeds=2),
        lambda: experiment(FederatedConfig(env_seed=MAX_COUNT - 2), num_seeds=2),
        # One less than what is refused above: the last chunk may go a line past the budget.
        lambda: pooled(rounds=MAX_COUNT // 14464 - 1, runner=RunnerConfig(log_every=1)),
        # A federation of as many clients counts each for itself.
        lambda: experiment(rounds=MAX_COUNT // 14464),
        lambda: experiment(rounds=MAX_COUNT // (50 * 16 + 1008) - 1),
        lambda: experiment(agent=AgentConfig(updates_per_step=100), rounds=MAX_COUNT // 5000 - 1),
        lambda: experiment(
            FederatedConfig(num_clients=10_000),
            rounds=1000,
            runner=RunnerConfig(log_every=118, eval_every=118, checkpoint_every=118),
        ),
    ],
)
def test_the_last_usable_values_are_accepted(build):
    build()


@pytest.mark.parametrize(("kind", "section", "name"), CHOICES)
def test_every_word_is_accepted(kind, section, name):
    for word in CHOICES[kind, section, name]:
        beside = {"num_clients_per_round": 4} if word in ("fixed", "poisson", "buffered") else {}
        assert getattr(kind(**{name: word}, **beside), name) == word


def test_in_flight_is_what_is_left_unless_given():
    assert buffered().in_flight == 5
    assert buffered(concurrency=2).in_flight == 2


@pytest.mark.parametrize(
    ("settings", "varies", "masked"),
    [
        ({}, False, False),
        ({"drop_out": 0.1}, True, False),
        ({"stragglers": 0.1}, True, True),
        ({"local_episodes": 3}, True, True),
        ({"participation": "fixed", "num_clients_per_round": 8}, True, False),
        ({"participation": "buffered", "num_clients_per_round": 4}, True, False),
    ],
)
def test_when_clients_can_differ(settings, varies, masked):
    config = FederatedConfig(**settings)
    assert (config.varies, config.masked) == (varies, masked)


def test_an_experiment_knows_its_seeds_and_budget(tmp_path):
    config = FederatedExperiment(seed=7, num_seeds=3, rounds=20, run_dir=str(tmp_path))
    assert (list(config.seeds), config.budget, config.run_dir) == ([7, 8, 9], 20, tmp_path)


def test_nothing_can_be_changed_afterwards():
    for config in (FederatedConfig(), MergeConfig(), FederatedExperiment()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.seed = 1
