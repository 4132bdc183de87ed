"""Where side effects live: the run loop, checkpoints, metrics, plots and the command line."""
