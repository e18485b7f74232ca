"""Who may import whom, read from the source: the order of the house."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("mtrl/**/*.py"), *ROOT.glob("mtrl/envs/*.py")])  # the latter is a link

# A module may import from its own layer (without a circle) and from those before it.
# What is not named here is at the loop's edge, like callbacks.
LAYERS = [
    {
        "mtrl",
        "mtrl.categorical",
        "mtrl.config",
        "mtrl.errors",
        "mtrl.files",
        "mtrl.layers",
        "mtrl.fast",
        "mtrl.machine",
        "mtrl.networks",
        "mtrl.parameters",
        "mtrl.registry",
        "mtrl.replay",
        "mtrl.rewards",
        "mtrl.streams",
        "mtrl.optimizers",
        "mtrl.values",
    },
    {"mtrl.compiled", "mtrl.conflict", "mtrl.gradients", "mtrl.policy"},
    {"mtrl.learner"},
    {"mtrl.sac"},
    {"edge"},
    {"mtrl.train"},
    {"mtrl.run.session", "mtrl.cli", "mtrl.commands", "mtrl.api"},
]
EDGE = 4


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer(module: str) -> int:
    """Of a module of mtrl; a package's parts are of its layer."""
    known = {name: i for i, names in enumerate(LAYERS) for name in names}
    top = ".".join(module.split(".")[:2])
    return known.get(module, known.get(top, EDGE))


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs, also those inside functions, in full."""
    found: set[str] = set()
    for node in runtime_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            found.add(node.module)
            # `from mtrl import sac` imports mtrl.sac
            inside = ROOT / node.module.replace(".", "/")
            found |= {
                f"{node.module}.{a.name}"
                for a in node.names
                if (inside / f"{a.name}.py").is_file() or (inside / a.name / "__init__.py").is_file()
            }
    return found


def of(package: str, modules: set[str]) -> set[str]:
    return {module for module in modules if module == package or module.startswith(f"{package}.")}


GRAPH = {name_of(path): imports(path) for path in FILES}
ENVS = [name for name in GRAPH if of("mtrl.envs", {name})]
MTRL = [name for name in GRAPH if name not in ENVS]
MEET_ENVS = {"mtrl.settings.keys", "mtrl.settings.train"}  # beside the command line


def test_the_reader_of_imports_finds_them(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b\nfrom c import d\nfrom mtrl import envs, sac\ndef f():\n    import e\n"
        "if TYPE_CHECKING:\n    import hidden\n"
    )
    assert imports(path) == {"a.b", "c", "mtrl", "mtrl.envs", "mtrl.sac", "e"}
    assert {"mtrl.sac", "mtrl.train", "mtrl.optimizers.pcgrad", "mtrl.commands.train"} < set(MTRL)
    assert "mtrl.gradients" in GRAPH["mtrl.sac"]
    assert {"mtrl.envs.vec", "mtrl.envs.protocol"} < set(ENVS)


@pytest.mark.parametrize("module", ENVS)
def test_envs_import_nothing_of_mtrl_and_only_vec_stable_baselines3(module):
    assert of("mtrl", GRAPH[module]) == of("mtrl.envs", GRAPH[module])
    assert of("torch", GRAPH[module]) == set()
    if module != "mtrl.envs.vec":
        assert of("stable_baselines3", GRAPH[module]) == set()


@pytest.mark.parametrize(
    "module", [name for name in MTRL if layer(name) < layer("mtrl.cli") and name not in MEET_ENVS]
)
def test_only_the_command_line_meets_envs(module):
    assert of("mtrl.envs", GRAPH[module]) == set()


@pytest.mark.parametrize("module", MTRL)
def test_imports_go_one_way(module):
    later = {
        other
        for other in of("mtrl", GRAPH[module]) - of("mtrl.envs", GRAPH[module])
        if layer(other) > layer(module)
    }
    assert later == set()


@pytest.mark.parametrize("module", [name for name in MTRL if layer(name) < EDGE])
def test_the_mathematics_knows_no_env_no_loop_no_logger(module):
    for outside in (
        "mtrl.envs",
        "stable_baselines3",
        "gymnasium",
        "metaworld",
        "tensorboard",
        "rich",
        "logging",
    ):
        assert of(outside, GRAPH[module]) == set()


def test_no_module_imports_itself_through_others():
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for other in sorted(GRAPH[module] & set(MTRL)):
                visit(other, (*path, module))
            done.add(module)

    for module in MTRL:
        visit(module, ())
