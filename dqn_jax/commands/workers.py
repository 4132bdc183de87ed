"""What the jobs with real workers do before jax starts."""

from dqn_jax import runtime
from dqn_jax.distributed.config import ActorLearnerExperiment, ServerExperiment
from dqn_jax.runner.compiled import keep_compiled


def prepare(config: ServerExperiment | ActorLearnerExperiment, num_workers: int) -> None:
    """Starts Ray, or joins its cluster, if that is the backend, and then sets up the devices."""
    keep_compiled(config.runner.compilation_cache)
    if config.backend == "ray":
        from dqn_jax.distributed.engines import on_ray

        on_ray.connect(config.ray_address, num_workers)
    runtime.setup(config.num_devices)
