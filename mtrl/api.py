"""The command line's commands as functions: the same code path, the same run folders, the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtrl.commands import evaluate as evaluating
from mtrl.commands import video as filming
from mtrl.commands.train import folder_of, start
from mtrl.envs import name_own
from mtrl.envs.process import plain_warnings
from mtrl.evaluate import Scores
from mtrl.results.video import TILE
from mtrl.run.folder import RunFolder
from mtrl.settings.keys import as_text
from mtrl.settings.train import parse_train
from mtrl.values import flat_items

MakeTasks = Callable[..., Mapping[str, Callable[[], Any]]]


@plain_warnings()
def run(
    tasks: str | Sequence[str] | MakeTasks | None = None, *,
    config: str | Path | Sequence[str | Path] = (), allow_changes: bool = False, **settings: Any,
) -> RunFolder:  # fmt: skip
    """Train as ``mtrl train`` does, with a run folder, TensorBoard and checkpoints; a second call goes on, or is done.

    Args:
        tasks: a suite's name, names of tasks, or a function at the top of a module that returns a mapping of task
            names to functions that make an env (as ``make_suite`` takes it); None leaves it to the config.
        config: shipped configs by name, or YAML files; later ones above earlier ones.
        allow_changes: go on with an unfinished run under other settings.
        settings: any setting: ``seed=3``, ``agent={"gamma": 0.98}``, ``**{"optimizer.name": "pcgrad"}``.

    Returns:
        the run's folder: ``.status`` says how it ended (DONE, INTERRUPTED, DIVERGED, FAILED), ``.path`` where.

    Raises:
        ConfigError, SuiteError: a setting or a suite that cannot be used; nothing was changed.
    """
    configs = [config] if isinstance(config, str | Path) else config
    given = dict(flat_items(settings))
    if callable(tasks):
        given["protocol.suite"] = name_own(tasks)
    elif isinstance(tasks, str):
        given["protocol.suite"] = tasks
    elif tasks is not None:
        given |= {"protocol.suite": "custom", "protocol.tasks": list(tasks)}
    request = parse_train(
        [
            *(f"--config={name}" for name in configs),
            *(f"--{key}={as_text(key, value)}" for key, value in given.items()),
            *(["--allow_changes"] if allow_changes else []),
        ]
    )
    run = RunFolder(folder_of(request))
    start(replace(request, resume=run.path) if run.exists else request)  # a finished run is left as it is
    return run


@plain_warnings()
def evaluate(
    run: RunFolder | str | Path,
    *,
    checkpoint: str = "last",
    episodes: int | None = None,
) -> Scores:
    """The scores that ``mtrl evaluate`` prints, of a run's folder or a policy's file; see there.

    Raises:
        ConfigError, PolicyError: there is no such policy, or no protocol to evaluate it under.
    """
    found = evaluating.find_policy(_path(run), checkpoint)
    protocol, seed = evaluating.protocol_of(found)
    return evaluating.scores_of(found.policy, protocol, seed, episodes)


@plain_warnings()
def video(
    run: RunFolder | str | Path, out: str | Path, *, checkpoint: str = "last", episodes: int = 1,
    tasks: Sequence[str] | None = None, tile: int = TILE,
) -> Scores:  # fmt: skip
    """Film what ``mtrl video`` films (.mp4, .gif, .png); returns the scores of what is shown.

    Raises:
        ConfigError, PolicyError, SuiteError: as :func:`evaluate`; or no such file can be made here.
    """
    found = evaluating.find_policy(_path(run), checkpoint)
    protocol, seed = evaluating.protocol_of(found)
    return filming.shoot(found.policy, protocol, seed, Path(out), episodes, tasks, tile)


def _path(run: RunFolder | str | Path) -> Path:
    return run.path if isinstance(run, RunFolder) else Path(run)
