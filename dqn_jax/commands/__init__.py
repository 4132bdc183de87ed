"""The entry points of the jobs: the only package that imports every way of training."""
