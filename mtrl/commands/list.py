"""``mtrl list``: configs, experiments, suites, tasks, optimizers, networks, by the names that settings take."""

from __future__ import annotations

from typing import Any

from mtrl.config import ConfigError
from mtrl.envs import PRESETS, SUITES
from mtrl.results.tables import make_table, show
from mtrl.settings.files import config_names
from mtrl.settings.parser import Parser
from mtrl.sweep.grid import experiment_names, read_experiment


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl list", description=__doc__)
    kinds = {
        "configs": configs, "experiments": experiments, "suites": suites, "protocols": protocols, "tasks": tasks,
        "optimizers": optimizers, "networks": networks,
    }  # fmt: skip
    parser.add_argument("kind", nargs="?", choices=list(kinds), help="what to list; all but tasks by default")
    parser.add_argument(
        "--sizes", type=str, metavar="CONFIG",
        help="with networks: what this config and its variants by network cost (mt10_fast, say)",
    )  # fmt: skip
    parser.add_import()
    args = parser.parse_args(arguments)
    if args.sizes is not None:
        if args.kind != "networks":
            raise ConfigError("sizes: it belongs to `mtrl list networks`")
        sizes(args.sizes)
        return 0
    for name in kinds:
        if args.kind == name or (args.kind is None and name != "tasks"):
            kinds[name]()
    return 0


def configs() -> None:
    table = make_table("config", "what it sets", title="configs: mtrl train --config NAME")
    for name, path in config_names().items():
        text = path.read_text(encoding="utf-8")
        table.add_row(name, text.splitlines()[0].lstrip("# "))
    show(table)


def experiments() -> None:
    table = make_table("experiment", "arms", "runs", title="experiments: mtrl sweep NAME")
    for name, path in experiment_names().items():
        experiment = read_experiment(path)
        arms = list(experiment.arms)
        told = ", ".join(arms if len(arms) <= 10 else [*arms[:3], f"… {len(arms)} in all"])
        table.add_row(name, told, str(sum(map(len, experiment.seeds.values()))))
    show(table)


def suites() -> None:
    table = make_table(
        "suite",
        "tasks",
        title="suites: --protocol.suite NAME, or one task's name, or custom with --protocol.tasks",
    )
    for name, names in SUITES.items():
        table.add_row(name, f"{len(names)}: " + ", ".join(names if len(names) <= 10 else [*names[:3], "…"]))
    show(table)


def protocols() -> None:
    table = make_table("protocol", "what it sets", title="published protocols: --protocol.preset NAME")
    for name, fields in PRESETS.items():
        table.add_row(name, ", ".join(f"{key}={value}" for key, value in fields.items()))
    show(table)


def tasks() -> None:
    for name in SUITES["mt50"]:
        print(name)


def optimizers() -> None:
    from mtrl.optimizers import OPTIMIZERS, options_of  # with torch, which the other lists need not wait for

    table = make_table(
        "name", "kind", "formula", "options", "paper",
        title="optimizers: --optimizer.name NAME --optimizer.options.KEY VALUE",
    )  # fmt: skip
    for name, cls in OPTIMIZERS.items():
        table.add_row(name, cls.kind, cls.formula, shown(options_of(cls)), cls.paper)
    show(table)


def networks() -> None:
    from mtrl.networks import NETWORKS, options_of

    table = make_table(
        "name", "formula", "private", "options", "paper",
        title="networks: --agent.network.name NAME --agent.network.options.KEY VALUE, or module:Class of your own",
    )  # fmt: skip
    for name, cls in NETWORKS.items():
        private = ", ".join(sorted(cls.private_parts))
        table.add_row(name, cls.formula, private, shown(options_of(cls)), cls.paper)
    show(table)


def shown(options: dict[str, Any]) -> str:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    return ", ".join(f"{key}={value}" for key, value in plain.items())


def sizes(config: str) -> None:
    """The config, and those whose names go on from its own (``mt10_fast_mmoe``) and that name a network."""
    from mtrl.bench.sizes import size_of
    from mtrl.settings.files import find_config
    from mtrl.settings.train import parse_train

    find_config(config)  # refuses a name that there is not
    table = make_table(
        "config", "network", "actor", "critics", "tasks' own", "MFLOP per update", "over the first",
        title="parameters, and the matrix products of one unitary update",
    )  # fmt: skip
    first = 0
    for name in (config, *(name for name in config_names() if name.startswith(f"{config}_"))):
        request = parse_train([f"--config={name}"])
        network = request.config.agent.network.name
        if name != config and network == "mlp":
            continue
        size = size_of(request.config, len(request.protocol.task_names))
        first = first or size.flops
        numbers = [f"{number:,}" for number in (size.actor, size.critic, size.own, size.flops // 10**6)]
        table.add_row(name, network or "mlp", *numbers, f"{size.flops / first:.2f}")
    show(table)
