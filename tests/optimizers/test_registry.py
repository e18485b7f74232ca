"""Names, options and their errors; what can be said about each method; the example of the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrl import registry
from mtrl.optimizers import OPTIMIZERS, OptimizerError, make_optimizer, options_of

DOCS = Path(__file__).parents[2] / "docs" / "optimizers.md"


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(OptimizerError) as error:
        make_optimizer(name, 3, **options)
    message = str(error.value)
    assert "\n" not in message
    assert isinstance(error.value, ValueError)
    return message


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("pcgard", "pcgrad"), ("imtl-g", "imtl_g"), ("UNITARY", "unitary"), ("nash", "nash_mtl")],
)
def test_an_unknown_name_gets_the_nearest_valid_one(wrong: str, near: str) -> None:
    message = refusal(wrong)
    assert f"did you mean {near!r}?" in message
    assert all(name in message for name in OPTIMIZERS)


def test_an_unknown_option_gets_the_valid_ones() -> None:
    assert (
        refusal("cagrad", alpha=1)
        == "optimizer 'cagrad' has no option 'alpha': its options are c, solver, scale"
    )
    assert refusal("unitary", alpha=1) == "optimizer 'unitary' has no option 'alpha': it has none"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cagrad", {"c": "much"}, ["c = 'much'", "a number"]),
        ("cagrad", {"c": True}, ["c = True", "a number"]),
        ("cagrad", {"c": 1.0}, ["c = 1.0", "at least 0 and below 1"]),
        ("cagrad", {"c": -0.1}, ["c = -0.1", "at least 0 and below 1"]),
        ("cagrad", {"c": float("nan")}, ["c = nan", "at least 0 and below 1"]),
        ("cagrad", {"solver": "sgd"}, ["solver = 'sgd'", "'exact', 'as_published'"]),
        ("pcgrad", {"scale": "sum"}, ["scale = 'sum'", "'mean', 'as_published'"]),
        ("imtl_g", {"as_published": 1}, ["as_published = 1", "true or false"]),
        ("gradvac", {"beta": 1.5}, ["beta = 1.5", "from 0 to 1"]),
        ("famo", {"lr": 0}, ["lr = 0", "positive"]),
        ("famo", {"gamma": -1.0}, ["gamma = -1.0", "at least 0"]),
        ("uncertainty", {"lr": -1.0}, ["lr = -1.0", "positive"]),
        ("static", {"weights": "equal"}, ["weights = 'equal'", "a list of numbers or null"]),
        ("static", {"weights": [1, "x", 3]}, ["weights = [1, 'x', 3]", "a list of numbers"]),
        ("static", {"weights": [1, 2]}, ["weights = [1.0, 2.0]", "3 non-negative numbers, one per task"]),
        ("static", {"weights": [1, 2, -3]}, ["3 non-negative numbers, one per task"]),
        ("static", {"weights": [0, 0, 0]}, ["not all zero"]),
        ("rlw", {"distribution": None}, ["distribution = None", "'dirichlet', 'normal'"]),
    ],
)
def test_a_wrong_value_gets_its_key_itself_and_the_valid_ones(
    name: str, options: dict, words: list[str]
) -> None:
    message = refusal(name, **options)
    for word in [f"optimizer {name!r}", *words]:
        assert word in message


def test_a_whole_number_is_a_number() -> None:
    assert make_optimizer("cagrad", 3, c=0).combine(torch.eye(3)).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("tasks", [0, -1, 2.0])
def test_the_number_of_tasks_is_at_least_one(tasks: Any) -> None:
    with pytest.raises(OptimizerError, match="num_tasks"):
        make_optimizer("unitary", tasks)


def test_every_method_says_what_it_is(name: str) -> None:
    cls = OPTIMIZERS[name]
    assert re.search(r"\d{4}", cls.paper)
    assert any(place in cls.paper for place in ("arXiv:", "openreview:", "doi:"))
    assert "\n" not in cls.formula
    make_optimizer(name, 3, **options_of(cls))  # the defaults are valid values


def test_options_are_read_from_the_constructor() -> None:
    assert options_of(OPTIMIZERS["cagrad"]) == {"c": 0.5, "solver": "exact", "scale": "mean"}
    assert options_of(OPTIMIZERS["unitary"]) == {}


def test_a_method_s_kind_is_what_it_sees() -> None:
    kinds = {name: OPTIMIZERS[name].kind for name in ("famo", "pcgrad", "cagrad", "graddrop")}
    assert kinds == {"famo": "scalarization", "pcgrad": "Gramian", "cagrad": "Gramian", "graddrop": "rows"}


def test_of_a_class_of_ones_own_variadic_parameters_are_no_options_and_a_hint_is_not_needed() -> None:
    class Own:
        def __init__(self, num_tasks, *args, power=1.0, scale: float = 1.0, widths=(8,), **kw):
            pass

    assert registry.options_of(Own, ("num_tasks",)) == {"power": 1.0, "scale": 1.0, "widths": (8,)}
    for option in ("args", "kw", "beyond"):
        with pytest.raises(
            registry.OptionError, match=f"^ has no option '{option}': its options are power, scale, widths$"
        ):
            registry.checked(Own, ("num_tasks",), {option: 1})
    assert registry.checked(Own, ("num_tasks",), {"widths": [4]}) == {"widths": (4,)}
    assert registry.checked(Own, ("num_tasks",), {"power": "any", "scale": 2}) == {
        "power": "any",
        "scale": 2.0,
    }
    with pytest.raises(registry.OptionError, match="scale = 'two' is not valid: must be a number"):
        registry.checked(Own, ("num_tasks",), {"scale": "two"})


@pytest.mark.parametrize("section", ["The methods", "Cost"])
def test_the_documentation_has_a_row_for_every_method(section: str) -> None:
    text = DOCS.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert sorted(rows) == sorted(OPTIMIZERS)


def test_the_documented_optimizer_in_twenty_lines_works() -> None:
    section = DOCS.read_text().split("## Add an optimizer in 20 lines")[1]
    code = section.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    before = dict(OPTIMIZERS)
    scope: dict[str, Any] = {"__name__": "example"}
    try:
        exec(code, scope)
        (added,) = set(OPTIMIZERS) - set(before)
        # norms 3 and 1, mean 2: (3, 0) · 2/3 and (0, 1) · 2, and their mean
        assert scope["combined"].tolist() == pytest.approx([1.0, 1.0])
        assert OPTIMIZERS[added].kind == "Gramian"
    finally:
        OPTIMIZERS.clear()
        OPTIMIZERS.update(before)
