"""The mains of the jobs: above all other rooms, and alone to know every way of training."""
