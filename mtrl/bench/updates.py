"""The ratios of updates: to the floor, to plain torch, and of every method to unitary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mtrl.bench.measure import Ratio, ratio_of, take_turns
from mtrl.bench.peak import Peak, find_peak
from mtrl.bench.settings import (
    ACTION,
    METHODS,
    OBSERVATION,
    SETTINGS,
    Setting,
    agent_config,
    make_agent,
    make_batch,
)
from mtrl.bench.sizes import flops_of
from mtrl.gradients import BY_LOOP, Path
from mtrl.machine import bf16_is_fast
from mtrl.replay import TaskReplay

CAPACITY = 100_000  # transitions of each task that are sampled from
EMULATED_ROUNDS = 5  # at most, of bf16 where it is emulated, which is slow
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def update_ratios(
    rounds: int, peaks: Mapping[str, Peak], settings: Mapping[str, Setting] = SETTINGS,
    capacity: int = CAPACITY, kernels: str = "auto", say: Callable[[str], None] = lambda text: None,
) -> dict[str, Ratio]:  # fmt: skip
    """Every ratio that needs no environment.

    Args:
        rounds: in which the updates of one setting and precision take turns.
        peaks: the machine's fastest product by precision; it takes part in the turns, and the floor of a
            round is the update's FLOPs at the speed that it had in this round.
        settings: by the letter in the keys.
        capacity: transitions of each task in the replay that is sampled.
        kernels: ``agent.kernels`` of what is timed against unitary and the floor.
        say: told what is timed next.
    """
    ratios: dict[str, Ratio] = {}
    threads = torch.get_num_threads()
    for letter, setting in settings.items():
        torch.set_num_threads(setting.threads or threads)
        for precision in DTYPES:
            say(f"updates in {letter}, {precision}")
            turns = rounds if precision == "fp32" or bf16_is_fast() else min(rounds, EMULATED_ROUNDS)
            own = setting.threads is not None and setting.threads != threads
            peak = find_peak(DTYPES[precision]) if own else peaks[precision]
            ratios |= method_ratios(letter, setting, precision, peak, turns, kernels)
    torch.set_num_threads(threads)
    say("the replay")
    return {**ratios, "replay_over_update": replay_ratio(settings["S"], rounds, capacity)}


def method_ratios(
    letter: str, setting: Setting, precision: str, peak: Peak, rounds: int, kernels: str = "auto"
) -> dict[str, Ratio]:
    """Each method's whole update over unitary's, in one precision; in S and R also unitary's over the floor."""
    batch, config = make_batch(setting.tasks, setting.rows), agent_config(setting)

    def update(method: str, path: Path | None = None, kernels: str = kernels) -> Callable[[], Any]:
        agent = make_agent(setting.tasks, config, method, precision=precision, kernels=kernels)
        if path is not None:
            agent.learners["critic"].path = agent.learners["actor"].path = path
        return lambda: agent.update(batch)

    functions = {method: update(method) for method in ("unitary", *METHODS)}
    if letter == "S" and precision == "fp32":
        functions["graddrop"] = update("graddrop")
    seconds = take_turns(functions, rounds)
    unitary = seconds.pop("unitary")
    ratios = {
        f"{method}_over_unitary_{precision}_{letter}": ratio_of(times, unitary)
        for method, times in seconds.items()
    }
    if letter == "S" and precision == "fp32":
        # T backward passes need stock torch's kernels; so has the unitary update that they are compared with
        slow = {
            "loop": update("pcgrad", BY_LOOP, kernels="plain"),
            "unitary": update("unitary", kernels="plain"),
        }
        ratios["loop_pcgrad_over_unitary_fp32_S"] = ratio_of(*take_turns(slow, min(rounds, 10)).values())
    if letter in "SR":
        # the product is large and empties the caches; before an update comes an update, as in training
        turns = {"floor": peak.product.run, "before": functions["unitary"], "unitary": functions["unitary"]}
        seconds = take_turns(turns, rounds)
        share = flops_of(config, setting.tasks, setting.rows) / peak.product.flops
        floor = [share * t for t in seconds["floor"]]
        ratios[f"unitary_{precision}_over_floor_{letter}"] = ratio_of(seconds["unitary"], floor)
    return ratios


def replay_ratio(setting: Setting, rounds: int, capacity: int) -> Ratio:
    """Sampling a batch over the unitary update that takes it."""
    batch, agent = make_batch(setting.tasks, setting.rows), make_agent(setting.tasks, agent_config(setting))
    replay = filled_replay(setting.tasks, capacity)
    turns = {"replay": lambda: replay.sample(setting.rows), "update": lambda: agent.update(batch)}
    return ratio_of(*take_turns(turns, rounds).values())


def filled_replay(tasks: int, capacity: int) -> TaskReplay:
    """A replay with all its rows written: pages that were never touched would be read from the cache."""
    replay = TaskReplay(tasks, capacity, OBSERVATION, ACTION)
    for column in replay.data.values():
        column.copy_(torch.rand(column.shape[1:]))
    replay.added = capacity
    return replay
