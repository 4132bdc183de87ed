"""Trains DQN with a parameter server: workers push gradients computed with parameters that may be out of date.

python experiments/parameter_server.py                              # the textbook's four workers, in turn
python experiments/parameter_server.py --backend threads --run-dir runs/threads
python experiments/parameter_server.py --backend ray --run-dir runs/ray
python experiments/parameter_server.py --backend ray --ray-address 10.0.0.1:6379 --run-dir runs/cluster
python experiments/parameter_server.py --preset model --run-dir runs/model   # in virtual time, many seeds at once
"""

import sys

from dqn_jax.commands import parameter_server

sys.exit(parameter_server.main())
