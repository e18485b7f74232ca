"""Kill the smoke run (-9) at random moments, let it go on each time, and compare what it leaves.

    python benchmarks/kill_smoke.py [--kills 20] > docs/results/reliability/smoke_kill.txt

tests/run/test_kill.py does the same with `point`, in less time and more often inside a checkpoint's write.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TRAIN = [sys.executable, "-m", "mtrl.cli", "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        whole, pieces = Path(folder, "whole"), Path(folder, "pieces")
        start = time.monotonic()
        command = [*TRAIN, "--config=smoke", "--checkpoint_every=0.02", f"--run_dir={whole}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        say(f"undisturbed: {seconds:.0f} s, policy {checksum(whole)}")
        command = [*TRAIN, f"--config={whole / 'config.yaml'}", f"--run_dir={pieces}"]
        for kill in range(1, kills + 1):
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            while "replay up to" not in child.stdout.readline():  # it begins to train
                assert child.poll() is None
            time.sleep(moments.uniform(0, 1.5 * seconds / kills))
            if child.poll() is not None:
                say("done before the next kill")
                break
            child.kill()
            child.wait()
            torn = ", inside a checkpoint's write" if any(pieces.glob("checkpoint/*.tmp")) else ""
            say(f"kill {kill:2}: newest checkpoint is of step {newest_step(pieces)} per task{torn}")
        subprocess.run(
            command, check=child.returncode != 0, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        say(f"killed and resumed: policy {checksum(pieces)}")
        say("equal" if checksum(whole) == checksum(pieces) else "DIFFERENT")


def say(line: str) -> None:
    print(line, flush=True)


def newest_step(run: Path) -> int:
    return max((int(path.stem.split("-")[1]) for path in run.glob("checkpoint/manifest-*.json")), default=-1)


def checksum(run: Path) -> str:
    return hashlib.sha256((run / "policy.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
