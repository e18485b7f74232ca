"""Where a method's solver has no solution, that is counted, logged, exported and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from tiny_runs import scalars, train
from torch import Tensor

from mtrl import cli
from mtrl.optimizers import OPTIMIZERS, make_optimizer, nash_mtl, simplex
from mtrl.optimizers.base import HostSolver

OPPOSED = torch.tensor([[1.0, 0.0, 0.2], [-1.0, 0.5, 0.0], [0.3, -1.0, 0.1]], dtype=torch.float64)


def no_solution(*_: Any, **__: Any) -> None:
    raise RuntimeError("Maximum number of iterations reached.")


def unbalanced() -> Tensor:
    """Three gradients whose shares C⁻¹ 1 / n sum to nothing: the middle one's is negative, and as long as it takes."""
    units = np.array([[1, 0.5, 0], [1, -0.5, 0], [1, 0, 0.05]])
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    shares = np.linalg.solve(units @ units.T, np.ones(3))
    norms = np.where(shares < 0, -shares[shares < 0].sum(), shares[shares > 0].sum())
    return torch.tensor(units * norms[:, None])


FORCED = {
    "mgda": ({}, (simplex, "ROUNDS", 0), OPPOSED),
    "mgda of units": ({"normalize": "l2"}, (simplex, "ROUNDS", 0), OPPOSED),
    "cagrad": ({}, (simplex, "ROUNDS", 0), OPPOSED),
    "pe_ltr": ({}, (simplex, "ROUNDS", 0), OPPOSED),
    "nash_mtl": ({}, (nash_mtl, "STEPS", 1), OPPOSED),
    "upgrad": ({}, (scipy.optimize, "nnls", no_solution), OPPOSED),
    "imtl_g": ({}, None, unbalanced()),
    "imtl_g as published": ({"as_published": True}, None, OPPOSED * torch.tensor([[1.0], [1.0], [0.0]])),
}


@pytest.mark.parametrize("case", FORCED)
def test_every_fallback_is_counted_and_gives_a_finite_result(case: str, monkeypatch: Any) -> None:
    options, broken, jacobian = FORCED[case]
    method = make_optimizer(case.split()[0], 3, **options)
    method.combine(OPPOSED)
    assert method.fallbacks == 0
    if broken is not None:
        monkeypatch.setattr(*broken)
    assert method.combine(jacobian).isfinite().all()
    first = method.fallbacks
    assert first is not None
    assert first >= 1
    method.combine(jacobian)
    assert method.fallbacks == 2 * first
    restored = make_optimizer(case.split()[0], 3, **options)
    restored.load_state_dict(method.state_dict())
    assert restored.fallbacks == method.fallbacks


def test_solved_gradients_count_nothing_and_who_solves_nothing_has_no_count(name: str) -> None:
    method = make_optimizer(name, 50)
    for seed in range(20):
        jacobian = torch.randn(50, 20 + 4 * seed, generator=torch.Generator().manual_seed(seed))
        method.combine(jacobian)
        method.combine(torch.cat([jacobian[:25], -jacobian[:25]]))
    assert method.fallbacks == (0 if issubclass(OPTIMIZERS[name], HostSolver) else None)


def test_a_run_logs_its_fallbacks_and_compare_shows_them_from_folder_and_table(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(simplex, "ROUNDS", 0)
    for name in ("mgda", "pcgrad"):
        assert train(tmp_path / name / "seed0", f"--optimizer.name={name}") == 0
    # each update solves once per network, and each solve is cut short
    logged = scalars(tmp_path / "mgda/seed0")
    assert logged["train/critic_fallbacks"][-1][1] == logged["train/n_updates"][-1][1] > 0
    assert "train/critic_fallbacks" not in scalars(tmp_path / "pcgrad/seed0")
    assert cli.main(["export", str(tmp_path), str(tmp_path / "table.csv")]) == 0
    for place in (tmp_path / "mgda", tmp_path / "table.csv"):
        capsys.readouterr()
        assert cli.main(["compare", str(place), "--json=-"]) == 0
        acting = json.loads(capsys.readouterr().out)["mgda"]["acting"]
        assert {network: found["fallbacks"] for network, found in acting.items()} == {
            network: logged[f"train/{network}_fallbacks"][-1][1] for network in ("critic", "actor")
        }
    assert cli.main(["compare", str(tmp_path / "table.csv")]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "│ critic " in line]
    assert {row[1].strip(): row[-2].strip() for row in rows} == {
        "mgda": f"{logged['train/critic_fallbacks'][-1][1]:.0f}", "pcgrad": "–",
    }  # fmt: skip
