"""The training loop, the run's folder, the memory check before the start."""
