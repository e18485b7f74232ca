"""Multi-task reinforcement learning: MT-SAC under unitary scalarization and gradient methods."""

import os

# How long a thread of GNU OpenMP spins for work before it sleeps. By default so long that two runs of two threads
# on two cores take six times as long as they need; at 2000 the two lose a fifth and a run alone 7 %
# (docs/performance.md). Has to be said before torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"
