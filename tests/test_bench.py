"""The speed report: what it counts and compares is right; its figures are only looked at for their form."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import bars
import growth
import gymnasium as gym
import numpy as np
import pytest
import torch
from tiny_runs import POINT

from mtrl import machine
from mtrl.bench import measure, tune, updates
from mtrl.bench.peak import find_peak
from mtrl.bench.settings import SETTINGS, Setting, agent_config
from mtrl.bench.sizes import flops_of
from mtrl.cli import main
from mtrl.commands import bench, bench_training
from mtrl.config import AgentConfig
from mtrl.envs import Protocol
from mtrl.gradients import BY_LOOP, per_task_gradients_by_loop
from mtrl.optimizers import OPTIMIZERS
from mtrl.sac import MTSAC
from mtrl.settings.train import parse_train

TINY = {
    "S": Setting(tasks=3, rows=4, hidden=(8, 8)),
    "L": Setting(tasks=3, rows=4, hidden=(8, 8), layer_norm=True),
    "F": Setting(tasks=5, rows=2, hidden=(8, 8)),
    "R": Setting(tasks=3, rows=4, hidden=(8, 8), threads=1),
}
SHAPE = [(8, 8, 8)]
OF_TRAINING = ("env_step_over_stock", "loop_overhead", "rss_gb_1m")  # what --quick leaves out


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report with small networks and without Meta-World."""
    ratio = measure.Ratio(0.5, (0.4, 0.6), (1.0, 2.0))
    monkeypatch.setattr(bench, "find_peak", lambda dtype: find_peak(dtype, SHAPE))
    monkeypatch.setattr(
        bench,
        "update_ratios",
        lambda rounds, peaks, **more: updates.update_ratios(rounds, peaks, TINY, capacity=20, **more),
    )
    monkeypatch.setattr(
        bench, "training_ratios", lambda rounds, threads, kernels, say: dict.fromkeys(OF_TRAINING, ratio)
    )


def test_the_report_has_every_ratio_that_has_a_bar(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", "-", "--rounds", "3", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(bars.BARS) < set(report["ratios"])
    assert "missing" not in bars.judge(report).values()
    assert report["machine"]["threads"] == 1
    assert report["machine"]["peak_gflops"].keys() == {"fp32", "bf16"}
    for ratio in report["ratios"].values():
        assert set(ratio) == {"value", "spread", "parts_ms"}
        low, high = ratio["spread"]
        assert low <= high
        assert ratio["value"] is None or low <= ratio["value"] <= high
        assert set(ratio["parts_ms"]) == {"numerator", "denominator"}


def test_the_quick_report_leaves_out_only_the_environments(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    assert main(["bench", "--quick", "--rounds", "1", "--threads", "1", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert [k for k, verdict in bars.judge(report).items() if verdict == "missing"] == list(OF_TRAINING)
    table = capsys.readouterr().out
    assert "loop_pcgrad_over_unitary_fp32_S" in table
    assert "rss_gb_1m" not in table


def test_without_a_file_the_report_is_a_table(tiny: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--rounds", "1", "--threads", "1"]) == 0
    table = capsys.readouterr().out
    for key in bars.BARS:
        assert key in table


def test_the_loop_of_backward_passes_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def by_loop(*args: object) -> object:
        calls.append(args)
        return per_task_gradients_by_loop(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(updates, "BY_LOOP", replace(BY_LOOP, per_task=by_loop))
    peak = find_peak(torch.float32, SHAPE)
    updates.method_ratios("S", TINY["S"], "fp32", peak, rounds=2)
    assert len(calls) == 2 * (measure.WARM_UP + 2)  # critic and actor


def test_the_kernels_that_are_timed_are_those_asked_for(
    tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    make = updates.make_agent

    def recorded(tasks: int, config: AgentConfig, method: str = "unitary", **chosen: str) -> MTSAC:
        kernels = chosen.get("kernels", "auto")
        asked.append((method, kernels))
        return make(
            tasks, config, method, **chosen | {"kernels": "torch" if kernels == "compiled" else kernels}
        )

    monkeypatch.setattr(updates, "make_agent", recorded)
    assert main(["bench", "--quick", "--compiled", "--rounds", "1", "--threads", "1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["kernels"] == "compiled"
    assert {kernels for method, kernels in asked if method in updates.METHODS} == {"compiled", "plain"}


def test_a_value_is_left_out_when_it_is_too_noisy() -> None:
    steady = measure.ratio_of([1.0, 1.1, 0.9, 1.0], [2.0] * 4)
    assert steady.value == 0.5
    assert steady.parts_ms == (1000.0, 2000.0)
    noisy = measure.ratio_of([1.0, 2.0, 1.0, 2.0], [1.0] * 4)
    assert noisy.value is None
    assert noisy.spread == (1.0, 2.0)


def test_rounds_are_taken_in_turns_and_those_to_warm_up_do_not_count() -> None:
    called: list[str] = []
    seconds = measure.take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 2)
    assert called == ["a", "b"] * (measure.WARM_UP + 2)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_flops_are_those_counted_by_hand() -> None:
    """One task, one row, one hidden unit: the actor is 40 → 1 → 8, a critic 44 → 1 → 1."""
    actor, critic = 40 + 8, 44 + 1
    forward = actor + 2 * critic + 2 * critic + actor + 2 * critic
    critics_loss = 2 * (critic + 1)  # weights; the input of the second layer
    actors_loss = 2 * critic + actor + 8  # through two critics to their inputs; weights and an input
    expected = 2 * (forward + critics_loss + actors_loss)
    config = agent_config(Setting(hidden=(1,)))
    assert flops_of(config, 1, 1) == expected == 1208
    # an embedding of 5 instead of the one-hot of 1: in 8 networks, 2 critics' weights, 2 critics' inputs, the actor's
    # weights; and for its own gradient all inputs of 2 critics and the actor
    more = 4 * (8 + 2 + 2 + 1) + 2 * (44 + 4) + (40 + 4)
    config = replace(config, task_input="embedding", embedding_dim=5)
    assert flops_of(config, 1, 1) == expected + 2 * more


def test_the_optimizers_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SETTINGS", TINY)
    assert main(["bench", "optimizers", "--rounds", "1", "--threads", "1", "--json", "-"]) == 0
    timed = json.loads(capsys.readouterr().out)["optimizers"]
    assert set(timed) == set(OPTIMIZERS)
    assert timed["unitary"]["over_unitary"] == 1
    assert timed["pcgrad"]["solver_ms_50"] > 0
    assert main(["bench", "optimizers", "--rounds", "1", "--threads", "1"]) == 0
    assert "pcgrad" in capsys.readouterr().out


def test_a_ratio_is_held_to_its_bar_unless_it_is_noisy_or_of_emulated_bf16() -> None:
    values = {**bars.BARS, "rss_gb_1m": 2.1, "loop_overhead": None}
    report = {"machine": {"bf16_is_fast": False}, "ratios": {k: {"value": v} for k, v in values.items()}}
    del report["ratios"]["replay_over_update"]
    verdicts = bars.judge(report)
    assert {key for key, verdict in verdicts.items() if verdict == "void"} == {
        k for k in bars.BARS if "bf16" in k
    }
    assert verdicts["unitary_fp32_over_floor_R"] == "ok"
    assert verdicts["rss_gb_1m"] == "ABOVE"
    assert verdicts["loop_overhead"] == "noisy"
    assert verdicts["replay_over_update"] == "missing"
    report["machine"]["bf16_is_fast"] = True
    assert bars.judge(report)["pcgrad_over_unitary_bf16_R"] == "ok"


def test_the_peak_is_that_of_a_product_that_can_be_repeated() -> None:
    peak = find_peak(torch.float32, SHAPE)
    assert peak.gflops > 0
    assert peak.product.flops == 2 * 8**3
    assert peak.product.run().shape == (8, 8)


def test_environments_loop_and_memory_are_measured_on_a_small_suite() -> None:
    protocol = Protocol(suite="point", horizon=30, num_goals=3)

    class Stock(gym.vector.VectorEnv):
        action_space = gym.spaces.Box(-1, 1, (len(protocol.task_names), 2), np.float32)

        def reset(self, **named):
            return None, {}

        def step(self, actions):
            return sum(range(10_000))

    ratios = bench_training.training_ratios(
        3, 1, protocol, loop=POINT, full=[*POINT, "--total_steps_per_task=80"], stock=Stock
    )
    assert list(ratios) == list(OF_TRAINING)
    assert ratios["env_step_over_stock"].spread[0] > 0
    low, high = ratios["loop_overhead"].spread
    assert 0 < low <= high
    assert 0.1 < ratios["rss_gb_1m"].value < 2


def test_tuning_names_overrides_that_train_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "--tune", "--config", "point", "--rounds", "1", "--threads", "1", "--json", "-"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["recommended"] in result["choices"]
    precisions = {c.split("--agent.precision ")[1].split()[0] for c in result["choices"]}
    assert precisions == {"fp32", "bf16"}
    chosen = parse_train(["--config", "point", *result["recommended"].split()]).config
    assert chosen.agent.precision in precisions


def test_tuning_recommends_no_kernels_for_a_run_that_compiles_when_it_timed_none(monkeypatch) -> None:
    monkeypatch.setattr(machine, "why_not_compiled", lambda: "")
    monkeypatch.setattr(machine, "mkl_is_fast", lambda: True)
    timed = [tune.Choice(1, {"precision": "fp32", "kernels": "onednn"}, 1.0)]
    monkeypatch.setattr(bench, "time_choices", lambda *_: timed)
    for compiled, wanted in ((False, ""), (True, " --agent.kernels onednn")):
        result, _ = bench.tune("mt10_fast", "1", 1, compiled)
        assert result["recommended"] == f"--threads 1 --agent.precision fp32{wanted}"
        assert bool(result["note"]) is not compiled


def test_the_sizes_of_a_configs_setting_are_the_configs() -> None:
    config = parse_train(["--config=mt10_fast"]).config
    sizes = SETTINGS["R"]
    assert (sizes.tasks, sizes.rows, sizes.hidden, sizes.layer_norm) == (10, 32, (256, 256, 256), True)
    assert (sizes.rows, sizes.hidden) == (config.replay.batch_size, config.agent.actor.hidden)


def test_tuning_prefers_the_plainest_of_those_as_fast_as_the_fastest() -> None:
    listed = [tune.Choice(1, {"precision": "fp32"}, 10.2), tune.Choice(2, {"precision": "bf16"}, 10.0)]
    assert tune.recommended(listed) is listed[0]
    assert tune.recommended([listed[0]._replace(milliseconds=20.0), listed[1]]).command_line == (
        "--threads 2 --agent.precision bf16"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--rounds 0", "rounds: 0 is not valid; it must be >= 1"),
        ("--rounds many", "rounds: 'many' is not valid; it must be a whole number"),
        ("--threads none", "threads: 'none' is not valid; it must be from 1 to 1024, or auto"),
        ("--threads 0", "threads: '0' is not valid"),
        ("--json /nowhere/file", "json: /nowhere/file cannot be written (No such file or directory)"),
        ("--json", "json: a value is missing"),
        ("--quick --tune", "choose one"),
        ("optimizers --quick", "choose one"),
        ("--config mt10", "config: 'mt10' is only for --tune"),
        ("--tune --config mt11", "'mt11' is neither a file nor a shipped config, did you mean 'mt10'?"),
        ("optimisers", "optimisers"),
        ("--slow", "--slow"),
    ],
)
def test_bad_input_is_one_line(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.count("\n") == 1


def test_growth_is_measured_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "find_peak", lambda dtype: find_peak(dtype, SHAPE))
    points = {"tasks": (1, 3), "rows": (2, 4), "width": (4, 8)}
    rows = growth.measure(1, points, Setting(tasks=2, rows=3, hidden=(8, 8)))
    assert len(rows) == 6 * 2 * (len(growth.SHOWN) + 1)
    assert all(row["ms"] > 0 for row in rows)
    growth.draw(rows).savefig(tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_the_installed_command_prints_nothing_but_json(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mtrl.cli", "bench", "--tune", "--config", "point", "--rounds", "1", "--json", "-"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin"},
    )  # fmt: skip
    assert json.loads(done.stdout)["recommended"].startswith("--threads 1")
    assert not list(tmp_path.iterdir())
