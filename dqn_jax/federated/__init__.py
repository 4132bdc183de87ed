"""Federated DQN: clients that keep their experience, and a server that merges what they send."""
