"""From an experiment's file to its runs; loads nothing of training.

::

    base: point                     # a config, by name or as a file next to this one
    label: methods                  # the experiment's name in the run folders; else the file's
    common: {total_steps_per_task: 3500}
    arms:
      unitary: {optimizer.name: unitary}
      pcgrad: {optimizer.name: pcgrad, seeds: "0..2"}
    seeds: "0..4"                   # or a list

Settings go by their dotted names, an arm's above ``common``, both above the base.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtrl.config import LONGEST_LABEL, ConfigError, nearest
from mtrl.settings.files import EXPERIMENTS, find_config, find_file, path_of, read_settings, shipped
from mtrl.settings.keys import SECTIONS, as_text, check_keys, convert
from mtrl.settings.train import Request, parse_train
from mtrl.values import flat_items, nested, shown

KEYS = ("base", "label", "common", "arms", "seeds")
OURS = ("seed", "label", "run_dir")  # settings that tell runs apart
MOST_SEEDS = 10_000


@dataclass(frozen=True, eq=False)
class Run:
    """One run of an experiment; it is equal to itself alone.

    Attributes:
        arguments: of ``mtrl train``, without what a machine's share of cores decides.
        request: what they ask for.
    """

    arm: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    request: Request

    @property
    def name(self) -> str:
        return f"{self.arm}/seed{self.seed}"

    @property
    def log(self) -> Path:
        """What its processes print: next to the folder, under a name that ``seed*`` does not match."""
        return self.folder.with_name(f"log_{self.folder.name}.txt")

    @property
    def steps(self) -> int:
        """Per task, when it is done."""
        return self.request.config.total_steps_per_task

    def recorded(self, key: str) -> Any:
        """A setting as it is asked for; where that is ``auto``, as the folder's run has it, if there is one."""
        asked = getattr(self.request.config, key)
        config = self.folder / "config.yaml"
        if asked != "auto" or not config.is_file():
            return asked
        return convert(SECTIONS[key], read_settings(config).get(key, asked), f"{config}: {key}")

    def command(self, cores: int | None) -> tuple[str, ...]:
        """The arguments with threads and workers spelt out where they are ``auto``.

        Threads are a setting that a resume must find again, so an existing run keeps its own; a new one gets
        as many as the ``cores`` it has for itself, or with None is left to choose.
        """
        more: list[str] = []
        for key, share in (("threads", cores), ("workers", 0 if cores is None or cores <= 2 else cores - 1)):
            if getattr(self.request.config, key) != "auto":
                continue
            value = self.recorded(key)
            if value == "auto" and cores is not None and not (self.folder / "config.yaml").is_file():
                value = share
            if value != "auto":
                more += [f"--{key}", str(value)]
        return (*self.arguments, *more)


@dataclass(frozen=True)
class Experiment:
    """An experiment's file.

    Attributes:
        arms: dotted settings by arm, ``common`` included.
        seeds: by arm.
    """

    name: str
    base: str
    arms: dict[str, dict[str, Any]]
    seeds: dict[str, tuple[int, ...]]


def experiment_names() -> dict[str, Path]:
    """The shipped experiments: what ``mtrl sweep`` takes, and the files."""
    prefix = f"{EXPERIMENTS}/"
    return {name.removeprefix(prefix): path for name, path in shipped().items() if name.startswith(prefix)}


def find_experiment(name: str) -> Path:
    """A shipped experiment by name, or a YAML file by path.

    Raises:
        ConfigError: there is neither.
    """
    return find_file("experiment", name, experiment_names())


def read_experiment(path: Path) -> Experiment:
    """An experiment's file, its keys and names checked; :func:`plan` checks its settings.

    Raises:
        ConfigError: a line that names the file, the key and what would be valid.
    """
    content = read_settings(path, "experiment", dotted=True)
    where = f"experiment: {path}"
    for key in content:
        if key not in KEYS:
            raise ConfigError(
                f"{where}: no key {shown(key)}{nearest(key, KEYS)}; there are {', '.join(KEYS)}"
            )
    for key in ("base", "arms", "seeds"):
        if content.get(key) is None:
            raise ConfigError(f"{where}: the key {key!r} is missing")
    base = content["base"]
    if not isinstance(base, str):
        raise ConfigError(f"{where}: base: {shown(base)} is not the name of a config")
    neighbour = path.parent / path_of(f"{where}: base", base)
    if neighbour.is_file():
        base = os.path.abspath(neighbour)
    else:
        find_config(base)
    if not isinstance(content["arms"], dict) or not content["arms"]:
        raise ConfigError(f"{where}: arms: it must be a mapping of names to settings")
    common = settings_in(content.get("common"), f"{where}: common")
    seeds = read_seeds(content["seeds"], f"{where}: seeds")
    arms, by_arm = {}, {}
    for arm, own in content["arms"].items():
        require_name(arm, f"{where}: arms")
        own = dict(own) if isinstance(own, dict) else own
        narrowed = own.pop("seeds", None) if isinstance(own, dict) else None
        arms[arm] = {**common, **settings_in(own, f"{where}: arms.{arm}")}
        by_arm[arm] = seeds
        if narrowed is not None:
            by_arm[arm] = read_seeds(narrowed, f"{where}: arms.{arm}.seeds")
            if beyond := [seed for seed in by_arm[arm] if seed not in seeds]:
                raise ConfigError(f"{where}: arms.{arm}.seeds: {beyond[0]} is none of the experiment's seeds")
    name = content.get("label", path.stem)
    require_name(name, f"{where}: label")
    return Experiment(name, base, arms, by_arm)


def settings_in(content: Any, where: str) -> dict[str, Any]:
    """Dotted names and values of a mapping, nested or not."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"{where}: {shown(content)} is not valid; it must be a mapping of settings to values"
        )
    found: dict[str, Any] = {}
    for key, value in flat_items(content):
        if key in OURS:
            raise ConfigError(f"{where}: {key} is not for an experiment to set: it tells the runs apart")
        if key in found:
            raise ConfigError(f"{where}: the key {shown(key)} comes twice")
        try:
            check_keys(nested(key, None), ("protocol.preset",))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        found[key] = value
    return found


def require_name(name: Any, where: str) -> None:
    """Raise unless this can be a folder's name."""
    fits = isinstance(name, str) and name.isprintable() and name.strip(". ") and not set("/$") & set(name)
    if not fits or len(name) > LONGEST_LABEL:
        raise ConfigError(
            f"{where}: {shown(name)} is not valid; it must be a folder's name of at most {LONGEST_LABEL} "
            "printable characters, without / and $"
        )


def read_seeds(value: Any, where: str) -> tuple[int, ...]:
    """A list of whole numbers, or text like ``200..209`` or ``0..2,7``.

    Raises:
        ConfigError: it is none, a range runs backwards, or a seed comes twice.
    """
    items = value.split(",") if isinstance(value, str) else value
    valid = f"{where}: {shown(value)} is not valid; it must be a list of seeds, or text like '0..4'"
    if not isinstance(items, list) or not items:
        raise ConfigError(valid)
    seeds: list[int] = []
    for item in items:
        ends = re.fullmatch(r"\s*([0-9]{1,18})(?:\.\.([0-9]{1,18}))?\s*", str(item), re.ASCII)
        if ends is None or not isinstance(item, (int, str)):
            raise ConfigError(valid)
        low, high = int(ends[1]), int(ends[2] or ends[1])
        if not 0 <= high - low < MOST_SEEDS:
            raise ConfigError(f"{valid}, upwards and of at most {MOST_SEEDS}")
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: a seed comes twice in {shown(value)}")
    return tuple(seeds)


def plan(experiment: Experiment, root: Path, imports: Sequence[str] = ()) -> list[Run]:
    """All runs, seed by seed, so that an unfinished experiment is balanced; every setting is checked.

    Args:
        root: ``<root>/<experiment>/<arm>/seed<n>`` is a run's folder.
        imports: modules that the files may name, which the runs are told too.

    Raises:
        ConfigError, SuiteError: a setting that cannot be, or two arms of equal settings.
    """
    folder = Path(os.path.abspath(root)) / experiment.name
    seeds = dict.fromkeys(seed for own in experiment.seeds.values() for seed in own)
    runs = [
        make_run(experiment, arm, seed, folder, imports)
        for seed in sorted(seeds)
        for arm, own in experiment.seeds.items()
        if seed in own
    ]
    require_different(runs)
    return runs


def make_run(experiment: Experiment, arm: str, seed: int, folder: Path, imports: Sequence[str]) -> Run:
    """One run, its arguments spelt out."""
    place = folder / arm / f"seed{seed}"
    arguments = ["--config", experiment.base, "--run_dir", str(place), "--label", arm, "--seed", str(seed)]
    arguments += [word for module in imports for word in ("--import", module)]
    try:
        for key, value in experiment.arms[arm].items():
            arguments += [f"--{key}", as_text(key, value)]
        request = parse_train(arguments, typed=False)  # what a file names is not what a person typed
        if Path(request.config.run_dir or "") != place:
            raise ConfigError(f"run_dir: {place} is not valid; a folder of runs has no $ in its name")
        return Run(arm, seed, place, tuple(arguments), request)
    except ValueError as error:  # ConfigError, SuiteError
        raise ConfigError(f"arms.{arm}: {error}") from None


def require_different(runs: Sequence[Run]) -> None:
    """Raise ConfigError where two arms would train the same."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.arm, run)

    def settings(run: Run) -> tuple[Any, ...]:
        config = dataclasses.replace(run.request.config, seed=0, label=None, run_dir=None)
        return config, run.request.protocol

    seen: list[tuple[str, tuple[Any, ...]]] = []
    for arm, run in first.items():
        same = next((other for other, before in seen if before == settings(run)), None)
        if same is not None:
            raise ConfigError(f"arms: {same} and {arm} have equal settings; leave one out")
        seen.append((arm, settings(run)))


def choose(
    runs: Sequence[Run], only: Collection[str], seeds: Collection[int], index: int | None
) -> list[Run]:
    """Those of some arms, of some seeds, and of these the ``index``-th; empty and None are all.

    Raises:
        ConfigError: an arm, a seed or a number that there is not.
    """
    require_known("only", only, dict.fromkeys(run.arm for run in runs))
    require_known("seeds", map(str, seeds), dict.fromkeys(str(run.seed) for run in runs))
    chosen = [run for run in runs if (not only or run.arm in only) and (not seeds or run.seed in seeds)]
    if not chosen:
        raise ConfigError("seeds: no arm that was chosen has a seed that was chosen")
    if index is None:
        return chosen
    if not 0 <= index < len(chosen):
        raise ConfigError(f"index: {index} is not valid; it must be from 0 to {len(chosen) - 1}")
    return [chosen[index]]


def require_known(option: str, given: Any, known: Mapping[str, Any]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{option}: {shown(name)} is not there{nearest(name, known)}; there are {', '.join(known)}"
            )
