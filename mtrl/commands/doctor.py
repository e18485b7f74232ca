"""``mtrl doctor``: what this machine and installation can do, and what to do about what is wrong."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mtrl.bench.peak import find_peak
from mtrl.envs.screen import drawing
from mtrl.machine import (
    WORTH_COMPILING,
    bf16_is_fast,
    choose_kernels,
    choose_precision,
    choose_threads,
    compiling_pays,
    why_not_compiled,
)
from mtrl.replay import free_memory
from mtrl.results.tables import make_console
from mtrl.run.folder import versions
from mtrl.settings.parser import Parser

SIZE = 1024


def main(arguments: list[str]) -> int:
    """Exit code 0 when training works, 1 when something it needs does not."""
    Parser(prog="mtrl doctor", description=__doc__).parse_args(arguments)
    console = make_console()
    console.print("versions   " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    cores, threads = os.cpu_count() or 1, choose_threads("auto")
    torch.set_num_threads(threads)
    console.print(f"machine    {platform.platform()}, {cores} cores, this process may use {threads}")
    console.print(f"memory     {free_memory(torch.device('cpu')) / 1e9:.1f} GB free")
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else "cpu (no CUDA device is visible to torch)"
    )
    console.print(f"device     {device}")
    console.print(
        f"matrices   {gflops(torch.float32):.0f} GFLOP/s fp32, {gflops(torch.bfloat16):.0f} GFLOP/s bf16, "
        f"which this processor {'has' if bf16_is_fast() else 'lacks'} ({SIZE}³, cpu, {threads} thread(s))"
    )
    cpu = torch.device("cpu")
    precision = choose_precision("auto", cpu)
    kernels, in_long_runs = (
        choose_kernels("auto", cpu, updates)
        for updates in (0, WORTH_COMPILING if compiling_pays(precision) else 0)
    )
    console.print(
        f"auto       on this processor: precision {precision}, kernels {kernels} ({in_long_runs} from "
        f"{WORTH_COMPILING:,} updates on), {threads} thread(s)"
    )
    checks: list[tuple[str, Callable[[], str], str, bool]] = [
        (
            "metaworld",
            step_metaworld,
            "reinstall with `pip install -e .`",
            True,
        ),
        (
            "compiler",
            compile_something,
            "install a C++ compiler (g++) and Python's headers for updates that take 0.6 to 0.9 of the time",
            False,
        ),
        (
            "rendering",
            render,
            "only videos need it; nothing has to be set: what works is found",
            False,
        ),
        ("runs/", write_runs, "start mtrl in a folder that you may write to, or give --run_dir", True),
    ]
    healthy = True
    for name, check, remedy, needed in checks:
        try:
            console.print(f"{name:10} ok: {check()}")
        except Exception as error:  # whatever is wrong with the machine is the report
            healthy = healthy and not needed
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            console.print(
                f"{name:10} {'WRONG' if needed else 'not available'}: {reason}\n{'':10} -> {remedy}"
            )
    return 0 if healthy else 1


def gflops(dtype: torch.dtype) -> float:
    """Of one square product by the best kernel."""
    return find_peak(dtype, [(SIZE, SIZE, SIZE)]).gflops


def step_metaworld() -> str:
    from mtrl.envs import Protocol, make_suite

    start = time.perf_counter()
    envs = make_suite(Protocol("reach-v3", num_goals=1), workers=0)
    try:
        observations = envs.reset()
        envs.step(envs.action_space.sample()[None])
    finally:
        envs.close()
    seconds = time.perf_counter() - start
    return f"reach-v3 built, reset and stepped in {seconds:.1f} s, observations {observations.shape}"


def compile_something() -> str:
    if why_not_compiled():
        raise RuntimeError(why_not_compiled())
    return "torch compiles updates, for runs of many"


def render() -> str:
    return (
        f"videos are drawn with {', '.join(f'{k}={v}' for k, v in drawing().items()) or 'the system OpenGL'}"
    )


def write_runs() -> str:
    folder = Path("runs") if Path("runs").is_dir() else Path()
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder.resolve()} cannot be written")
    return f"{folder.resolve()} can be written"
