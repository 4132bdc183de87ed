"""What the jobs with real workers share: what comes before jax starts, and the start of the workers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from dqn_jax import runtime
from dqn_jax.distributed.config import ActorLearnerExperiment, ServerExperiment
from dqn_jax.runner.compiled import keep_compiled

if TYPE_CHECKING:
    from dqn_jax.distributed.engines.tasks import Engine, Job


def prepare(config: ServerExperiment | ActorLearnerExperiment, num_workers: int) -> None:
    """Starts Ray, or joins its cluster, if that is the backend, and then sets up the devices."""
    keep_compiled(config.runner.compilation_cache)
    if config.backend == "ray":
        from dqn_jax.distributed.engines import on_ray

        on_ray.connect(config.ray_address, num_workers)
    runtime.setup(config.num_devices)


def start(config: ServerExperiment | ActorLearnerExperiment, make_job: Callable[..., Job], num_workers: int) -> Engine:
    """Starts workers of the config's backend, each with the job that `make_job(config)` makes where it runs."""
    # Not at the top: this starts jax.
    from dqn_jax.distributed import engines

    return engines.start(config.backend, functools.partial(make_job, config), num_workers, config.ray_address)
