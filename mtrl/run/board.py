"""What a run tells TensorBoard apart from its scalars, so that runs can be told apart and compared there.

Written once, before the first step: the text tab says what the run is, HPARAMS gets the columns that a comparison is
about, and CUSTOM SCALARS has one chart per quantity with a line for each task.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams

from mtrl.values import flat_items

CHARTS = {
    "success": r"eval_success/.*", "return": r"eval_return/.*", "Q": r"train_q/.*", "temperature": r"train_ent_coef/.*",
}  # fmt: skip
MACHINE = ("run_dir", "device", "threads", "workers", "agent.kernels", "agent.precision")
"""Settings of the place where a run is made, in no table of what it is."""


def introduce(logger: Logger, settings: str, defaults: str, meta: Mapping[str, Any]) -> None:
    """Write the text, the hyper-parameters and the charts of a run.

    Args:
        settings, defaults: the resolved config and that of no setting at all, as YAML.
        meta: what ``meta.json`` holds: command, commit, protocol.
    """
    differing = differences(settings, defaults)
    told = {
        "command": f"`{meta.get('command')}`",
        "commit": f"`{meta.get('commit')}`",
        "protocol": f"`{dict(meta.get('protocol') or {}).get('name')}`",
        **{key: f"`{value}`" for key, value in differing.items()},
    }
    rows = "\n".join(f"| {key} | {value.replace('|', '&#124;')} |" for key, value in told.items())
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat) and output.writer is not None:
            output.writer.add_text("run", f"| setting | value |\n|---|---|\n{rows}", 0)
            # Without the first of the three, TensorBoard looks at all runs and puts the columns that differ first.
            _, *session = hparams(columns(settings, defaults, meta), {})  # type: ignore[no-untyped-call]
            for summary in session:
                output.writer.file_writer.add_summary(summary, 0)  # type: ignore[attr-defined]
            output.writer.add_custom_scalars(
                {"by task": {title: ["Multiline", [tags]] for title, tags in CHARTS.items()}}
            )


def differences(settings: str, defaults: str) -> dict[str, Any]:
    """The settings that differ from the defaults, by their dotted names; without those of the machine."""
    default = dict(flat_items(yaml.safe_load(defaults)))
    return {
        key: value
        for key, value in flat_items(yaml.safe_load(settings))
        if default.get(key) != value and key not in MACHINE
    }


def columns(settings: str, defaults: str, meta: Mapping[str, Any]) -> dict[str, bool | str | float]:
    """Optimizer, network, seed and protocol; after them what else differs from the defaults."""
    flat = dict(flat_items(yaml.safe_load(settings)))
    first = {
        "optimizer": flat["optimizer.name"],
        "network": f"{flat['agent.actor.hidden']}, {flat['agent.critic.hidden']}",
        "seed": flat["seed"],
        "protocol": dict(meta.get("protocol") or {}).get("name"),
    }
    named = ("optimizer.name", "agent.actor.hidden", "agent.critic.hidden", "seed")
    rest = {
        key: value
        for key, value in differences(settings, defaults).items()
        if key not in named and not key.startswith("protocol.")
    }
    return {
        key: v if isinstance(v, (bool, str, int, float)) else str(v) for key, v in {**first, **rest}.items()
    }


def show_gif(logger: Logger, tag: str, path: Path, step: int) -> None:
    """A GIF among TensorBoard's images, where it moves."""
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as picture:
        image = Summary.Image(
            height=picture.height, width=picture.width, colorspace=3, encoded_image_string=content
        )
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat) and output.writer is not None:
            summary = Summary(value=[Summary.Value(tag=tag, image=image)])
            output.writer.file_writer.add_summary(summary, step)  # type: ignore[attr-defined]
