"""All side effects: the run loop, checkpoints, metrics, plots and the command line."""
