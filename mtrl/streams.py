"""One seed, many independent streams of random numbers."""

from __future__ import annotations

import numpy as np

STREAMS = ("networks", "exploration", "replay", "critic method", "actor method", "temperature method")


def stream(seed: int, name: str) -> int:
    """The seed of one of :data:`STREAMS`, below 2⁶³: no other stream's, and no other seed's.

    By numpy's ``SeedSequence``, which mixes the two numbers. Environments draw from sequences of three
    (:mod:`mtrl.envs.wrappers`), so theirs are others again.

    Raises:
        ValueError: the seed is negative, or there is no such stream.
    """
    (own,) = np.random.SeedSequence((seed, STREAMS.index(name))).generate_state(1, np.uint64)
    return int(own >> np.uint64(1))
