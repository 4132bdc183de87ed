"""Real workers: in this process, on threads, or as Ray processes, behind one small interface."""

from collections.abc import Callable

from dqn_jax.distributed.engines.tasks import Engine, Job


def start(backend: str, make_job: Callable[[], Job], num_workers: int, ray_address: str | None = None) -> Engine:
    """Starts workers.

    Args:
      backend: "in-process", "threads" or "ray".
      make_job: makes what they do; for Ray it must be picklable.
      num_workers: workers wanted.
      ray_address: of a running Ray cluster; None starts Ray on this machine.

    Raises:
      InputError: where Ray is not installed, or nothing answers at its address.
    """
    if backend == "ray":
        from dqn_jax.distributed.engines import on_ray

        return on_ray.start(make_job, num_workers, ray_address)
    from dqn_jax.distributed.engines import in_process, threads

    return {"in-process": in_process, "threads": threads}[backend].start(make_job(), num_workers)
