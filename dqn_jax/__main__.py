"""`python -m dqn_jax` is `dqn-jax`."""

import sys

from dqn_jax.commands.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
