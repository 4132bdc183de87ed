"""Federations of one weight, whose rounds can be worked out by hand: client i descends on a_i (w - b_i)^2 / 2 from w = 0.

Of more weights, each is descended on in the same way; what is told of a round is of the one called w.
"""

import jax
import jax.numpy as jnp
import numpy as np
from laws.common import ENV
from laws.federation import many

from dqn_jax.agent import make_agent
from dqn_jax.config import AgentConfig
from dqn_jax.federated.client import make_client
from dqn_jax.federated.driver import make_federated, named_parts
from dqn_jax.federated.participation import Plan
from dqn_jax.federated.rounds import make_federation
from dqn_jax.federated.transforms import make_transforms
from dqn_jax.learner import make_learner
from dqn_jax.networks import Network, QValues

SLOPES = np.array([1.0, 1.5, 0.5])
"""a_i."""
CENTRES = np.array([1.0, 3.0, -2.0])
"""b_i."""
RATE = 0.1
SGD = AgentConfig(num_envs=1, optimizer="sgd", learning_rate=RATE, target_period=1_000, learning_starts=32)

NETWORK = Network(
    init=lambda key: {"w": jnp.float32(0.0)},
    apply=lambda params, obs, key: QValues(jnp.stack([params["w"], params["w"]])),
)


def parts_of(config, agent_config=SGD, poison=None, change=lambda parts: parts, network=NETWORK):
    """The parts of a federation in which client i is a quadratic.

    A step's loss is the gradient before it, its own number `so_far` the updates until then, times one more than the client's
    number, and every second update ends an episode with a return of 7. `poison` maps a client to the number of updates after
    which its gradient is NaN for once.
    """
    agent, learner = make_agent(ENV, network, agent_config), make_learner(network, agent_config)

    def descend(state, correction):
        # The environment's parameters say which quadratic it is.
        number = state.actor.env_params.max_steps_in_episode
        slope, centre = jnp.float32(SLOPES)[number], jnp.float32(CENTRES)[number]
        gradients = jax.tree.map(lambda w: slope * (w - centre), state.learner.params)
        for client, updates in (poison or {}).items():
            bad = (number == client) & (state.learner.updates.count == updates)
            gradients = jax.tree.map(lambda gradient, bad=bad: jnp.where(bad, jnp.nan, gradient), gradients)
        return state.replace(learner=learner.apply(state.learner, gradients, correction)[0]), gradients["w"]

    def step(state, correction=None, active=True):
        new, losses = state, []
        for _ in range(agent_config.updates_per_step):
            new, loss = descend(new, correction)
            losses.append(loss)
        if active is not True:
            new = jax.tree.map(lambda x, y: jnp.where(active, x, y), new, state)
        ended = (new.learner.updates.count % 2 == 0).astype(jnp.int32)
        info = {"loss": sum(losses) / len(losses), "episodes": ended, "return_sum": 7.0 * ended, "epsilon": jnp.float32(0)}
        return new, info | {"so_far": new.learner.updates.count * (state.actor.env_params.max_steps_in_episode + 1.0)}

    agent = agent._replace(step=step, warm_up=lambda state: state)
    parts = named_parts(ENV, network, agent_config, config)
    client = make_client(agent, agent_config, config, make_transforms(config.transforms), parts.sharing)
    return change(parts._replace(client=client))


def env_params_of(num_clients):
    return many(ENV.params, num_clients).replace(max_steps_in_episode=np.arange(num_clients))


def quadratic(config, rounds, change=lambda parts: parts, poison=None, agent_config=SGD, network=NETWORK):
    """(server's w after each round, final state, infos [rounds, ...])."""
    federation = make_federation(network, parts_of(config, agent_config, poison, change, network), config)
    clients = config.num_clients

    def one_round(state, _):
        state, info = federation.round(state)
        return state, (state.server.params["w"], info)

    @jax.jit
    def run(state):
        return jax.lax.scan(one_round, state, length=rounds)

    start = jax.jit(federation.init)(np.int32(0), env_params_of(clients), np.arange(clients))
    state, (weights, infos) = run(start)
    return np.asarray(weights), state, infos


def driver_of(config, rounds_per_step=1, network=NETWORK, seeds=(0,), num_devices=1, seeds_over_devices=True, **options):
    """The driver of such a federation, of one repetition on one device unless more are asked for."""
    return make_federated(
        ENV,
        network,
        SGD,
        config,
        env_params=jax.tree.map(lambda x: np.stack([x] * len(seeds)), env_params_of(config.num_clients)),
        seeds=seeds,
        devices=jax.local_devices()[:num_devices],
        rounds_per_step=rounds_per_step,
        parts=parts_of(config, network=network, **options),
        seeds_over_devices=seeds_over_devices,
    )


def planned(**fields):
    """A change of parts: who starts, who delivers, for how many steps and how stale, each [N], or [rounds, N] for each round.

    The state of this participation is the number of the round.
    """
    fields = {name: jnp.atleast_2d(jnp.asarray(values)) for name, values in fields.items()}

    def change(parts):
        participation = parts.participation

        def init(key):
            return jnp.int32(0), participation.init(key)

        def plan(key, state):
            now, inner = state
            inner, drawn = participation.plan(key, inner)
            rows = {name: values[jnp.minimum(now, len(values) - 1)] for name, values in fields.items()}
            return (now + 1, inner), Plan(**drawn._asdict() | rows)

        return parts._replace(participation=participation._replace(init=init, plan=plan))

    return change


def descended(start, client, steps=1):
    """w after plain steps of a client, in Python."""
    w = start
    for _ in range(steps):
        w -= RATE * SLOPES[client] * (w - CENTRES[client])
    return w


def by_hand(local_steps, rounds, mu=0.0, scaffold=False, updates_per_step=1):
    """(server's w after each round, controls, control) from the papers' pseudo-code, for client i with `local_steps[i]`."""
    clients = len(local_steps)
    server, controls, control, history = 0.0, np.zeros(clients), 0.0, []
    for _ in range(rounds):
        ends, means = [], []
        for i in range(clients):
            w, raw = server, []
            for _ in range(local_steps[i] * updates_per_step):
                gradient = SLOPES[i] * (w - CENTRES[i])
                raw.append(gradient)
                w -= RATE * (gradient + mu * (w - server) + (control - controls[i] if scaffold else 0.0))
            ends.append(w)
            means.append(np.mean(raw))
        if scaffold:
            control += np.mean(np.array(means) - controls)
            controls = np.array(means)
        server = np.mean(ends)
        history.append(server)
    return np.array(history), controls, control
