"""A run's life: its folder, its checkpoints, and what happens around the training loop."""
