"""What ``auto`` means on this machine: from its flags and cores, never from a timing, so that two starts agree."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal

from mtrl.config import ConfigError

if TYPE_CHECKING:  # the command line keeps memory before it knows whether torch is needed
    import torch

Precision = Literal["fp32", "bf16"]
Kind = Literal["plain", "torch", "onednn", "compiled"]
CPUINFO = "/proc/cpuinfo"
WORTH_COMPILING = 20_000  # updates: half a minute to a minute of compilation is then a small part
LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def bf16_is_fast() -> bool:
    """Whether the processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX); elsewhere it is slower."""
    flags = of_processor("flags").split()
    return platform.machine() == "x86_64" and ("avx512_bf16" in flags or "amx_bf16" in flags)


def mkl_is_fast() -> bool:
    """Whether torch's own float32 products are MKL's, and on a processor of its maker: on others a batched one takes
    twice as long as oneDNN's one by one.
    """
    import torch

    there: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return there and "GenuineIntel" in of_processor("vendor_id")


def of_processor(key: str) -> str:
    """What Linux says of the first core; nothing elsewhere."""
    try:
        with open(CPUINFO) as file:
            return next((line.partition(":")[2] for line in file if line.startswith(key)), "")
    except OSError:
        return ""


def choose_precision(precision: Precision | Literal["auto"], device: torch.device) -> Precision:
    """``auto`` is bf16 on a processor that is fast at it, else (on any GPU too) fp32."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cpu" and bf16_is_fast() else "fp32"


def choose_kernels(kernels: Kind | Literal["auto"], device: torch.device, updates: int = 0) -> Kind:
    """``auto`` is compiled where that pays, on a processor; else onednn where torch has it; else torch.

    Args:
        updates: that are to come and can run compiled.

    Raises:
        ConfigError: onednn or compiled was asked for and is not there.
    """
    import torch

    if kernels == "compiled" and why_not_compiled():
        raise ConfigError(why_not_compiled())
    if kernels == "auto" and updates >= WORTH_COMPILING and device.type == "cpu" and not why_not_compiled():
        return "compiled"
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    possible = device.type == "cpu" and there
    if kernels == "onednn" and not possible:
        raise ConfigError(
            f"agent.kernels: 'onednn' is not there on {device.type} with this torch; use torch, plain or auto"
        )
    return ("onednn" if possible else "torch") if kernels == "auto" else kernels


@cache
def why_not_compiled() -> str:
    """Why torch's inductor cannot compile here, by an attempt; nothing where it can."""
    import torch

    from mtrl.fast.graphs import Graphs

    if torch.__version__ < "2.8":
        return f"agent.kernels: 'compiled' needs torch 2.8, and this is {torch.__version__}; use torch"
    try:
        Graphs()(torch.neg, torch.ones(1))
    except ConfigError as error:
        return str(error)
    return ""


def compiling_pays(precision: Precision) -> bool:
    """Whether compiled updates pay in this precision: the products that inductor calls are MKL's."""
    return precision == "bf16" or mkl_is_fast()


def choose_threads(threads: int | Literal["auto"]) -> int:
    """``auto`` is what the environment allows the libraries, else the cores this process may run on."""
    if threads != "auto":
        return threads
    limits = [int(os.environ[name]) for name in LIBRARIES if os.environ.get(name, "").isdecimal()]
    return min([cores(), *(limit for limit in limits if limit > 0)])


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def flushed_subnormals() -> Iterator[None]:
    """Numbers nearer to 0 than 1.2e-38 are 0, on this thread; torch's others keep what they began with.

    Without layer norm, a dead unit's moments in Adam become such numbers and stay so, and a processor takes ten times
    as long for them: a tenth of a step of MT10.
    """
    import torch

    start_threads()
    before = (torch.full((1,), 1e-40) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@cache
def start_threads() -> None:
    """Start torch's threads, which keep for ever how they treat subnormal numbers when they begin."""
    import torch

    torch.ones(2**20).neg_()


def keep_freed_memory() -> None:
    """Have GNU's malloc keep what an update frees for the next one, up to 2 GB.

    By default it gives back to the system what is above 64 MB, and 35,000 pages of a Jacobian of fifty tasks
    are faulted in anew at every update: a quarter of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another libc
        return
    trim_threshold, mmap_threshold = -1, -3
    # a replay is larger, and still given page by page; older versions take half of that at most
    if mallopt(mmap_threshold, 2**26) or mallopt(mmap_threshold, 2**25):
        mallopt(trim_threshold, 2**31 - 1)
