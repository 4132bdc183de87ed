"""Trains every algorithm in every environment, and compares them.

python experiments/scoreboard.py --out experiments/results/scoreboard          # what has no row yet, then table and figures
python experiments/scoreboard.py --out experiments/results/scoreboard --tune   # learning rates first, on other seeds
"""

import sys

from dqn_jax.commands import scoreboard

sys.exit(scoreboard.main())
