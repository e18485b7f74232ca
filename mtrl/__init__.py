"""Multi-task reinforcement learning: MT-SAC under unitary scalarization and gradient methods."""

__version__ = "0.1.0"
