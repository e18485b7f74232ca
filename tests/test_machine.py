"""What auto becomes, and what is asked of the C library."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from mtrl.config import ConfigError
from mtrl.machine import (
    WORTH_COMPILING,
    bf16_is_fast,
    choose_kernels,
    choose_precision,
    choose_threads,
    keep_freed_memory,
    mkl_is_fast,
    why_not_compiled,
)

CPU = torch.device("cpu")


def test_auto_looks_at_the_processor_not_at_the_clock(monkeypatch):
    for fast, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("mtrl.machine.bf16_is_fast", lambda fast=fast: fast)
        assert choose_precision("auto", CPU) == precision
        assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("auto", torch.device("cuda")) == "fp32"
    assert choose_kernels("auto", torch.device("cuda")) == "torch"
    assert choose_kernels("plain", CPU) == "plain"


def test_onednn_where_it_is_not_is_bad_input(monkeypatch):
    with pytest.raises(ConfigError, match="kernels: 'onednn' is not there on cuda"):
        choose_kernels("onednn", torch.device("cuda"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_kernels("auto", CPU) == "torch"
    with pytest.raises(ConfigError, match="use torch, plain or auto"):
        choose_kernels("onednn", CPU)


def test_many_updates_are_worth_compiling_where_that_is_possible(monkeypatch):
    monkeypatch.setattr("mtrl.machine.why_not_compiled", lambda: "")
    assert choose_kernels("auto", CPU, updates=WORTH_COMPILING) == "compiled"
    assert choose_kernels("auto", CPU, updates=WORTH_COMPILING - 1) != "compiled"
    assert choose_kernels("auto", torch.device("cuda"), updates=10**6) == "torch"
    assert choose_kernels("torch", CPU, updates=10**6) == "torch"
    assert choose_kernels("compiled", CPU) == "compiled"
    monkeypatch.setattr("mtrl.machine.why_not_compiled", lambda: "agent.kernels: 'compiled' failed: no g++")
    assert choose_kernels("auto", CPU, updates=10**6) != "compiled"
    with pytest.raises(ConfigError, match=r"^agent\.kernels: 'compiled' failed: no g\+\+$"):
        choose_kernels("compiled", CPU)


def test_a_compiler_that_fails_is_found_before_training(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("C++ compile error\nand a page of text")

    why_not_compiled.cache_clear()
    monkeypatch.setattr("torch._inductor.standalone_compile", fail)
    assert why_not_compiled() == "agent.kernels: 'compiled' failed, use torch: C++ compile error"
    why_not_compiled.cache_clear()
    monkeypatch.setattr(torch, "__version__", "2.7.1")
    assert why_not_compiled() == "agent.kernels: 'compiled' needs torch 2.8, and this is 2.7.1; use torch"
    why_not_compiled.cache_clear()


def test_bfloat16_is_fast_where_the_flags_say_so(monkeypatch, tmp_path):
    for flags, fast in (("avx2 avx512f", False), ("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True)):
        file = tmp_path / "cpuinfo"
        file.write_text(f"processor : 0\nflags\t\t: fpu {flags}\n")
        monkeypatch.setattr("mtrl.machine.CPUINFO", str(file))
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        assert bf16_is_fast() == fast
    monkeypatch.setattr("mtrl.machine.CPUINFO", str(tmp_path / "none"))
    assert not bf16_is_fast()


def test_torchs_own_products_are_taken_where_mkl_is_on_its_makers_processor(monkeypatch, tmp_path):
    monkeypatch.setattr("mtrl.machine.CPUINFO", str(tmp_path / "cpuinfo"))
    for vendor, there, fast in (
        ("GenuineIntel", True, True),
        ("AuthenticAMD", True, False),
        ("GenuineIntel", False, False),
    ):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nvendor_id\t: {vendor}\n")
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda there=there: there)
        assert mkl_is_fast() == fast
    (tmp_path / "cpuinfo").unlink()
    assert not mkl_is_fast()


def test_threads_are_what_the_environment_and_the_cores_allow(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert choose_threads("auto") == 6
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_threads("auto") == 4
    assert choose_threads(9) == 9


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=str,
)
def test_threads_spin_briefly_unless_the_user_says_how_they_wait(own, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in names} | own
    asked = "import sys, os, mtrl; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [expected, "False"]  # said before torch is loaded


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (2**26, [(-3, 2**26), (-1, 2**31 - 1)]),  # malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
        (2**25, [(-3, 2**26), (-3, 2**25), (-1, 2**31 - 1)]),
        (0, [(-3, 2**26), (-3, 2**25)]),  # a trim threshold alone would have all blocks mapped anew
    ],
)
def test_freed_memory_is_kept_where_the_c_library_can_and_ignored_where_not(monkeypatch, most, expected):
    asked = []

    class Library:
        def mallopt(self, parameter: int, value: int) -> int:
            asked.append((parameter, value))
            return int(parameter == -1 or value <= most)

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    keep_freed_memory()
    assert asked == expected
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
