"""Trains federated DQN on CartPoles whose poles differ in length.

python experiments/federated.py                                                    # eight clients, four draws of them
python experiments/federated.py --federated.personal head --run-dir runs/personal  # each client keeps its own head
python experiments/federated.py --federated.merge.parameters keep --run-dir runs/independent   # clients are not merged
python experiments/studies/federated_comparison.py                                 # against independent and pooled training
"""

import sys

from dqn_jax.commands import federated

sys.exit(federated.main())
