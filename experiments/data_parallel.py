"""Trains DQN on a gymnax environment with gradients averaged over devices: the main job of this code base.

python experiments/data_parallel.py                                  # CartPole, 8 seeds, all local devices
python experiments/data_parallel.py --num-devices 4 --num-seeds 16   # four devices, virtual ones on a laptop
python experiments/data_parallel.py --preset classic                 # textbook DQN
python -m dqn_jax.runner.launch --num-processes 2 experiments/data_parallel.py --num-devices 2   # two processes of two devices
"""

import sys

from dqn_jax.commands import data_parallel

sys.exit(data_parallel.main())
