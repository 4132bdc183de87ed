"""Deep Q-Networks on many learners at once: one pure agent, and ways of training that transform it.

Importing this package starts nothing: call `dqn_jax.runtime.setup` first where devices must be chosen, then import the modules
that are needed (`dqn_jax.envs`, `dqn_jax.agent`, `dqn_jax.distributed.data_parallel`, ...).
"""

__version__ = "0.1.0"
