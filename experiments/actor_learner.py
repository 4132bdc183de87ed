"""Trains DQN with actors that explore, each with its own epsilon, and a learner that learns from what they send.

python experiments/actor_learner.py                                  # four actors on threads
python experiments/actor_learner.py --backend ray --run-dir runs/ray
python experiments/actor_learner.py --actors.exploration shared --run-dir runs/shared   # the agent's epsilon for all
python experiments/actor_learner.py --env gymnasium:CartPole-v1 --run-dir runs/gymnasium
"""

import sys

from dqn_jax.commands import actor_learner

sys.exit(actor_learner.main())
