"""Multi-task reinforcement learning: MT-SAC under unitary scalarization and gradient methods."""

import os

# Threads of a parallel region that wait asleep, not spinning: several runs on one machine then share its cores,
# where spinning ones take ten times as long. It has to be said before torch is loaded; docs/performance.md.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
