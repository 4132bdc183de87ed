"""Trains federated DQN on CartPoles whose poles differ in length.

python experiments/federated.py                                                    # eight clients, four draws of them
python experiments/federated.py --federated.personal head --run-dir runs/personal  # each client keeps its own head
python experiments/federated.py --federated.merge.parameters keep --run-dir runs/independent   # clients that never meet
python experiments/studies/federated_comparison.py                                 # beside what it stands between
"""

import sys

from dqn_jax.commands import federated

sys.exit(federated.main())
