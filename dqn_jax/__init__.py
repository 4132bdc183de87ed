"""Deep Q-Networks on many learners at once: one pure agent, and ways of training that transform it.

Importing this package starts nothing: call `dqn_jax.runtime.setup` first where devices must be chosen, then import the modules
that are needed (`dqn_jax.envs`, `dqn_jax.agent`, `dqn_jax.distributed.data_parallel`, ...). `dqn_jax.load`, which gives what a
run has learned, is found when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dqn_jax.play.load import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Finds `load`, which starts jax."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dqn_jax.play.load import load

    return load
