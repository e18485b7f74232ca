"""``mtrl list``: configs, experiments, suites, protocols, tasks and optimizers, by the names that settings take."""

from __future__ import annotations

import yaml

from mtrl.envs import PRESETS, SUITES
from mtrl.optimizers import OPTIMIZERS, describe
from mtrl.results.tables import make_table, show
from mtrl.settings import Parser, config_names
from mtrl.sweep.grid import experiment_names, read_experiment


def main(arguments: list[str]) -> int:
    parser = Parser(prog="mtrl list", description=__doc__)
    kinds = {
        "configs": configs, "experiments": experiments, "suites": suites, "protocols": protocols, "tasks": tasks,
        "optimizers": optimizers,
    }  # fmt: skip
    parser.add_argument("kind", nargs="?", choices=list(kinds), help="what to list; all by default")
    args = parser.parse_args(arguments)
    for name in kinds:
        if args.kind == name or (args.kind is None and name != "tasks"):
            kinds[name]()
    return 0


def configs() -> None:
    table = make_table("config", "what it sets", title="configs: mtrl train --config NAME")
    for name, path in config_names().items():
        text = path.read_text(encoding="utf-8")
        first = text.splitlines()[0]
        about = first.lstrip("# ") if first.startswith("#") else ", ".join(yaml.safe_load(text))
        table.add_row(name, about)
    show(table)


def experiments() -> None:
    table = make_table("experiment", "arms", "runs", title="experiments: mtrl sweep NAME")
    for name, path in experiment_names().items():
        experiment = read_experiment(path)
        table.add_row(name, ", ".join(experiment.arms), str(sum(map(len, experiment.seeds.values()))))
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
    table = make_table(
        "name",
        "kind",
        "formula",
        "options",
        "paper",
        title="optimizers: --optimizer.name NAME --optimizer.options.KEY VALUE",
    )
    for name in OPTIMIZERS:
        info = describe(name)
        options = ", ".join(f"{key}={value}" for key, value in info.options.items())
        table.add_row(info.name, info.kind, info.formula, options, info.paper)
    show(table)
