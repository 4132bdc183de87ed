"""Workers of a parameter server: their start, and their work between two pushes, wherever environments are stepped.

Not here: where workers run (`engines`), the server's side (`server_on_workers`), the steps themselves (`roles`).

Shapes: E environments of a worker, T environment steps.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from dqn_jax.actor import make_actor
from dqn_jax.agent import AgentState, every_step, reduce_info, reduce_infos
from dqn_jax.build import build
from dqn_jax.distributed.acting import Moment, make_acting
from dqn_jax.distributed.config import ServerExperiment
from dqn_jax.distributed.engines.tasks import Job, Task
from dqn_jax.distributed.roles import Worker, make_worker
from dqn_jax.envs import Environment
from dqn_jax.networks import Network
from dqn_jax.types import Info, Tree


def make_job(config: ServerExperiment) -> Job:
    """Makes a worker's job, for any engine."""
    env, network = build(config, on_host=True, trial=False)
    worker = make_worker(env, network, config.agent, config.server)
    begin, work = _in_a_program(config, worker) if env.start is None else _on_the_host(config, env, network, worker)
    pull = jax.jit(worker.pull)

    def run(state: _AtWork, task: Task) -> tuple[_AtWork, Tree, Info]:
        if task.params is not None:
            state = state._replace(agent=pull(state.agent, task.params))
        return work(state)

    return Job(begin, run)


class _AtWork(NamedTuple):
    """The state of a worker between tasks."""

    agent: AgentState
    acting: Tree
    """State of `acting.Acting`; empty where a program steps the environment."""


_Halves: TypeAlias = tuple[Callable[[Task], _AtWork], Callable[[_AtWork], tuple[_AtWork, Tree, Info]]]
"""How a worker starts, and its agent steps between two pushes."""


def _in_a_program(config: ServerExperiment, worker: Worker) -> _Halves:
    """Compiles the agent's whole steps."""
    init = jax.jit(lambda number, frames, copy: worker.init(config.seed, number, copy, frames=frames))
    steps = jax.jit(worker.work)

    def begin(task: Task) -> _AtWork:
        return _AtWork(init(jnp.int32(task.stream), jnp.int32(task.frames), task.params), ())

    def work(state: _AtWork) -> tuple[_AtWork, Tree, Info]:
        agent, push, info = steps(state.agent)
        return _AtWork(agent, ()), push, info

    return begin, work


def _on_the_host(config: ServerExperiment, env: Environment, network: Network, worker: Worker) -> _Halves:
    """Splits the same steps: acting on the host, then storing and learning in a program."""
    acting = make_acting(env, make_actor(env, network, config.agent))
    fresh = jax.jit(lambda number, frames, copy: worker.fresh(config.seed, number, copy, frames=frames))
    store = jax.jit(worker.store, donate_argnums=0)

    @functools.partial(jax.jit, donate_argnums=0)
    def learn(agent: AgentState, moments: Moment) -> tuple[AgentState, Tree, Info]:
        agent, push, info = worker.learn(worker.store(agent, moments.transitions, moments.valid))
        return agent, push, every_step(reduce_info(moments.info) | info)

    def begin(task: Task) -> _AtWork:
        agent = fresh(jnp.int32(task.stream), jnp.int32(task.frames), task.params)
        # The actor's state is kept apart from the agent, with its environments.
        agent, state = agent.replace(actor=()), acting.begin(agent.actor)
        if config.agent.warm_up_acts:
            state, moments = acting.play(state, agent.learner.params, config.agent.warm_up_acts)
            agent = store(agent, moments.transitions, moments.valid)
        return _AtWork(agent, state)

    def work(state: _AtWork) -> tuple[_AtWork, Tree, Info]:
        agent, actor = state
        pushes, infos = [], []
        for _ in range(config.server.local_steps):
            actor, moments = acting.play(actor, agent.learner.params, config.agent.acts_per_step)
            agent, push, info = learn(agent, moments)
            pushes.append(push)
            infos.append(jax.device_get(info))
        push = jax.tree.map(lambda *parts: sum(parts), *pushes)
        return _AtWork(agent, actor), push, reduce_infos(infos)

    return begin, work
