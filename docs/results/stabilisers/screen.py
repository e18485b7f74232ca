"""Each stabiliser switched on in a short run of the point suite: one seed, so that it is seen to act.

    python docs/results/stabilisers/screen.py runs/screen docs/results/stabilisers/point.csv

A line per run: what differs from `--config point`, minutes are not compared (the machine was shared).
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from mtrl.cli import main

STEPS = "1000"
RUNS = {
    "default": "",
    "distributional": "--agent.critic.loss distributional --agent.critic.reduction mean",
    "blocks": "--agent.critic.hidden [64] --agent.critic.blocks 2 "
    "--agent.actor.hidden [64] --agent.actor.blocks 1 --agent.actor.layer_norm true",
    "reward_ema": "--agent.reward_scale ema",
    "reward_sigma": "--agent.reward_scale sigma",
    "reward_none": "--agent.reward_scale none",
    "target_clip": "--agent.target_clip true",
    "burst": "--warmup_updates 300",
    "reduction_mean": "--agent.critic.reduction mean",
    "two_hot": "--agent.critic.loss two_hot",
    "hl_gauss": "--agent.critic.loss hl_gauss",
    "actor_l2": "--agent.actor.weight_decay 3e-4 --agent.actor.decay coupled --agent.actor.decay_on as_published",
    "shared_alpha": "--agent.temperature.shared true",
    "no_layer_norm": "--agent.critic.layer_norm false",
    "through_alpha": "--agent.temperature.loss alpha",
    "clip_norm": "--agent.actor.max_grad_norm 1.0 --agent.critic.max_grad_norm 1.0",
    "dropout": "--agent.critic.dropout 0.01",
    "ensemble5": "--agent.critic.ensemble 5",
    "decoupled_decay": "--agent.actor.weight_decay 0.01 --agent.critic.weight_decay 0.01",
    "embedding": "--agent.task_input embedding",
    "xavier": "--agent.actor.init xavier --agent.critic.init xavier",
    "two_updates": "--updates_per_step 2",
    "slow_target": "--agent.tau 0.005",
    "small_buffer": "--replay.capacity 300",
}
COMMON = f"--total_steps_per_task {STEPS} --eval_every 0 --diagnostics_every 0 --checkpoint_every 0 --log_every 100"


def tail(rows: list[dict[str, str]], prefix: str) -> float:
    """Mean over tasks of the last row's columns that start so."""
    values = [float(value) for key, value in rows[-1].items() if key.startswith(prefix) and value]
    return sum(values) / len(values)


def line(name: str, run: Path) -> dict[str, object]:
    scores = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    with (run / "progress.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/n_updates"]]
    return {
        "run": name, "differs": RUNS[name], "updates": int(float(rows[-1]["train/n_updates"])),
        "success": round(scores["mean_success"], 3),
        "return": round(sum(t["return"] for t in scores["tasks"].values()) / len(scores["tasks"]), 2),
        "critic_loss": round(tail(rows, "train_critic_loss/"), 4), "q": round(tail(rows, "train_q/"), 3),
        "alpha": round(tail(rows, "train_ent_coef/"), 4),
        "reward_scale": round(tail(rows, "train_reward_scale/"), 4),
    }  # fmt: skip


if __name__ == "__main__":
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    lines = []
    for name, options in RUNS.items():
        run = folder / name / "seed0"
        if not (run / "eval.jsonl").exists():
            main(["train", "--config", "point", "--run_dir", str(run), *COMMON.split(), *options.split()])
        lines.append(line(name, run))
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
