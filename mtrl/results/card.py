"""A model card: what a policy is, what it was measured at, how to use it; in the format of the Hugging Face hub."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from mtrl.config import ConfigError
from mtrl.registry import import_options
from mtrl.results.tables import interval, rate

EXTRA = "huggingface_hub"
BEST = "It is the policy of the best evaluation in training, so its number is biased upwards where goals are the same. "


def require_cards() -> None:
    """Raise ConfigError when the library that writes cards is missing."""
    if importlib.util.find_spec(EXTRA) is None:
        raise ConfigError("card: a model card needs the extra: pip install 'mtrl-suite[hub]'")


def model_card(
    name: str,
    evaluation: Mapping[str, Any],
    meta: Mapping[str, Any],
    settings: Mapping[str, Any],
    picture: str | None,
) -> str:
    """The text of ``README.md``.

    Args:
        name: of the policy, as a title.
        evaluation: what ``mtrl evaluate --json`` writes.
        meta: the run's ``meta.json``: command, commit, versions.
        settings: those that differ from the defaults, by their dotted names.
        picture: a file's name in the card's folder.
    """
    from huggingface_hub import EvalResult, ModelCardData

    protocol, tasks, mean = evaluation["protocol"], evaluation["tasks"], evaluation["mean_success"]
    optimizer = settings.get("optimizer.name", "unitary")

    def result(metric: str, value: float, **named: Any) -> EvalResult:
        return EvalResult(
            task_type="reinforcement-learning", dataset_type=protocol["suite"], metric_type=metric,
            metric_value=round(value, 4), **named,
        )  # fmt: skip

    results = [] if mean is None else [result("mean_success", mean, dataset_name=protocol["name"])]
    results += [
        result("success", task["success"], dataset_name=task_name, dataset_config=task_name)
        for task_name, task in tasks.items()
        if task["success"] is not None
    ]
    data = ModelCardData(
        model_name=name, library_name="mtrl", pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "multi-task", "mt-sac", protocol["suite"], optimizer],
        eval_results=results or None,
    )  # fmt: skip
    rows = [
        f"| {task_name} | {rate(task['success'])} | {interval(task['ci'])} | {task['return']:.1f} "
        f"| {task['episodes']} |"
        for task_name, task in tasks.items()
    ]
    overall = (
        "not told by all tasks" if mean is None else f"{mean:.3f} ({interval(evaluation['mean_success_ci'])})"
    )
    steps = evaluation["steps_per_task"]
    differing = "\n".join(
        f"| {key} | `{str(value).replace('|', '&#124;')}` |" for key, value in settings.items()
    )
    versions = ", ".join(f"{key} {value}" for key, value in dict(meta.get("versions") or {}).items())
    names = [protocol["suite"], *(str(value) for key, value in settings.items() if key.endswith(".name"))]
    imports = import_options(names)
    network = str(settings.get("agent.actor.network.name") or settings.get("agent.network.name") or "mlp")
    own = f"import {network.partition(':')[0]}  # the network's\n\n" if ":" in network else ""
    chosen = BEST if evaluation["checkpoint"] == "best" else ""
    over = "goals"
    met = f"goals of seed {protocol['goal_seed']}: the deterministic policy meets every goal once"
    if ":" in protocol["suite"]:  # whose envs may have no goals
        over = "episodes"
        met = f"the deterministic policy has {min(task['episodes'] for task in tasks.values())} episodes of each task"
    return f"""---
{data.to_yaml()}
---

# {name}

A multi-task policy (MT-SAC, optimizer `{optimizer}`) for {len(tasks)} tasks, after
{"an unknown number of" if steps is None else steps} environment steps per task.
{"" if picture is None else f"{chr(10)}![an episode of every task at its end]({picture}){chr(10)}"}
## Evaluation

Protocol `{protocol["name"]}`, {met}.
Mean success over tasks: {overall}. {chosen}Intervals are of 95 %, over {over}, for this one policy; they tell
nothing about another seed of training. A task of one episode has none: goals are fixed and the number is exact for
them.

| task | success | interval | return | episodes |
|---|---|---|---|---|
{chr(10).join(rows)}

`evaluation.json` has them all; mtrl, with the same versions, gives them again:

```bash
mtrl evaluate .{imports}          # in this folder
mtrl video .{imports} --out a.gif
```

```python
{own}from mtrl.policy import load_policy

policy = load_policy("policy.safetensors")  # runs no code of the file's
actions, _ = policy.predict(observations)  # [n, {"D + T"}], each row's task one-hot at its end: policy.task_names
```

## Training

`{meta.get("command")}`, commit `{meta.get("commit")}`.
`config.yaml` repeats it: `mtrl train --config config.yaml{imports}`.
Versions: {versions}.

| setting | value |
|---|---|
{differing}
"""
