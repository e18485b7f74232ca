"""What a ``mtrl train`` command line asks for: configs, their bases and single settings, laid over one another.

Files and command line become one nested mapping of plain values; only that is converted, field by field.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

from mtrl import registry
from mtrl.config import AgentConfig, ConfigError, TrainConfig
from mtrl.envs import Protocol, preset_fields
from mtrl.settings.files import dump_yaml, find_config, load_yaml, path_of, read_settings
from mtrl.settings.keys import COMMAND_ONLY, SECTIONS, WITH_OPTIONS, build, check_keys, convert, value_of
from mtrl.values import fields_of, flat_items, merged, nested, plain, shown


def load_config(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A config's settings above those of its ``base`` (a shipped config, or a file next to it): self-contained.

    Its ``protocol.preset`` is spelt out above the base, and below the protocol's fields that the config itself has.
    A base's ``label`` and ``run_dir`` are its own runs'; naming another optimizer drops the base's options.

    Args:
        above: configs that this one is a base of.

    Raises:
        ConfigError: naming a key or a base that there is not, or configs that are each other's base.
        SuiteError: there is no such preset.
    """
    if path in above:
        chain = " -> ".join(str(p) for p in (*above[above.index(path) :], path))
        raise ConfigError(f"base: configs that are each other's base ({chain})")
    own = read_settings(path)
    check_keys(own, ("base", "protocol.preset"))
    protocol = own.get("protocol")
    if isinstance(protocol, dict) and "preset" in protocol:
        fields = {key: value for key, value in protocol.items() if key != "preset"}
        own["protocol"] = {**preset_fields(protocol["preset"]), **fields}
    name = own.pop("base", None)
    if name is None:
        return own
    if not isinstance(name, str):
        raise ConfigError(f"base: {shown(name)} in {path} is not the name of a config")
    neighbour = path.parent / path_of("base", name)
    base = load_config(neighbour.resolve() if neighbour.is_file() else find_config(name), (*above, path))
    for key in ("label", "run_dir"):
        base.pop(key, None)
    return laid_over(base, own)


def laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """:func:`merged`; where the upper one names another class, the lower one's options go."""
    named, before = dict(flat_items(above)), dict(flat_items(below))
    for section in WITH_OPTIONS:
        name = named.get(f"{section}.name")
        if name is not None and name != before.get(f"{section}.name"):
            inner: Any = below
            for part in section.split("."):
                inner = inner.get(part) if isinstance(inner, dict) else None
            if isinstance(inner, dict):
                inner.pop("options", None)
    return merged(below, above)


@dataclass(frozen=True)
class Request:
    """What a ``mtrl train`` command line asks for.

    Attributes:
        text: the resolved config as YAML, which asks for the same run again.
        command: the command line that it came from.
        resume: the run to go on with, if ``--resume`` named one.
        allow_changes: whether an unfinished run may go on with other settings.
        print_config: whether to print the text instead.
    """

    config: TrainConfig
    protocol: Protocol
    text: str
    command: str
    resume: Path | None = None
    allow_changes: bool = False
    print_config: bool = False


def parse_train(arguments: Sequence[str], typed: bool = True) -> Request:
    """The run that a command line asks for: its configs in their order, a preset above them, then each setting.

    Args:
        typed: by a person, who may name modules that are to be imported; else only ``--import`` may.

    Raises:
        ConfigError, SuiteError: naming the key, its value and what would be valid.
    """
    files: dict[str, Any] = {}
    own: dict[str, Any] = {}
    preset: Mapping[str, Any] = {}
    labelled: dict[str, Any] = {}  # the config that gives the label
    resume: Path | None = None
    run_dir: str | None = None
    flags = {"allow_changes": False, "print_config": False}
    remaining = iter(arguments)
    for argument in remaining:
        key, equals, value = argument[2:].partition("=")
        if not argument.startswith("--") or not key:
            raise ConfigError(
                f"unrecognized arguments: {shown(argument)}; settings are given as --name value"
            )
        if key in flags:
            if equals:
                raise ConfigError(f"{key}: it takes no value")
            flags[key] = True
            continue
        if not equals:
            given = next(remaining, None)
            if given is None:
                check_keys(nested(key, None), (*COMMAND_ONLY, "protocol.preset"))
                if key == "protocol.preset":
                    preset_fields("")
                _missing(key)
            value = given
        if key == "config":
            content = load_config(find_config(value)) if value else _missing(key)
            files = laid_over(files, content)
            labelled = content if "label" in content else labelled
        elif key == "import":
            registry.trust(value)
        elif key == "resume":
            resume = path_of("resume", value) if value else _missing(key)
            if not (resume / "config.yaml").is_file():
                raise ConfigError(f"resume: {shown(value)} is no run's folder (it has no config.yaml)")
            files = merged(files, load_config(resume / "config.yaml"))
            labelled = {}
        elif key == "protocol.preset":
            preset = preset_fields(value)
        else:
            check_keys(nested(key, None))
            own = merged(own, nested(key, value_of(key, value)))
            run_dir = value if key == "run_dir" else run_dir
            if (
                typed
                and ":" in value
                and (key.removesuffix(".name") in WITH_OPTIONS or key == "protocol.suite")
            ):
                registry.trust(value)  # who types a module's name knows its code
    if (
        resume is not None
        and run_dir is not None
        and path_of("run_dir", run_dir).resolve() != resume.resolve()
    ):
        raise ConfigError(f"run_dir: {shown(run_dir)} does not go with --resume, which goes on in {resume}")
    own |= {} if resume is None else {"run_dir": str(resume)}
    settings = laid_over(merged(files, {"protocol": dict(preset)} if preset else {}), own)
    check_keys(settings)
    if "label" not in own and isinstance(labelled.get("label"), str):
        settings["label"] = label_of(labelled, settings)
    suite = dict(flat_items(settings)).get("protocol.suite")
    if isinstance(suite, str) and ":" in suite:
        try:
            registry.require_trusted(suite, called=True)
        except ValueError as error:
            raise ConfigError(f"protocol.suite: {error}") from None
    values = {
        name: convert(hint, settings[name], name) for name, hint in SECTIONS.items() if name in settings
    }
    protocol = values.pop("protocol", Protocol())
    if values.get("run_dir") is not None:
        values["run_dir"] = str(path_of("run_dir", values["run_dir"]))
    config = build(TrainConfig, values, "")
    text = dump_yaml(plain({**dataclasses.asdict(config), "protocol": protocol.to_dict()}))
    command = shlex.join(["mtrl", "train", *arguments])
    return Request(config, protocol, text, command, resume, **flags)


def label_of(labelled: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """A config's label, and what the settings name instead of its optimizer and networks: ``mt10_fast-pcgrad``."""
    (method, *networks), (other, *others) = kinds(labelled), kinds(settings)
    words = [other] if other != method else []
    if networks != others:
        words += network_words(*others) or ["mlp"]
    label: str = labelled["label"]
    return f"{label}-{label_from(words)}" if words else label


def kinds(settings: Mapping[str, Any]) -> list[str]:
    """Names of the optimizer, the actor's network and the critics'."""
    flat, default = dict(flat_items(settings)), TrainConfig()
    network = flat.get("agent.network.name", default.agent.network.name)
    found = [flat.get(f"agent.{part}.network.name") or network for part in ("actor", "critic")]
    return [str(name) for name in (flat.get("optimizer.name", default.optimizer.name), *found)]


def network_words(actor: str, critic: str) -> list[str]:
    """What a label says of the networks: nothing of mlp."""
    words = [actor] if actor == critic else [f"actor_{actor}", f"critic_{critic}"]
    return [word for word in words if word not in ("mlp", "actor_mlp", "critic_mlp")]


def label_from(words: Sequence[str]) -> str:
    return "-".join(words).replace(":", ".")


def _missing(key: str) -> NoReturn:
    raise ConfigError(f"{key}: a value is missing")


def settle(request: Request, run: Path, device: Literal["cpu", "cuda"]) -> Request:
    """The request with ``auto`` spelt out where it changes numbers: as a run in this folder has it, else as
    this machine has it. So a resume computes as before, on whatever machine, or says that this one cannot.
    """
    import torch

    from mtrl.machine import choose_kernels, choose_precision, choose_threads, compiling_pays

    config, agent = request.config, request.config.agent
    started: dict[str, Any] = dict(flat_items(read_settings(run))) if run.is_file() else {}

    def settled(key: str, value: Any, choice: Callable[[Any], Any]) -> Any:
        recorded = started.get(key, "auto")
        if value != "auto" or recorded == "auto":
            return choice(value)
        declared = fields_of(AgentConfig) | SECTIONS
        return convert(declared[key.removeprefix("agent.")], recorded, f"{run}: {key}")

    place = torch.device(device)
    threads = settled("threads", config.threads, choose_threads)
    precision = settled("agent.precision", agent.precision, partial(choose_precision, device=place))
    # uniform sampling has other shapes at every update; a network of one's own may keep numbers outside of its
    # parameters, which a graph would not follow
    own = any(":" in str(agent.architecture(part).name) for part in (agent.actor, agent.critic))
    compilable = not own and config.replay.sampling == "balanced" and compiling_pays(precision)
    steps = max(config.total_steps_per_task - config.warmup_steps, 0)
    updates = config.warmup_updates + config.updates_per_step * steps if compilable else 0
    kernels = settled("agent.kernels", agent.kernels, partial(choose_kernels, device=place, updates=updates))
    agent = replace(agent, precision=precision, kernels=kernels)
    config = replace(config, threads=threads, device=device, agent=agent)
    text = plain({**dataclasses.asdict(config), "protocol": request.protocol.to_dict()})
    return replace(request, config=config, text=dump_yaml(text))


def changed_settings(before: Path, now: str) -> list[str]:
    """``key: old -> new`` for every setting that differs between a run's resolved config and another;
    where a run lies is no setting of it, and one that came later is no change at its default.
    """
    old, new = dict(flat_items(read_settings(before))), dict(flat_items(load_yaml(now, "the settings")))
    default = dict(flat_items(load_yaml(parse_train([]).text, "the defaults")))

    def same(key: str) -> bool:
        if key in old or key not in default:
            return bool(old.get(key) == new.get(key))
        return bool(new.get(key) == default[key])

    keys = [key for key in {**old, **new} if key != "run_dir" and not same(key)]
    return [f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys]
