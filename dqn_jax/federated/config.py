"""What a federated run is made of. Not here: what needs jax (distributions, transforms), which is checked where it is built."""

import dataclasses
from pathlib import Path
from typing import Literal

from dqn_jax.config import (
    MAX_COUNT,
    Experiment,
    RunnerConfig,
    ServiceTime,
    check_choices,
    check_divides,
    check_number,
    check_whole,
    require,
)


@dataclasses.dataclass(frozen=True)
class MergeConfig:
    """How each part of a client's state is set when it starts a round."""

    parameters: Literal["global", "keep"] = "global"
    """Take the server's, or keep the client's own: then clients learn alone, and the server holds the mean of all."""
    moments: Literal["reset", "keep", "average"] = "keep"
    """The optimizer's running moments: initial ones, the client's own, or the average of those that clients sent."""
    target: Literal["global", "keep", "average"] = "keep"
    """The target network: a copy of the server's parameters, the client's own, or the average of those that clients sent."""
    replay: Literal["keep", "clear"] = "keep"
    """Past experience; once cleared, it is gathered again up to agent.learning_starts before the round's first update."""
    epsilon: Literal["own", "restart"] = "own"
    """Decay exploration by the client's own frames, or start again each round."""
    initial: Literal["common", "per_client"] = "common"
    """Parameters of the first round: the same for all, or each client's own."""

    def __post_init__(self) -> None:
        check_choices("federated.merge.", self)
        require(
            self.parameters == "global" or (self.moments, self.target) == ("keep", "keep"),
            f"federated.merge.parameters is 'keep', with moments {self.moments!r} and target {self.target!r}: clients "
            "on their own keep those too",
        )


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
    """Clients, how they differ, who takes part in a round, what is sent and how it is merged."""

    num_clients: int = 8
    """Clients, each with its own environments, replay, optimizer and target."""
    local_steps: int = 50
    """Agent steps of a client in a round (K)."""
    local_episodes: int | None = None
    """End a client's round early, once it has finished this many episodes; None counts steps alone."""

    heterogeneity: str = "cartpole-length"
    """Distribution of the clients' environment parameters: a name, range:FIELD:LOW:HIGH, module:attribute, or none."""
    heterogeneity_level: float = 1.0
    """Width of the training range: 1 is all of it, 0 puts every client at its middle."""
    env_seed: int = 0
    """Seed of the clients' environments: repetition i has env_seed + i."""
    unseen_envs: int = 4
    """Held-out environments inside the training range, and as many beyond it."""

    participation: Literal["all", "fixed", "poisson", "buffered"] = "all"
    """Participants: all, a fixed number, each with the same chance, or those that finish first (FedBuff)."""
    num_clients_per_round: int | None = None
    """Participants of a round: exact when fixed, expected for poisson, updates buffered before a merge for buffered."""
    concurrency: int | None = None
    """Clients at work at any time when buffered; None takes as many as possible."""
    service_time: ServiceTime = "exponential"
    """Distribution, with mean 1, of the virtual time a client takes for a round."""
    drop_out: float = 0.0
    """Probability that a participant drops out after the broadcast: it does nothing and sends nothing."""
    stragglers: float = 0.0
    """Probability that a participant makes only some of its local steps, uniformly from 1 to K."""

    algorithm: Literal["plain", "fedprox", "scaffold", "fednova"] = "plain"
    """Changes to descent: none, a proximal term, control variates, or division by the number of updates."""
    proximal: float = 0.01
    """Strength of FedProx's proximal term (mu)."""
    transforms: tuple[str, ...] = ()
    """Changes to an update before it is sent, in order: clip:NORM, int8, top-k:SHARE, or module:transform."""
    aggregator: str = "mean"
    """How updates are combined: mean, median, trimmed:SHARE, centred-clip:RADIUS, or module:function of (deltas, weights)."""
    weighting: str = "uniform"
    """Weight of a client: uniform, samples (frames of the round), episodes (of the round), or module:function of its report."""
    server_optimizer: str = "fedavg"
    """Optimizer that applies the mean update: fedavg, fedavgm, fedadagrad, fedadam, fedyogi, or module:function."""
    server_learning_rate: float = 1.0
    """Step size of the server."""
    personal: str = "none"
    """Parameters that stay with a client: none, head, trunk, or module:function of the tree of their shapes."""
    merge: MergeConfig = dataclasses.field(default_factory=MergeConfig)

    eval_clients: bool = False
    """Also play each client's own parameters, on its own environment and on the unseen ones."""
    block_size: int | None = None
    """Clients trained side by side on a device; None takes 16. Fewer fit the cache better, more amortise better."""

    def __post_init__(self) -> None:
        section = "federated."
        check_choices(section, self)
        check_whole(section, self, "num_clients", "local_steps")
        check_whole(section, self, "env_seed", "unseen_envs", least=0)
        optional = ("local_episodes", "num_clients_per_round", "concurrency", "block_size")
        check_whole(section, self, *(name for name in optional if getattr(self, name) is not None))
        check_number(section, self, "proximal")
        check_number(section, self, "heterogeneity_level", "drop_out", "stragglers", high=1.0)
        named = ("heterogeneity", "aggregator", "weighting", "server_optimizer", "personal")
        require(
            isinstance(self.transforms, tuple),
            f"{section}transforms is {self.transforms!r}: give a tuple of names, even of one",
        )
        for name, value in [(name, getattr(self, name)) for name in named] + [("transforms", x) for x in self.transforms]:
            require(
                isinstance(value, str), f"{section}{name} is {value!r}: give a name; a Python object goes to make_federated"
            )
        check_number(section, self, "server_learning_rate", open_low=True)
        require(self.drop_out < 1, "federated.drop_out is 1: nobody would ever send anything, so make it less")
        self._check_participation()
        self._check_algorithm()

    def _check_participation(self) -> None:
        each, clients = self.num_clients_per_round, self.num_clients
        require(
            each is not None or self.participation == "all",
            f"federated.num_clients_per_round is None: participation {self.participation!r} needs a number",
        )
        each = clients if each is None else each
        require(
            self.participation != "all" or each == clients,
            f"federated.num_clients_per_round is {each}, and federated.participation 'all' takes all {clients}: choose 'fixed' "
            "or 'poisson'",
        )
        require(
            each <= clients,
            f"federated.num_clients_per_round is {each}, more than federated.num_clients {clients}: ask for no more",
        )
        if self.participation != "buffered":
            require(
                self.concurrency is None,
                f"federated.concurrency is {self.concurrency}, of no use to participation {self.participation!r}: leave it out",
            )
        else:
            require(
                self.drop_out == 0,
                f"federated.drop_out is {self.drop_out} with buffered participation, where a merge waits for updates "
                "that arrive: leave it out",
            )
            require(
                self.in_flight >= 1 and each + self.in_flight <= clients,
                f"federated.concurrency is {self.concurrency} with {each} updates a merge, and there are {clients} clients: "
                "one that delivered rests until the merge, so the two together may be at most federated.num_clients",
            )

    def _check_algorithm(self) -> None:
        alone = self.merge.parameters == "keep"
        require(
            not (self.participation == "buffered" and self.algorithm in ("scaffold", "fednova")),
            f"federated.algorithm is {self.algorithm!r} with buffered participation: its correction is for clients that start "
            "together, so choose 'plain' or 'fedprox'",
        )
        fields = ("algorithm", "transforms", "aggregator", "weighting", "server_optimizer", "server_learning_rate", "personal")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in fields:
            require(
                not alone or getattr(self, name) == defaults[name],
                f"federated.{name} is {getattr(self, name)!r} and merge.parameters 'keep': clients on their own send nothing, "
                "so leave it out",
            )
        require(
            self.algorithm not in ("scaffold", "fednova") or self.weighting == "uniform",
            f"federated.weighting is {self.weighting!r} with algorithm {self.algorithm!r}, which weighs clients alike: choose "
            "'uniform'",
        )
        require(
            self.algorithm != "scaffold" or self.aggregator == "mean",
            f"federated.aggregator is {self.aggregator!r} with algorithm 'scaffold', whose controls are of the mean: choose "
            "'mean'",
        )

    @property
    def in_flight(self) -> int:
        """Clients at work at any time, when buffered."""
        assert self.num_clients_per_round is not None
        return self.num_clients - self.num_clients_per_round if self.concurrency is None else self.concurrency

    @property
    def varies(self) -> bool:
        """Whether clients can differ in how many steps they have taken, so that each needs clocks of its own."""
        full = self.participation == "all" and self.drop_out == 0
        return not full or self.masked

    @property
    def masked(self) -> bool:
        """Whether a participant can take fewer than K steps in a round."""
        return self.stragglers > 0 or self.local_episodes is not None


@dataclasses.dataclass(frozen=True)
class FederatedExperiment(Experiment):
    """One federated run: an agent for every client, and the number of rounds. Each repetition draws its own clients."""

    num_seeds: int = 4
    """Independent repetitions, each with its own draw of clients, trained at once."""
    seeds_over_devices: bool = True
    """Give each device its own repetitions; else its own share of the clients of each."""
    rounds: int = 100
    """Rounds of each repetition."""
    run_dir: Path = Path("runs/federated")
    """Directory of everything the run writes."""
    federated: FederatedConfig = dataclasses.field(default_factory=FederatedConfig)
    runner: RunnerConfig = dataclasses.field(
        default_factory=lambda: RunnerConfig(log_every=1, eval_every=10, checkpoint_every=50)
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_budget("rounds")
        agent, federated = self.agent, self.federated
        require(
            federated.env_seed + self.num_seeds <= MAX_COUNT,
            f"federated.env_seed is {federated.env_seed}, and the last of {self.num_seeds} would pass {MAX_COUNT}: start lower",
        )
        require(
            federated.algorithm != "fednova" or agent.optimizer == "sgd",
            f"federated.algorithm is 'fednova' and agent.optimizer {agent.optimizer!r}: dividing by the number of updates is "
            "right for 'sgd' alone",
        )
        require(
            federated.algorithm != "fednova" or agent.max_grad_norm is None,
            f"federated.algorithm is 'fednova' and agent.max_grad_norm {agent.max_grad_norm}: clipping makes updates unequal, "
            "so leave it out",
        )
        require(
            federated.algorithm != "fednova" or agent.learning_rate_decay_updates is None,
            "federated.algorithm is 'fednova' and agent.learning_rate_decay_updates "
            f"{agent.learning_rate_decay_updates}: a rate that falls makes updates unequal, so leave it out",
        )
        require(
            federated.merge.replay == "keep" or agent.memory != "rollout",
            "federated.merge.replay is 'clear' and agent.memory 'rollout', which keeps nothing from step to step: leave it out",
        )
        # One counter counts a client's frames; a chunk's are summed over all.
        per_round = federated.local_steps * agent.frames_per_step + agent.warm_up_frames
        frames = (self.rounds + self.runner.log_every) * per_round
        updates = (self.rounds + self.runner.log_every) * federated.local_steps * agent.updates_per_step
        chunk = self.runner.log_every * federated.num_clients * max(per_round, federated.local_steps * agent.updates_per_step)
        require(
            max(frames, updates, chunk) <= MAX_COUNT,
            f"rounds is {self.rounds}, and device counters would wrap at {MAX_COUNT} frames or updates of a client, or of all "
            "clients between two lines of metrics: train for fewer rounds or lower runner.log_every",
        )

    @property
    def budget(self) -> int:
        """Rounds of each repetition."""
        return self.rounds


@dataclasses.dataclass(frozen=True)
class PooledExperiment(FederatedExperiment):
    """A baseline for a federated run: one agent that learns from all clients' experience.

    Of the federation's settings, only the clients, the length of a round and the evaluation are used.
    """

    batch_size: int = 32
    """Transitions of an update, from all clients together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        agent, federated = self.agent, self.federated
        check_whole("", self, "batch_size")
        check_divides("batch_size", self.batch_size, federated.num_clients, "clients")
        require(self.seeds_over_devices, "seeds_over_devices is False, and pooled training divides repetitions: leave it on")
        require(
            not federated.eval_clients and federated.personal == "none",
            "federated.eval_clients or federated.personal is set, and pooled clients have no parameters: leave both out",
        )
        # One counter counts all clients' frames.
        rounds, steps = self.rounds + self.runner.log_every, federated.local_steps * agent.frames_per_step
        frames = rounds * (steps + agent.warm_up_frames) * federated.num_clients
        require(
            frames <= MAX_COUNT,
            f"rounds is {self.rounds}, and device counters would wrap at {MAX_COUNT} frames of all clients: train for fewer "
            "rounds",
        )
