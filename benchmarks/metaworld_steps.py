"""A vector step of MT10 against Meta-World's own vector env, both in this process.

    python benchmarks/metaworld_steps.py [--rounds 20] [--steps 40]

The two take turns with the same random actions, within one episode; the ratio is the median over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import gymnasium as gym
import metaworld  # noqa: F401  (registers its envs)
import numpy as np

from mtrl.envs.protocol import Protocol
from mtrl.envs.suites import make_suite

EPISODE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=40, help="vector steps of each in a round")
    args = parser.parse_args()
    stock = gym.make_vec("Meta-World/MT10", vector_strategy="sync", seed=0, use_one_hot=True)
    ours = make_suite(Protocol("mt10"), seed=0, workers=0)
    actions = np.random.default_rng(0).uniform(-1, 1, (args.rounds, args.steps, 10, 4)).astype(np.float32)
    times = []
    for i, block in enumerate(actions):
        if i % (EPISODE // args.steps) == 0:
            stock.reset()
            ours.reset()
        times.append((milliseconds(stock, block), milliseconds(ours, block)))
    stock_ms, ours_ms = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(mine / theirs for theirs, mine in times)
    print(f"one step of 10 tasks: Meta-World {stock_ms:.2f} ms, ours {ours_ms:.2f} ms, ratio {ratio:.2f}")


def milliseconds(envs: Any, actions: Any) -> float:
    """Per vector step, for actions `[N, T, A]`."""
    start = time.perf_counter()
    for action in actions:
        envs.step(action)
    return 1000 * (time.perf_counter() - start) / len(actions)


if __name__ == "__main__":
    main()
