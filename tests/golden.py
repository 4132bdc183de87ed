"""What one act and one update make of a fixed state, and what each random stream begins with: numbers that changes must keep.

`python tests/golden.py` writes `golden.json` anew. Do that only where a change is meant to change results, and say which ones.
The names are those of the field: where a record of the code moves, this file is what follows it.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dqn_jax.actor import make_actor
from dqn_jax.agent import hyperparams_of, keys_of, make_agent
from dqn_jax.config import AgentConfig, NetworkConfig
from dqn_jax.distributed.config import ServerConfig
from dqn_jax.distributed.parameter_server import make_model
from dqn_jax.distributed.roles import make_server, make_worker
from dqn_jax.envs import make_env
from dqn_jax.federated.config import FederatedConfig
from dqn_jax.federated.driver import named_parts
from dqn_jax.federated.heterogeneity import draw_all
from dqn_jax.federated.rounds import make_federation
from dqn_jax.mapping import evaluation_key, stream_key
from dqn_jax.networks import make_network
from dqn_jax.types import EnvSpec

FILE = Path(__file__).with_suffix(".json")
SEED, INDEX = 3, 5

ENV = make_env("CartPole-v1", max_episode_steps=7)
NETWORK = make_network(NetworkConfig(hidden_sizes=(4,)), ENV.spec)
SIZES = {"num_envs": 2, "batch_size": 4, "replay_capacity": 16, "learning_starts": 12}
AGENTS = {
    "plain": AgentConfig(**SIZES, target_period=1, target_rate=0.25, epsilon_start=0.5, epsilon_decay_frames=20),
    "everything": AgentConfig(
        **SIZES,
        memory="prioritised",
        n_step=3,
        time_limit="terminal",
        double_q=True,
        loss="huber",
        optimizer="rmsprop",
        optimizer_eps=0.01,
        max_grad_norm=0.1,
        epsilon_schedule="exponential",
        epsilon_decay_frames=40,
        acts_per_step=2,
        updates_per_step=2,
    ),
}


def numbers(tree):
    """{path: values} of the float leaves of parameters or an optimizer."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def step_of(config):
    """What one step makes of a fixed state: of all that the environments did, and all that the update did."""
    agent = make_agent(ENV, NETWORK, config)
    state = jax.jit(lambda: agent.warm_up(agent.init(stream_key(SEED, INDEX))))()
    # Apart from the online network, so that both count.
    target_params = jax.tree.map(lambda x: 0.5 * x + 0.1, state.learner.params)
    state = state.replace(learner=state.learner.replace(target_params=target_params))
    after, info = jax.jit(agent.step)(state)
    new = slice(int(state.replay.added.count) % config.replay_capacity, None)
    learner = after.learner
    priorities = {"priorities": after.replay.priorities.tree[0]} if config.memory == "prioritised" else {}
    return {
        "observations": after.actor.obs,
        "stored": {name: rows[new][: config.frames_per_step] for name, rows in after.replay.storage._asdict().items()},
        "info": info,
        "params": numbers(learner.params),
        "target_params": numbers(learner.target_params),
        # After the part that clips.
        "optimizer": numbers(learner.opt_state[1]),
        **priorities,
    }


def convolution():
    """Q-values of the MinAtar network."""
    network = make_network(NetworkConfig(hidden_sizes=(4,), channels=2), EnvSpec("grid", (5, 4, 3), np.dtype(np.float32), 3, 1))
    params = network.init(jax.random.key(SEED))
    obs = jnp.arange(60).reshape(5, 4, 3) % 7 == 0
    shapes = {name: list(values.shape) for name, values in numbers(params).items()}
    return {"shapes": shapes, "q_values": network.apply(params, obs, None).q_values}


def streams():
    """The first number of every random stream of a run."""
    config = AGENTS["plain"]
    key = stream_key(SEED, INDEX)
    agent = make_agent(ENV, NETWORK, config, num_shards=2).init(key, shard=1)
    choice = make_actor(ENV, NETWORK, config).choose(
        make_actor(ENV, NETWORK, config).init(key, ENV.params, hyperparams_of(config).actor), NETWORK.init(key)
    )
    cartpole = make_env("CartPole-v1")
    federated = FederatedConfig(num_clients=2, participation="buffered", num_clients_per_round=1)
    envs = draw_all(cartpole, federated, 2)
    federation = make_federation(NETWORK, named_parts(cartpole, NETWORK, config, federated), federated)
    clients = jax.jit(federation.init)(SEED, jax.tree.map(lambda x: x[0], envs.seen), jnp.array([4, 5]))
    options = ServerConfig(num_workers=3)
    server = make_server(NETWORK, config, options)
    model = make_model(make_worker(ENV, NETWORK, config, options), server, options)
    workers = jax.jit(model.init)(SEED)
    keys = {
        "a learner": key,
        "its network": keys_of(key)[0],
        "its actor": keys_of(key)[1],
        "its learning": keys_of(key)[2],
        "the first environment of its second shard": agent.actor.streams[0],
        "sampling of its second shard": agent.stream,
        "a step of its second environment": choice.env_keys[1],
        "an evaluation after 1000 frames": evaluation_key(SEED, 1000),
        # No run has both: the same stream as service times of workers.
        "plans of a federation": clients.stream,
        "transforms of client 5": clients.clients.stream[1],
        "sampling of client 5": clients.clients.agent.stream[1],
        "service times of workers": workers.plans,
        "sampling of worker 2": workers.workers.stream[2],
        "the first environment of worker 2": workers.workers.actor.streams[2, 0],
    }
    bits = {name: jax.random.bits(key) for name, key in keys.items()}
    drawn = {f"half-pole of client {i}, draw {seed}": envs.seen.length[seed, i] for seed in range(2) for i in range(2)}
    unseen = {"unseen half-pole": envs.inside.length[0, 0], "half-pole beyond": envs.beyond.length[0, 0]}
    times = {"time of worker 2's first push": workers.remaining[2], "flight of client 1": clients.participation.remaining[1]}
    return bits | drawn | unseen | times


PARTS = {name: functools.partial(step_of, config) for name, config in AGENTS.items()}
PARTS |= {"convolution": convolution, "streams": streams}


def computed(part):
    """{name: values} of one part, floats with the nine digits that a float32 holds."""

    def as_json(x):
        x = np.asarray(x)
        return np.vectorize(lambda value: float(f"{value:.9g}"))(x).tolist() if x.dtype.kind == "f" else x.tolist()

    leaves = jax.tree_util.tree_leaves_with_path(PARTS[part](), is_leaf=lambda x: isinstance(x, list))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): as_json(x) for path, x in leaves}


if __name__ == "__main__":
    parts = []
    for part in PARTS:
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in computed(part).items())
        parts.append(f" {json.dumps(part)}: {{\n{lines}\n }}")
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n")
