"""What a run is made of: frozen dataclasses, checked when they are built and never changed afterwards.

Not here: anything that needs jax or gymnax (device counts, environments), which is checked where it is first known.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args, get_origin, get_type_hints

MAX_COUNT = 2**31 - 1
"""Largest count an int32 device counter can hold."""
_MAX_NUMBER = 3.4e38
"""About the largest finite float32, which numbers become on the device."""

ServiceTime: TypeAlias = Literal["constant", "uniform", "exponential", "lognormal"]
"""Names of `virtual_time.SERVICE_TIMES`."""

LOGGERS = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""{name of a logger, and of the extra that installs it: its package}."""


Record: TypeAlias = dict[str, Any]
"""Named values as a JSON file has them."""


class InputError(Exception):
    """A user's input that cannot be used. The message names it, its value and the remedy, in one sentence."""


class TrainingError(RuntimeError):
    """A run that must not go on: a loss that is not finite, replicas that differ. The message says where and what to do."""


def require(condition: bool, message: str) -> None:
    """Raises InputError with the message unless the condition holds."""
    if not condition:
        raise InputError(message)


def not_installed(what: str, package: str, extra: str) -> InputError:
    """Returns the error for a package that is missing: what needs it, and the extra that installs it from a clone."""
    return InputError(f"{what}, and {package} is not installed: pip install -e '.[{extra}]'")


def check_divides(name: str, value: int, number: int, of: str = "devices") -> None:
    """Raises InputError unless `number` divides `value`."""
    require(value % number == 0, f"{name} is {value}, which does not divide over {number} {of}: make it a multiple of {number}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_choices(section: str, config: Any) -> None:
    """Raises InputError unless every field of type bool or Literal has one of its values."""
    for name, kind in get_type_hints(type(config)).items():
        options = get_args(kind) if get_origin(kind) is Literal else (True, False) if kind is bool else None
        value = getattr(config, name)
        if options is not None:
            words = ", ".join(map(repr, options))
            require(
                any(value is option or value == option for option in options),
                f"{section}{name} is {value!r}: give one of {words}",
            )


def check_names(section: str, config: Any, *names: str) -> None:
    """Raises InputError unless each named field is a string: the name of a part, looked up where it is built."""
    for name in names:
        value = getattr(config, name)
        require(isinstance(value, str), f"{section}{name} is {value!r}: give the name of a part, as a string")


def check_texts(section: str, config: Any, *names: str) -> None:
    """Raises InputError unless each named field is a tuple of strings."""
    for name in names:
        value = getattr(config, name)
        require(
            isinstance(value, tuple) and all(isinstance(text, str) for text in value),
            f"{section}{name} is {value!r}: give a tuple of strings, even of one",
        )


def check_whole(section: str, config: Any, *names: str, least: int = 1) -> None:
    """Raises InputError unless each named field is a whole number from `least` to what an int32 counter can hold."""
    for name in names:
        value = getattr(config, name)
        require(
            _is_whole(value) and least <= value <= MAX_COUNT,
            f"{section}{name} is {value}: give a whole number from {least} to {MAX_COUNT} (device counters are 32-bit)",
        )


def check_number(
    section: str, config: Any, *names: str, low: float = 0.0, high: float = _MAX_NUMBER, open_low: bool = False
) -> None:
    """Raises InputError unless each named field is a finite number in [low, high], or in (low, high] if `open_low`."""
    for name in names:
        value = getattr(config, name)
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        inside = real and low <= value <= high
        bound = f"above {low:g}" if open_low else f"of at least {low:g}"
        limit = "" if high == _MAX_NUMBER else f" and at most {high:g}"
        require(inside and not (open_low and value == low), f"{section}{name} is {value}: give a finite number {bound}{limit}")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """The Q-network: a trunk of features, and a head with one value per action."""

    trunk: str = "auto"
    """mlp, conv, nature (Mnih et al. 2015), impala (Espeholt et al. 2018), auto (nature for images of at least 36 x 36 pixels,
    conv for smaller ones, mlp for the rest), or a user's module:function."""
    head: str = "linear"
    """linear, dueling (Wang et al. 2016), categorical:LOW:HIGH:ATOMS or dueling-categorical (Bellemare et al. 2017),
    quantile:NUMBER or implicit-quantile:NUMBER (Dabney et al. 2018), or a user's module:function."""
    noisy: bool = False
    """Learn noise for the weights of all dense layers (Fortunato et al. 2018); explore greedily then."""
    layer_norm: bool = False
    """Normalise every layer of the trunk before its ReLU."""
    hidden_sizes: tuple[int, ...] = (128, 128)
    """Widths of the fully connected ReLU layers (after the convolutions, if there are any)."""
    channels: int = 16
    """Output channels of the 3x3 convolution; nature has 2, 4 and 4 times as many, impala 1, 2 and 2 times."""

    def __post_init__(self) -> None:
        sizes = self.hidden_sizes
        require(
            isinstance(sizes, tuple) and len(sizes) > 0 and all(_is_whole(size) and size > 0 for size in sizes),
            f"network.hidden_sizes is {sizes}: give a tuple of at least one width, each a positive whole number",
        )
        check_choices("network.", self)
        check_names("network.", self, "trunk", "head")
        check_whole("network.", self, "channels")


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """DQN (Mnih et al. 2015) with every choice an argument.

    Sizes (`num_envs`, `batch_size`, `replay_capacity`) are those of one whole agent. Data-parallel training divides them by
    the number of devices, so the same config is the same algorithm on any hardware.
    """

    NUMBERS: ClassVar[tuple[str, ...]] = (
        *("discount", "priority_exponent", "importance_exponent"),
        *("learning_rate", "target_rate", "max_grad_norm"),
        *("epsilon_start", "epsilon_end", "epsilon_decay_frames"),
    )
    """Fields that are numbers in the agent's state (`agent.hyperparams_of`), and so may change when a run is resumed."""

    num_envs: int = 16
    """Environments stepped at once."""
    acts_per_step: int = 1
    """Environment steps (of all the environments) in an agent step."""
    updates_per_step: int = 1
    """Gradient updates in an agent step."""
    batch_size: int = 32
    """Transitions sampled for an update."""
    replay_capacity: int = 10_000
    """Transitions kept; the oldest are overwritten first."""
    learning_starts: int = 1_000
    """Frames of experience gathered before the first update."""
    memory: Literal["uniform", "prioritised", "newest", "rollout"] = "uniform"
    """Draw transitions uniformly, in proportion to a power of their priority (Schaul et al. 2016), or only the newest; or learn
    from the acts of an agent step in shuffled minibatches, without replay and target (PQN, Gallici et al. 2025)."""
    priority_exponent: float = 0.6
    """That power (alpha), if prioritised: 0 draws all alike."""
    importance_exponent: float = 0.4
    """Power of the importance weights (beta), if prioritised: 1 undoes the bias of unequal draws, 0 leaves it."""
    importance_anneal_frames: int | None = None
    """Frames stored, since the memory was last empty, over which that power rises linearly to 1; None keeps it."""

    discount: float = 0.99
    """Discount factor (gamma)."""
    n_step: int = 1
    """Rewards summed before bootstrapping."""
    return_lambda: float | None = None
    """Learn Q(lambda) returns (Peng & Williams 1996) over these n steps: 0 bootstraps after each, 1 after the last alone.
    A transition then stores n + 1 observations in place of 2. None is the plain n-step return. Of a rollout, over its steps."""
    time_limit: Literal["bootstrap", "terminal"] = "bootstrap"
    """What a time limit means: bootstrap from the final observation, or treat it as a termination."""

    double_q: bool = False
    """Choose the target's action with the online network (van Hasselt et al. 2016)."""
    loss: str = "squared"
    """squared, huber:DELTA, munchausen:TEMPERATURE:BONUS:CLIP, categorical, quantile:KAPPA, or a user's module:function,
    with numbers after it too; those that are left out have their papers' values."""
    optimizer: str = "adam"
    """adam, rmsprop (centred, as in Mnih et al. 2015), any other of optax by its name, or a user's module:function."""
    learning_rate: float = 1e-3
    """Step size."""
    learning_rate_decay_updates: int | None = None
    """Updates over which the step size falls linearly to 0; None keeps it."""
    optimizer_eps: float = 1e-8
    """Added to Adam's denominator; under the square root in RMSProp's, where Mnih et al. (2015) take 0.01."""
    rmsprop_decay: float = 0.95
    """Decay of RMSProp's running moments."""
    max_grad_norm: float | None = None
    """Clip the global gradient norm to this; None leaves gradients as they are."""
    target_period: int = 500
    """Updates between two updates of the target network (C)."""
    target_rate: float = 1.0
    """Step of the target towards the online parameters: 1 copies them, less is Polyak averaging."""

    exploration: str = "epsilon-greedy"
    """epsilon-greedy, greedy (for networks with noise), boltzmann:TEMPERATURE, or a user's module:function."""
    epsilon_schedule: Literal["linear", "exponential"] = "linear"
    """How epsilon falls from start to end."""
    epsilon_start: float = 1.0
    """Probability of a random action in the first frame."""
    epsilon_end: float = 0.05
    """Probability of a random action once the decay is over."""
    epsilon_decay_frames: int = 10_000
    """Frames over which epsilon falls."""

    def __post_init__(self) -> None:
        check_choices("agent.", self)
        check_names("agent.", self, "loss", "optimizer", "exploration")
        counts = ("num_envs", "acts_per_step", "updates_per_step", "batch_size", "replay_capacity")
        check_whole("agent.", self, *counts, "n_step", "target_period", "epsilon_decay_frames")
        check_whole("agent.", self, "learning_starts", least=0 if self.memory == "rollout" else 1)
        check_number("agent.", self, "discount", "epsilon_start", "epsilon_end", high=1.0)
        check_number("agent.", self, "priority_exponent", "importance_exponent", high=1.0)
        check_number("agent.", self, "target_rate", high=1.0, open_low=True)
        check_number("agent.", self, "rmsprop_decay", high=0.9999, open_low=True)
        check_number("agent.", self, "learning_rate", "optimizer_eps", open_low=True)
        optional = ("learning_rate_decay_updates", "importance_anneal_frames")
        check_whole("agent.", self, *(name for name in optional if getattr(self, name) is not None))
        if self.max_grad_norm is not None:
            check_number("agent.", self, "max_grad_norm", open_low=True)
        if self.return_lambda is not None:
            check_number("agent.", self, "return_lambda", high=1.0)
            require(
                self.n_step > 1 or self.memory == "rollout",
                f"agent.return_lambda is {self.return_lambda} with agent.n_step {self.n_step}, and one step has one return: "
                "raise agent.n_step, or leave return_lambda out",
            )
        if self.memory == "rollout":
            self._check_rollout()
        else:
            self._check_replay()
        require(
            self.epsilon_schedule == "linear" or min(self.epsilon_start, self.epsilon_end) > 0,
            f"agent.epsilon_start is {self.epsilon_start} and agent.epsilon_end {self.epsilon_end}: "
            "an exponential schedule needs both above 0, a linear one does not",
        )

    def _check_rollout(self) -> None:
        frames, samples = self.frames_per_step, self.updates_per_step * self.batch_size
        require(
            self.learning_starts == 0,
            f"agent.learning_starts is {self.learning_starts}, and agent.memory 'rollout' gathers nothing before: make it 0",
        )
        require(
            self.n_step == 1 and self.return_lambda is not None,
            f"agent.n_step is {self.n_step} and agent.return_lambda {self.return_lambda}, and agent.memory 'rollout' learns "
            "lambda returns over all its steps: make the first 1, the second a number from 0 to 1",
        )
        require(
            frames % self.batch_size == 0 and samples % frames == 0,
            f"agent.batch_size is {self.batch_size} with agent.updates_per_step {self.updates_per_step}, and a rollout has "
            f"{frames} frames (agent.num_envs times agent.acts_per_step): make the first a divisor of those, the second a "
            f"multiple of {max(1, frames // self.batch_size)}",
        )

    def _check_replay(self) -> None:
        require(
            self.batch_size <= self.replay_capacity,
            f"agent.batch_size is {self.batch_size}, larger than agent.replay_capacity {self.replay_capacity}: "
            "shrink the batch or keep more transitions",
        )
        require(
            self.replay_capacity % self.num_envs == 0,
            f"agent.replay_capacity is {self.replay_capacity}, not a multiple of agent.num_envs {self.num_envs}: "
            f"take {-(-self.replay_capacity // self.num_envs) * self.num_envs}",
        )
        require(
            self.learning_starts >= self.batch_size,
            f"agent.learning_starts is {self.learning_starts}, less than agent.batch_size {self.batch_size}: "
            "gather at least one batch before learning",
        )

    @property
    def window_lambda(self) -> float | None:
        """Lambda of the returns over windows that a replay keeps; None where it keeps none."""
        return None if self.memory == "rollout" else self.return_lambda

    @property
    def frames_per_step(self) -> int:
        """Frames of an agent step."""
        return self.num_envs * self.acts_per_step

    @property
    def warm_up_frames(self) -> int:
        """Frames taken before the first update."""
        return self.warm_up_acts * self.num_envs

    @property
    def warm_up_acts(self) -> int:
        """Environment steps after which `learning_starts` frames are stored; the first n - 1 store nothing."""
        return -(-self.learning_starts // self.num_envs) + self.n_step - 1

    def check_shards(self, num_shards: int) -> None:
        """Raises InputError unless the sizes divide evenly over `num_shards` devices."""
        # The replay needs no check: its capacity is a multiple of the environments.
        for name in ("num_envs", "batch_size"):
            check_divides(f"agent.{name}", getattr(self, name), num_shards)


@dataclasses.dataclass(frozen=True)
class RunnerConfig:
    """How often a run logs, evaluates and saves. All periods are frames of one seed; of a federated run, rounds."""

    log_every: int = 10_000
    """Frames (or rounds) between two lines of metrics; one compiled chunk, so also the time Ctrl-C can take."""
    eval_every: int = 50_000
    """Frames (or rounds) between two greedy evaluations."""
    eval_episodes: int = 32
    """Greedy episodes of an evaluation, for every seed (and every environment)."""
    eval_wrappers: tuple[str, ...] | None = None
    """Wrappers of the evaluation environment; None takes those of training, without reward-clip and life-loss."""
    eval_epsilon: float = 0.0
    """Probability of an action at random in evaluations; above 0 they are not quite greedy."""
    threshold: float | None = None
    """Greedy return whose first crossing the summary reports; None reports none."""
    checkpoint_every: int = 100_000
    """Frames (or rounds) between two checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints kept; large replays are in the newest alone."""
    checkpoint_replay: bool = True
    """Save replays, too; without them a resumed run fills them again by acting, and is not the same to the bit."""
    compilation_cache: bool = True
    """Keep compiled programs in ~/.cache/dqn_jax, so that the same command starts at once the next time."""
    loggers: tuple[str, ...] = ()
    """Where metrics go beside metrics.jsonl: tensorboard, wandb (each an extra of that name)."""

    def __post_init__(self) -> None:
        check_choices("runner.", self)
        check_whole("runner.", self, "log_every", "eval_every", "eval_episodes", "checkpoint_every", "keep_checkpoints")
        if self.eval_wrappers is not None:
            check_texts("runner.", self, "eval_wrappers")
        check_number("runner.", self, "eval_epsilon", high=1.0)
        if self.threshold is not None:
            check_number("runner.", self, "threshold", low=-MAX_COUNT)
        check_texts("runner.", self, "loggers")
        unknown = [name for name in self.loggers if name not in LOGGERS]
        require(not unknown, f"runner.loggers has {', '.join(unknown)}: give some of {', '.join(LOGGERS)}")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings of every run; each way of training adds its own, and how long to train."""

    env: str = "CartPole-v1"
    """A gymnax environment with discrete actions, a user's module:function, or octax:, pgx:, craftax:, jumanji:, gymnasium: or
    atari:NAME."""
    env_kwargs: tuple[str, ...] = ()
    """Arguments of the environment's constructor, such as size=12."""
    wrappers: tuple[str, ...] = ()
    """Wrappers of it, innermost first: frame-stack:4, reward-clip:1, sticky:0.25, time-limit:200, view, or module:function; of
    Atari also no-op:30 and life-loss, and no-op:30 sticky:0.25 frame-stack:4 reward-clip:1 where none are named."""
    max_episode_steps: int | None = None
    """Time limit of an episode; None keeps the environment's own."""
    num_devices: int | None = None
    """Devices; None takes all local ones (two virtual ones when there is only a CPU)."""
    num_seeds: int = 8
    """Independent repetitions, trained at once."""
    seed: int = 0
    """Root of all randomness: repetition i has seed + i."""
    run_dir: Path = Path("runs/latest")
    """Directory of everything the run writes."""
    resume: bool = False
    """Continue the run in the run directory; start one if there is none."""
    agent: AgentConfig = dataclasses.field(default_factory=AgentConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    runner: RunnerConfig = dataclasses.field(default_factory=RunnerConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_dir", Path(self.run_dir))
        check_choices("", self)
        check_names("", self, "env")
        check_texts("", self, "env_kwargs", "wrappers")
        check_whole("", self, "num_seeds")
        check_whole("", self, "seed", least=0)
        check_whole("", self, *(name for name in ("num_devices", "max_episode_steps") if getattr(self, name) is not None))
        require(
            self.seed + self.num_seeds <= MAX_COUNT,
            f"seed is {self.seed}, and the last of {self.num_seeds} seeds would pass {MAX_COUNT}: start lower",
        )

    def check_budget(self, name: str) -> None:
        """Raises InputError unless the named length of training is at least one `log_every` period."""
        check_whole("", self, name)
        period, length = self.runner.log_every, getattr(self, name)
        require(
            period <= length,
            f"runner.log_every is {period}, longer than {name} {length}: training takes whole periods, so make it shorter",
        )

    @property
    def seeds(self) -> range:
        """One seed for each repetition."""
        return range(self.seed, self.seed + self.num_seeds)

    @property
    def budget(self) -> int:
        """Length of training, in the runner's unit: frames or rounds."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FramesExperiment(Experiment):
    """A run whose length, and whose periods, are frames of one seed."""

    total_frames: int = 500_000
    """Environment steps of each seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_budget("total_frames")
        agent = self.agent
        require(
            self.total_frames > agent.warm_up_frames,
            f"total_frames is {self.total_frames}, and gathering experience alone takes {agent.warm_up_frames}: "
            "train for longer or lower agent.learning_starts",
        )
        # Training ends with a whole chunk, so the last one may go this far past the budget.
        frames = self.total_frames + self.runner.log_every + agent.frames_per_step
        require(
            max(frames, frames // agent.frames_per_step * agent.updates_per_step) <= MAX_COUNT,
            f"total_frames is {self.total_frames}, and device counters would wrap at {MAX_COUNT} frames or updates: "
            "train for fewer frames",
        )

    @property
    def budget(self) -> int:
        """Frames of each seed."""
        return self.total_frames


@dataclasses.dataclass(frozen=True)
class DataParallelExperiment(FramesExperiment):
    """A run of one agent divided over devices, or of many seeds divided over them."""

    seeds_over_devices: bool = False
    """Give each device its own seeds instead of averaging gradients over devices."""

    @property
    def steps_per_chunk(self) -> int:
        """Agent steps between two lines of metrics."""
        return max(1, self.runner.log_every // self.agent.frames_per_step)
