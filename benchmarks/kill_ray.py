"""Kill (-9) a node of a Ray cluster in mid-sweep, then the driver; compare what is left with undisturbed runs.

    python benchmarks/kill_ray.py > docs/results/reliability/ray_kill.txt
    python benchmarks/kill_ray.py point_methods --whole runs > docs/results/reliability/ray_kill_point_methods.txt

The cluster is several Ray nodes on this machine. A node is killed by its raylet; its workers end when they miss it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster

from mtrl.run.status import read_status

SWEEP = [sys.executable, "-m", "mtrl.cli", "sweep"]
NODES = 3
EXPERIMENT = """
base: point
common: {total_steps_per_task: 3000, eval_every: 1000, checkpoint_every: 0.02}
arms: {unitary: {optimizer.name: unitary}, pcgrad: {optimizer.name: pcgrad}}
seeds: "0..1"
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", nargs="?", help="of 4 runs with many checkpoints, without it")
    parser.add_argument("--whole", type=Path, help="where its undisturbed runs are, or are made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kill.yaml").write_text(EXPERIMENT)
        whole, pieces = args.whole or folder / "whole", folder / "pieces"
        command = [*SWEEP, args.experiment or str(folder / "kill.yaml")]
        start = time.monotonic()
        subprocess.run([*command, f"--runs={whole}"], check=True, stdout=subprocess.DEVNULL)
        whole /= args.experiment or "kill"
        say(f"undisturbed, on one machine: {len(policies(whole))} runs in {time.monotonic() - start:.0f} s")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        nodes = [cluster.add_node(num_cpus=1) for _ in range(NODES)]
        command += ["--engine=ray", f"--address={cluster.address}", f"--runs={pieces}"]
        with (folder / "output").open("w") as output:
            start = time.monotonic()
            driver = subprocess.Popen(command, stdout=output, stderr=output)
            wait_for(lambda: len(training(pieces)) == NODES, driver)
            before = training(pieces)
            raylet = nodes[0].all_processes["raylet"][0].process
            raylet.kill()
            raylet.wait()  # its workers take a zombie for alive
            say(f"{time.monotonic() - start:.0f} s: a node of {NODES} killed; training: {', '.join(before)}")
            wait_for(lambda: resumed(pieces) > 0, driver)
            say(f"{time.monotonic() - start:.0f} s: its run goes on elsewhere")
            wait_for(lambda: len(policies(pieces, "DONE")) >= 2 and training(pieces), driver)
            driver.kill()
            driver.wait()
            say(
                f"{time.monotonic() - start:.0f} s: the driver killed, {len(policies(pieces, 'DONE'))} runs done"
            )
            wait_for(lambda: not training(pieces), None)
            say(f"{time.monotonic() - start:.0f} s: the other runs ended with it")
            code = subprocess.run(command, stdout=output, stderr=output).returncode
        say(f"{time.monotonic() - start:.0f} s: the same command again ended with {code}")
        say(f"{len(policies(pieces, 'DONE'))} runs done, resumed {resumed(pieces)} times")
        pieces /= args.experiment or "kill"
        say("policies are equal" if policies(whole) == policies(pieces) else "policies DIFFER")
        cluster.shutdown()


def say(line: str) -> None:
    print(line, flush=True)


def wait_for(condition, driver: subprocess.Popen | None) -> None:
    limit = time.monotonic() + 300
    while not condition():
        assert driver is None or driver.poll() is None, "the driver ended"
        assert time.monotonic() < limit, "waited for 300 s"
        time.sleep(0.05)


def training(root: Path) -> list[str]:
    """Runs in mid-training: with a checkpoint, and steps that are logged."""
    return [
        f"{run.parent.name}/{run.name}"
        for run in sorted(root.glob("*/*/seed*"))
        if read_status(run) == "RUNNING"
        and list(run.glob("checkpoint/manifest-*.json"))
        and (run / "progress.csv").exists()
    ]


def resumed(root: Path) -> int:
    """How often a run went on from a checkpoint."""
    return sum(log.read_text().count("going on from step") for log in root.glob("*/*/log_*"))


def policies(root: Path, status: str = "") -> dict[str, str]:
    """Checksums by run under a folder, of those with this status."""
    return {
        str(run.relative_to(root)): hashlib.sha256((run / "policy.safetensors").read_bytes()).hexdigest()
        for run in sorted(root.glob("**/seed*"))
        if (run / "STATUS").is_file() and (run / "STATUS").read_text().startswith(status)
        and (run / "policy.safetensors").is_file()
    }  # fmt: skip


if __name__ == "__main__":
    main()
