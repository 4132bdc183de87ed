"""What a client does in a round: begin with what the server broadcast, take local steps, and say what changed.

Each function here is for one client; rounds map them. A client's experience is in its `AgentState` and in nothing that leaves.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp

from dqn_jax.agent import Agent, AgentState
from dqn_jax.config import AgentConfig
from dqn_jax.federated.aggregation import Report
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.server import ServerState
from dqn_jax.federated.sharing import Sharing
from dqn_jax.federated.transforms import Transform, payload_of
from dqn_jax.learner import make_optimizer
from dqn_jax.losses import own_numbers
from dqn_jax.types import Correction, Info, Params, Tree


class ClientState(flax.struct.PyTreeNode):
    """All that one client keeps."""

    agent: AgentState
    control: Params
    """SCAFFOLD's c_i; nothing without it."""
    transform: Tree
    """State of the client's chain of transforms."""
    stream: jax.Array
    """[] key that transforms draw from."""


class ClientUpdate(NamedTuple):
    """All that a client sends: the server sees nothing else of it. What is of parameters, is of those that are shared."""

    delta: Params
    """Change of its parameters, transformed."""
    report: Report
    control: Params
    """Change of its control variate; nothing without SCAFFOLD."""
    moments: Tree
    """Its optimizer state; nothing unless those are averaged."""
    target_params: Params
    """Its target network; nothing unless those are averaged."""


class Client(NamedTuple):
    """A client as pure functions."""

    init: Callable[..., ClientState]
    """(key, env_params, params) -> state, warmed up; `params` None keeps the client's own initial parameters."""
    begin: Callable[[ClientState, ServerState, jax.Array], ClientState]
    """(state, server, round) -> state that starts a round with what the server broadcast."""
    train: Callable[..., tuple[ClientState, ClientUpdate, jax.Array, Info]]
    """(state, server, round, steps) -> (state, update, whether all of it is finite [] bool, info).

    The info is measured and not sent: the last epsilon, and `own`, means of the loss's own numbers over the round's updates."""
    num_bytes: Callable[[ClientState], tuple[int, int]]
    """state -> bytes of (a download, an upload); only shapes matter."""


def make_client(
    agent: Agent, agent_config: AgentConfig, config: FederatedConfig, transform: Transform, sharing: Sharing
) -> Client:
    """Builds the client.

    Args:
      agent: the agent that every client is.
      agent_config: that agent's sizes.
      config: how clients train and merge.
      transform: what an update goes through before it is sent.
      sharing: which parameters are sent at all.
    """
    merge = config.merge
    scaffold = config.algorithm == "scaffold"
    optimizer_of = make_optimizer(agent_config)

    def init(key: jax.Array, env_params: Tree, params: Params | None) -> ClientState:
        state = agent.init(key, env_params)
        if params is not None:
            state = _with_params(state, params, target_params=params)
        # A cleared replay is filled when a round begins, except for the first when clients are at work from the start.
        if merge.replay == "keep" or config.participation == "buffered":
            state = agent.warm_up(state)
        params = sharing.shared(state.learner.params)
        control = jax.tree.map(jnp.zeros_like, params) if scaffold else ()
        # 0 to 2 are the agent's own.
        return ClientState(state, control, transform.init(params), stream=jax.random.fold_in(key, 3))

    def begin(state: ClientState, server: ServerState, round_number: jax.Array) -> ClientState:
        agent_state = state.agent
        learner = agent_state.learner
        if merge.parameters == "global":
            params, target_params = sharing.merged(learner.params, server.params), learner.target_params
            if merge.target != "keep":
                sent = server.params if merge.target == "global" else server.target_params
                target_params = sharing.merged(target_params, sent)
            if merge.initial == "per_client":
                first = round_number == 0
                params, target_params = (
                    jax.tree.map(lambda own, new: jnp.where(first, own, new), *pair)
                    for pair in ((learner.params, params), (learner.target_params, target_params))
                )
            opt_state = learner.opt_state
            if merge.moments != "keep":
                reset = optimizer_of(learner.hyperparams).init(sharing.shared(params))
                opt_state = sharing.merged_moments(opt_state, reset if merge.moments == "reset" else server.moments)
            agent_state = _with_params(agent_state, params, target_params, opt_state)
        if merge.replay == "clear":
            agent_state = agent.warm_up(agent_state.replace(replay=agent.memory.clear(agent_state.replay)))
        if merge.epsilon == "restart":
            actor = agent_state.actor
            now = actor.clock.count * agent_config.num_envs
            restarted = actor.hyperparams._replace(epsilon_first_frame=now)
            agent_state = agent_state.replace(actor=actor.replace(hyperparams=restarted))
        return state.replace(agent=agent_state)

    def train(
        state: ClientState, server: ServerState, round_number: jax.Array, steps: jax.Array
    ) -> tuple[ClientState, ClientUpdate, jax.Array, Info]:
        start = state.agent.learner.params
        before = sharing.shared(start)
        memory = jax.tree.map(jnp.zeros_like, before) if scaffold else ()
        agent_state = state.agent.replace(learner=state.agent.learner.replace(memory=memory))
        correction = _correction(config, sharing, before, state.control, server.control)
        agent_state, report, info = _local_steps(agent, agent_config, config, agent_state, steps, correction)
        grad_sum, learner = agent_state.learner.memory, agent_state.learner.replace(memory=())
        agent_state = agent_state.replace(learner=learner)

        delta = jax.tree.map(jnp.subtract, sharing.shared(learner.params), before)
        transform_state, sent = transform.update(jax.random.fold_in(state.stream, round_number), state.transform, delta)
        control = jax.tree.map(lambda total: total / jnp.maximum(report.updates, 1), grad_sum) if scaffold else ()
        update = ClientUpdate(
            delta=sent,
            report=report,
            control=jax.tree.map(jnp.subtract, control, state.control),
            moments=sharing.shared_moments(learner.opt_state) if merge.moments == "average" else (),
            target_params=sharing.shared(learner.target_params) if merge.target == "average" else (),
        )
        finite = _all_finite((update, learner.params, learner.target_params, learner.opt_state, transform_state))
        trained = state.replace(agent=agent_state, control=control, transform=transform_state)
        # A client that broke keeps its control variate: the server's is the mean of all of them.
        opt_state = optimizer_of(learner.hyperparams).init(start)
        started_again = _with_params(agent_state, start, start, opt_state)
        fresh = state.replace(agent=started_again, transform=transform.init(before))
        return _select(finite, trained, fresh), update, finite, info

    def num_bytes(state: ClientState) -> tuple[int, int]:
        learner = state.agent.learner
        params = sharing.shared(learner.params)
        scalars = 4 * len(Report._fields)
        beside = _size(state.control)
        beside += _size(sharing.shared_moments(learner.opt_state)) if merge.moments == "average" else 0
        beside += _size(params) if merge.target == "average" else 0
        if merge.parameters == "keep":
            return 0, 0
        return _size(params) + beside, transform.payload(payload_of(params)).num_bytes + beside + scalars

    return Client(init, begin, train, num_bytes)


def _local_steps(
    agent: Agent,
    agent_config: AgentConfig,
    config: FederatedConfig,
    state: AgentState,
    steps: jax.Array,
    correction: Correction | None,
) -> tuple[AgentState, Report, Info]:
    """Up to K agent steps; those after the client's last leave it as it is."""

    def step(carry: tuple[AgentState, jax.Array], t: jax.Array) -> tuple[tuple[AgentState, jax.Array], Info]:
        state, episodes = carry
        active: jax.Array | bool = True
        if config.masked:
            active = t < steps
        if config.local_episodes is not None:
            active &= episodes < config.local_episodes
        state, info = agent.step(state, correction, active)
        taken = jnp.asarray(active)
        counted = {name: info[name] for name in ("loss", "episodes", "return_sum")} | {"own": own_numbers(info)}
        seen = jax.tree.map(lambda x: jnp.where(taken, x, 0), counted)
        return (state, episodes + seen["episodes"]), seen | {"taken": taken, "epsilon": info["epsilon"]}

    (state, _), infos = jax.lax.scan(step, (state, jnp.int32(0)), jnp.arange(config.local_steps))
    taken = jnp.sum(infos["taken"])
    own = {name: jnp.sum(values) / jnp.maximum(taken, 1) for name, values in infos["own"].items()}
    refill = agent_config.warm_up_frames if config.merge.replay == "clear" else 0
    report = Report(
        frames=taken * agent_config.frames_per_step + refill,
        updates=taken * agent_config.updates_per_step,
        episodes=jnp.sum(infos["episodes"]),
        return_sum=jnp.sum(infos["return_sum"]),
        loss=jnp.sum(infos["loss"]) / jnp.maximum(taken, 1),
    )
    return state, report, {"epsilon": infos["epsilon"][-1], "own": own}


def _correction(config: FederatedConfig, sharing: Sharing, anchor: Params, own: Params, server: Params) -> Correction | None:
    """The change that the client's algorithm makes to every local gradient of what is shared.

    FedProx (Li et al. 2020), equation 2: g + mu (w - w_server). SCAFFOLD (Karimireddy et al. 2020), equation 3:
    g - c_i + c, here with c_i the mean raw gradient of the client's last round, the paper's option I taken along the way. Both
    stand before clipping and the optimizer. Under SGD that c_i is the paper's option II; under Adam the correction acts on
    gradients, not on steps. The gradients are those of the replay as it was: cleared or much changed, c_i is of other data.
    """

    def pulled(grads: Params, params: Params, memory: Tree) -> tuple[Params, Tree]:
        return jax.tree.map(lambda g, w, start: g + config.proximal * (w - start), grads, params, anchor), memory

    def controlled(grads: Params, params: Params, memory: Tree) -> tuple[Params, Tree]:
        corrected = jax.tree.map(lambda g, mine, all_of_us: g - mine + all_of_us, grads, own, server)
        return corrected, jax.tree.map(jnp.add, memory, grads)

    changes: dict[str, Correction] = {"fedprox": pulled, "scaffold": controlled}
    change = changes.get(config.algorithm)
    if change is None:
        return None

    def correction(grads: Params, params: Params, memory: Tree) -> tuple[Params, Tree]:
        corrected, memory = change(sharing.shared(grads), sharing.shared(params), memory)
        return sharing.merged(grads, corrected), memory

    return correction


def _with_params(state: AgentState, params: Params, target_params: Params, opt_state: Tree = None) -> AgentState:
    learner = state.learner.replace(params=params, target_params=jax.tree.map(jnp.copy, target_params))
    return state.replace(learner=learner if opt_state is None else learner.replace(opt_state=opt_state))


def _select(finite: jax.Array, trained: ClientState, fresh: ClientState) -> ClientState:
    """`trained` where `finite`, else `fresh`, in all that training can break; the rest is the same in both."""

    def pick(part: Callable[[ClientState], Tree]) -> Tree:
        return jax.tree.map(lambda x, y: jnp.where(finite, x, y), part(trained), part(fresh))

    learner = trained.agent.learner.replace(
        params=pick(lambda s: s.agent.learner.params),
        target_params=pick(lambda s: s.agent.learner.target_params),
        opt_state=pick(lambda s: s.agent.learner.opt_state),
    )
    agent = trained.agent.replace(learner=learner)
    return trained.replace(agent=agent, control=pick(lambda s: s.control), transform=pick(lambda s: s.transform))


def _all_finite(tree: Tree) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def _size(tree: Tree) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
