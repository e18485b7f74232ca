"""A whole training step of a config on one thread (environments, update, and the rest), over that of another commit.

    python benchmarks/whole_step.py --against 5877d64 --rounds 3

Each round trains both in turn, each in a process of its own from its own checkout. The figure is the time per
step of all tasks after the random steps, from row to row of the log; the ratio is the median over rounds. This
checkout's update is compiled, as in a run of full length.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WARMUP = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", required=True, help="a commit")
    parser.add_argument("--config", default="mt10_fast")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500, help="steps per task with updates")
    parser.add_argument("--kernels", default="compiled", help="of this checkout")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", other, args.against], cwd=ROOT, check=True
        )
        try:
            ratios = []
            for number in range(args.rounds):
                now, before = (
                    milliseconds(tree, Path(folder) / f"{name}{number}", args.config, args.steps, more)
                    for name, tree, more in (
                        ("now", ROOT, ["--agent.kernels", args.kernels]),
                        ("before", other, []),
                    )
                )
                ratios.append(now / before)
                print(
                    f"round {number}: {now:.2f} ms now, {before:.2f} ms at {args.against}, ratio {ratios[-1]:.3f}"
                )
            print(f"median of {args.rounds} rounds: {statistics.median(ratios):.3f}")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)


def milliseconds(tree: Path, run: Path, config: str, steps: int, more: list[str]) -> float:
    """Per step of all tasks, between the first and the last row of the log that has updates."""
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); from mtrl.cli import main; sys.exit(main())"
    command = [
        sys.executable, "-c", code, "train", "--config", config, "--threads", "1", "--workers", "0",
        "--warmup_steps", str(WARMUP), "--total_steps_per_task", str(WARMUP + steps), "--log_every", "100",
        "--eval_every", "0", "--run_dir", str(run), *more,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with (run / "progress.csv").open(newline="") as file:
        rows = [
            (int(row.get("timesteps") or row["steps_per_task"]), float(row["time/seconds"]))
            for row in csv.DictReader(file)
            if row["time/fps"]
        ]
    tasks = rows[-1][0] // (WARMUP + steps)
    rows = [(step // tasks, seconds) for step, seconds in rows if step // tasks > WARMUP]
    (first, began), (last, ended) = rows[0], rows[-1]
    return 1e3 * (ended - began) / (last - first)


if __name__ == "__main__":
    main()
