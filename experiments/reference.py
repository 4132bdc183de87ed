"""Trains with CleanRL's published settings on CartPole, and compares.

python experiments/reference.py --out experiments/results/reference.json
"""

import sys

from dqn_jax.commands import reference

sys.exit(reference.main())
