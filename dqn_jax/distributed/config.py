"""What a run with a parameter server, or with actors and a learner, is made of. Not here: anything that needs jax."""

import dataclasses
from typing import Literal

from dqn_jax.config import (
    MAX_COUNT,
    AgentConfig,
    FramesExperiment,
    ServiceTime,
    check_choices,
    check_divides,
    check_whole,
    require,
)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """A parameter server: its workers, what they push, how they synchronise, and how late pushes are treated."""

    num_workers: int = 4
    """Workers, each with environments of its own and a copy of the parameters."""
    mode: Literal["barrier", "asynchronous", "bounded"] = "asynchronous"
    """Average the pushes of all workers, apply each on arrival, or that with a bound on how far a worker may be ahead."""
    staleness_bound: int = 1
    """Pushes that a worker may be ahead of the slowest before it waits; read in mode bounded alone."""
    push: Literal["gradient", "delta"] = "gradient"
    """What a worker sends: a gradient for the server's optimizer, or how far its own optimizer moved the parameters."""
    local_steps: int = 1
    """Agent steps between two pushes (H); more than 1 needs push 'delta'."""
    pull_period: int = 1
    """Pushes of a worker between two pulls of the server's parameters and target."""
    replay: Literal["local", "shared"] = "local"
    """A replay for each worker, or one of their total capacity for all."""
    service_time: ServiceTime = "exponential"
    """Distribution, with mean 1, of the virtual time between a worker's pushes; real workers take their own time."""
    lag_limit: int | None = None
    """Drop pushes with a lag of more than this many updates; None keeps all."""
    lag_scaling: bool = False
    """Divide the step of a push by 1 + its lag (Zhang et al. 2016)."""

    def __post_init__(self) -> None:
        check_choices("server.", self)
        check_whole("server.", self, "num_workers", "local_steps", "pull_period")
        check_whole("server.", self, "staleness_bound", least=0)
        if self.lag_limit is not None:
            check_whole("server.", self, "lag_limit", least=0)
        require(
            self.push == "delta" or self.local_steps == 1,
            f"server.local_steps is {self.local_steps} and server.push 'gradient': a gradient is of one step, so push 'delta'",
        )
        late = self.lag_limit is not None or self.lag_scaling
        require(
            self.mode != "barrier" or not late,
            "server.mode is 'barrier', with server.lag_limit or server.lag_scaling: behind a barrier all pushes are equally "
            "late, so leave those out",
        )


@dataclasses.dataclass(frozen=True)
class WorkersExperiment(FramesExperiment):
    """A run whose workers or actors may be real: in turn, on threads, or as Ray processes."""

    backend: str = "threads"
    """Where they run."""
    ray_address: str | None = None
    """A running Ray cluster; None starts one on this machine."""
    patience: float = 120.0
    """Seconds that a worker may take for a result, from its start (compiling included), before another takes its place; the run
    ends if nobody answers for as long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.backend == "device" or self.num_seeds == 1,
            f"num_seeds is {self.num_seeds} and backend {self.backend!r}: real workers serve one run, so give each seed a run "
            "of its own",
        )
        require(
            self.backend == "ray" or self.ray_address is None,
            f"ray_address is {self.ray_address!r} and backend {self.backend!r}: add --backend ray",
        )
        require(
            isinstance(self.patience, (int, float)) and 0 < self.patience <= MAX_COUNT,
            f"patience is {self.patience}: give a number of seconds above 0",
        )


@dataclasses.dataclass(frozen=True)
class ServerExperiment(WorkersExperiment):
    """One run with a parameter server. The agent's sizes are those of each worker; frames are those of all workers."""

    num_seeds: int = 4
    """Independent repetitions, trained at once; on threads and Ray, one."""
    backend: Literal["device", "in-process", "threads", "ray"] = "device"
    """A deterministic model in virtual time, or real workers: in turn, on threads, or as Ray processes."""
    server: ServerConfig = dataclasses.field(default_factory=ServerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        agent, server = self.agent, self.server
        require(
            self.backend == "device" or self.num_devices in (None, 1),
            f"num_devices is {self.num_devices} and backend {self.backend!r}: a server of real workers has one device, so "
            "leave it out",
        )
        require(
            server.push == "delta" or agent.updates_per_step == 1,
            f"agent.updates_per_step is {agent.updates_per_step} and server.push 'gradient': a gradient is of one update, so "
            "push 'delta'",
        )
        require(
            self.backend == "device" or server.push == "gradient" or agent.learning_rate_decay_updates is None,
            f"agent.learning_rate_decay_updates is {agent.learning_rate_decay_updates} with server.push 'delta' and backend "
            f"{self.backend!r}: a worker that is started again would begin its decay again, so leave it out",
        )
        require(
            self.backend == "device" or server.replay == "local",
            f"server.replay is 'shared' and backend {self.backend!r}: real workers keep their own, so train on 'device'",
        )
        require(
            agent.memory != "rollout" or server.replay == "local",
            "server.replay is 'shared' and agent.memory 'rollout': a rollout is learnt from by the worker that gathered it, so "
            "take 'local'",
        )
        require(
            agent.memory != "prioritised" or self.backend != "device" or server.mode == "barrier" or server.replay == "shared",
            "agent.memory is 'prioritised' with server.replay 'local': the model of workers that arrive one by one keeps their "
            "replays in one ring, which has no priorities: take server.replay 'shared' or another backend",
        )
        require(
            self.frames_per_push <= self.total_frames,
            f"server.local_steps is {server.local_steps}, so one push has {self.frames_per_push} frames, above total_frames "
            f"{self.total_frames}: push more often or train for longer",
        )
        require(
            self.total_frames > self.warm_up_frames,
            f"total_frames is {self.total_frames}, and gathering experience alone takes {self.warm_up_frames}, "
            f"{agent.warm_up_frames} of each worker: train for longer or lower agent.learning_starts",
        )

    @property
    def warm_up_frames(self) -> int:
        """Frames of all workers before their first pushes."""
        return self.server.num_workers * self.agent.warm_up_frames

    @property
    def frames_per_push(self) -> int:
        """Frames behind a push."""
        return self.server.local_steps * self.agent.frames_per_step

    @property
    def pushes_per_chunk(self) -> int:
        """Pushes between two lines of metrics, as many of each worker behind a barrier."""
        pushes = max(1, self.runner.log_every // self.frames_per_push)
        workers = self.server.num_workers
        return -(-pushes // workers) * workers if self.server.mode == "barrier" else pushes


@dataclasses.dataclass(frozen=True)
class ActorLearnerConfig:
    """Actors that explore, a learner that learns from what they send, and how closely the two are coupled."""

    num_actors: int = 4
    """Actors; the agent's environments are divided over them."""
    mode: Literal["synchronous", "asynchronous"] = "asynchronous"
    """Actors and learner wait for each other after each agent step (exactly the plain agent), or do not wait."""
    exploration: Literal["ladder", "shared", "none"] = "ladder"
    """Each actor has its own epsilon, 0.4^(1 + 7i/(N - 1)) (Horgan et al. 2018), and else follows
    the agent's rule; the agent's rule and schedule for all; or none, where the network has noise."""
    acts_per_block: int = 20
    """Environment steps that an actor sends at once; synchronously, or of a rollout, those of an agent step."""
    publish_period: int = 1
    """Updates between two versions of the parameters that actors are sent."""
    lag_limit: int | None = None
    """Drop blocks acted with parameters more than this many versions old; None keeps all."""

    def __post_init__(self) -> None:
        check_choices("actors.", self)
        check_whole("actors.", self, "num_actors", "acts_per_block", "publish_period")
        if self.lag_limit is not None:
            check_whole("actors.", self, "lag_limit", least=0)


@dataclasses.dataclass(frozen=True)
class ActorLearnerExperiment(WorkersExperiment):
    """One run with actors and a learner. The agent is one whole agent, its environments divided over the actors."""

    num_seeds: int = 1
    """One: real actors serve one learner."""
    num_devices: int | None = 1
    """Devices of the learner, which divide its batch and replay; None takes all local ones."""
    backend: Literal["in-process", "threads", "ray"] = "threads"
    """Where actors run: in turn, on threads, or as Ray processes."""
    actors: ActorLearnerConfig = dataclasses.field(default_factory=ActorLearnerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        agent, actors = self.agent, self.actors
        check_divides("agent.num_envs", agent.num_envs, actors.num_actors, "actors")
        acts = agent.acts_per_step
        if agent.memory == "rollout":
            updates, number = agent.updates_per_step, agent.frames_per_step // self.frames_per_block
            require(
                updates % number == 0 and self.frames_per_block % agent.batch_size == 0,
                f"actors.num_actors is {actors.num_actors}, and a block is a rollout of {self.frames_per_block} frames for a "
                f"share of agent.updates_per_step {updates} with agent.batch_size {agent.batch_size}: make the updates a "
                "multiple of the actors, and the batch a divisor of the frames",
            )
        elif actors.mode == "asynchronous":
            require(
                actors.acts_per_block % (actors.num_actors * acts) == 0,
                f"actors.acts_per_block is {actors.acts_per_block}, and a block must hold whole agent steps of all "
                f"{actors.num_actors} actors: make it a multiple of {actors.num_actors * acts}",
            )
        else:
            require(
                agent.warm_up_acts % acts == 0,
                f"agent.learning_starts is {agent.learning_starts}, which takes {agent.warm_up_acts} acts, not a multiple of "
                f"agent.acts_per_step {acts}, and synchronous actors take whole steps: change either",
            )

    def check_blocks(self, num_devices: int) -> None:
        """Raises InputError unless a block's environments divide over the learner's devices."""
        envs = self.frames_per_block // self.acts_per_block
        require(
            envs % num_devices == 0,
            f"num_devices is {num_devices}, and a block has {envs} environment(s), which do not divide over them: raise "
            "agent.num_envs or use fewer devices",
        )

    @property
    def envs_per_actor(self) -> int:
        """Environments of each actor."""
        return self.agent.num_envs // self.actors.num_actors

    @property
    def acts_per_block(self) -> int:
        """Environment steps in a block: in synchronous mode, and of a rollout, those of an agent step."""
        whole = self.actors.mode == "synchronous" or self.agent.memory == "rollout"
        return self.agent.acts_per_step if whole else self.actors.acts_per_block

    @property
    def frames_per_block(self) -> int:
        """Frames that the learner stores at once: of one actor, or synchronously of all."""
        return self.acts_per_block * (self.agent.num_envs if self.actors.mode == "synchronous" else self.envs_per_actor)

    @property
    def updates_per_block(self) -> int:
        """Updates that the learner makes for a block: as many as the agent makes for its frames."""
        return self.frames_per_block * self.agent.updates_per_step // self.agent.frames_per_step

    @property
    def learners_agent(self) -> AgentConfig:
        """The agent as the learner has it: of rollouts, one that gathers a block."""
        if self.agent.memory != "rollout":
            return self.agent
        envs = self.frames_per_block // self.acts_per_block
        return dataclasses.replace(self.agent, num_envs=envs, updates_per_step=self.updates_per_block)

    @property
    def warm_up_blocks(self) -> int:
        """Blocks stored before the first update; the first n - 1 steps of each actor store nothing."""
        missing = (self.agent.n_step - 1) * self.agent.num_envs
        return -(-(self.agent.learning_starts + missing) // self.frames_per_block)

    @property
    def initial_frames(self) -> int:
        """Frames before the first update."""
        return self.warm_up_blocks * self.frames_per_block

    @property
    def blocks_per_chunk(self) -> int:
        """Blocks between two lines of metrics."""
        return max(1, self.runner.log_every // self.frames_per_block)

    @property
    def frames_per_chunk(self) -> int:
        """Frames between two lines of metrics."""
        return self.blocks_per_chunk * self.frames_per_block
