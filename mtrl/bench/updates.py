"""The ratios of updates: to the floor, to plain torch, and of every method to unitary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mtrl.bench.flops import update_flops
from mtrl.bench.measure import Ratio, ratio_of, take_turns
from mtrl.bench.peak import Peak
from mtrl.bench.plain import PlainUpdate, flat
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
from mtrl.gradients import BY_LOOP, Path
from mtrl.machine import bf16_is_fast
from mtrl.replay import TaskReplay

CAPACITY = 100_000  # transitions of each task that are sampled from
EMULATED_ROUNDS = 5  # at most, of bf16 where it is emulated: its bars are void, and it is slow
PRECISIONS = ("fp32", "bf16")


def update_ratios(
    rounds: int, peaks: Mapping[str, Peak], settings: Mapping[str, Setting] = SETTINGS,
    capacity: int = CAPACITY, say: Callable[[str], None] = lambda text: None,
) -> dict[str, Ratio]:  # fmt: skip
    """Every ratio that needs no environment.

    Args:
        rounds: in which the updates of one setting and precision take turns.
        peaks: the machine's fastest product by precision; it takes part in the turns, and the floor of a
            round is the update's FLOPs at the speed that it had in this round.
        settings: by the letter in the keys.
        capacity: transitions of each task in the replay that is sampled.
        say: told what is timed next.
    """
    ratios: dict[str, Ratio] = {}
    for letter, setting in settings.items():
        for precision in PRECISIONS:
            say(f"updates in {letter}, {precision}")
            turns = rounds if precision == "fp32" or bf16_is_fast() else min(rounds, EMULATED_ROUNDS)
            ratios |= method_ratios(letter, setting, precision, peaks[precision], turns)
        if letter != "F":
            say(f"updates in {letter}, against plain torch")
            ratios |= plain_ratios(letter, setting, rounds, capacity)
    return ratios


def method_ratios(letter: str, setting: Setting, precision: str, peak: Peak, rounds: int) -> dict[str, Ratio]:
    """Each method's whole update over unitary's, in one precision; in S also unitary's over the floor."""
    batch, config = make_batch(setting.tasks, setting.rows), agent_config(setting)

    def update(method: str, path: Path | None = None, kernels: str = "auto") -> Callable[[], Any]:
        agent = make_agent(setting.tasks, config, method, precision=precision, kernels=kernels)
        agent.path = path or agent.path
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
    if letter == "S":
        # the product is large and empties the caches; before an update comes an update, as in training
        turns = {"floor": peak.product.run, "before": functions["unitary"], "unitary": functions["unitary"]}
        seconds, share = take_turns(turns, rounds), update_flops(setting) / peak.product.flops
        floor = [share * t for t in seconds["floor"]]
        ratios[f"unitary_{precision}_over_floor"] = ratio_of(seconds["unitary"], floor)
    return ratios


def plain_ratios(letter: str, setting: Setting, rounds: int, capacity: int) -> dict[str, Ratio]:
    """What precision=auto makes of the unitary update over plain torch in fp32; in S also the replay's share."""
    batch = make_batch(setting.tasks, setting.rows)
    agent, plain = (
        make_agent(setting.tasks, agent_config(setting), precision="auto"),
        PlainUpdate(setting),
    )
    rows = flat(batch)
    functions: dict[str, Callable[[], Any]] = {
        "auto": lambda: agent.update(batch),
        "plain": lambda: plain(rows),
    }
    if letter == "S":
        replay = filled_replay(setting.tasks, capacity)
        functions["replay"] = lambda: replay.sample(setting.rows)
    seconds = take_turns(functions, rounds)
    ratios = {f"unitary_auto_over_plain_{letter}": ratio_of(seconds["auto"], seconds["plain"])}
    if "replay" in seconds:
        ratios["replay_over_update"] = ratio_of(seconds["replay"], seconds["auto"])
    return ratios


def filled_replay(tasks: int, capacity: int) -> TaskReplay:
    """A replay with all its rows written: pages that were never touched would be read from the cache."""
    replay = TaskReplay(tasks, capacity, OBSERVATION, ACTION)
    for column in replay.data.values():
        column.copy_(torch.rand(column.shape[1:]))
    replay.added = capacity
    return replay
