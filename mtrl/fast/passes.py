"""The passes of :mod:`mtrl.fast.rows`, compiled by numba. Importing this needs numba, and compiles or reads its cache.

Arguments are addresses of contiguous arrays. ``x``, ``out``, ``d`` and ``dx`` are ``[G, R, n]`` of float32 or bfloat16,
which numba knows as uint16; ``bias``, ``gamma``, ``beta`` ``[G, n]``, ``mean``, ``rstd`` ``[G, R]`` and
``sums`` ``[G, T, 3, n]`` are float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types
from numba.extending import overload

from mtrl.fast import EPS

REORDER = {"reassoc", "contract", "nsz", "arcp"}  # sums fill a vector register; what is not finite stays so
ZERO, ONE, HALF = np.float32(0), np.float32(1), np.uint32(16)


def load(row: Any, bits: Any) -> None:
    """A row's numbers as the bits of float32."""


def store(bits: Any, row: Any) -> None:
    """The way back: rounded to the nearest, ties to even."""


@overload(load, inline="always", jit_options={"fastmath": REORDER})  # type: ignore[untyped-decorator]
def _load(row: Any, bits: Any) -> Callable[[Any, Any], None]:
    if row.dtype == types.uint16:  # a bfloat16 is the upper half of a float32

        def of_half(row: Any, bits: Any) -> None:
            for i in range(len(bits)):
                bits[i] = np.uint32(row[i]) << HALF

        return of_half

    def of_whole(row: Any, bits: Any) -> None:
        values = bits.view(np.float32)
        for i in range(len(bits)):
            values[i] = row[i]

    return of_whole


@overload(store, inline="always", jit_options={"fastmath": REORDER})  # type: ignore[untyped-decorator]
def _store(bits: Any, row: Any) -> Callable[[Any, Any], None]:
    if row.dtype == types.uint16:

        def to_half(bits: Any, row: Any) -> None:
            for i in range(len(bits)):
                u = bits[i]
                row[i] = np.uint16((u + np.uint32(0x7FFF) + ((u >> HALF) & np.uint32(1))) >> HALF)

        return to_half

    def to_whole(bits: Any, row: Any) -> None:
        values = bits.view(np.float32)
        for i in range(len(bits)):
            row[i] = values[i]

    return to_whole


def forward(
    x_: Any, bias_: Any, gamma_: Any, beta_: Any, out_: Any, mean_: Any, rstd_: Any,
    groups: int, rows: int, n: int, biased: int, relu: int,
) -> None:  # fmt: skip
    x, out = carray(x_, (groups * rows, n)), carray(out_, (groups * rows, n))
    biases, gammas, betas = (
        carray(bias_, (groups, n)),
        carray(gamma_, (groups, n)),
        carray(beta_, (groups, n)),
    )
    means, rstds = carray(mean_, groups * rows), carray(rstd_, groups * rows)
    bits = np.empty(n, np.uint32)
    v = bits.view(np.float32)
    low = ZERO if relu else -np.float32(np.inf)
    for r in range(groups * rows):
        gamma, beta = gammas[r // rows], betas[r // rows]
        load(x[r], bits)
        if biased:
            bias = biases[r // rows]
            for i in range(n):
                v[i] += bias[i]
        total = ZERO
        for i in range(n):
            total += v[i]
        mean = total / np.float32(n)
        squares = ZERO
        for i in range(n):
            squares += (v[i] - mean) * (v[i] - mean)
        rstd = ONE / np.sqrt(squares / np.float32(n) + np.float32(EPS))
        for i in range(n):
            y = (v[i] - mean) * rstd * gamma[i] + beta[i]
            v[i] = low if y < low else y  # nan stays nan
        store(bits, out[r])
        means[r] = mean
        rstds[r] = rstd


def backward(
    d_: Any, x_: Any, bias_: Any, out_: Any, mean_: Any, rstd_: Any, gamma_: Any, dx_: Any, sums_: Any,
    groups: int, tasks: int, rows: int, n: int, biased: int, relu: int, wanted: int,
) -> None:  # fmt: skip
    parts = groups * tasks  # of rows that have sums of their own
    shape = (parts * rows, n)
    d, x = carray(d_, shape), carray(x_, shape)
    out, dx = carray(out_, shape), carray(dx_, shape)
    biases, gammas = carray(bias_, (groups, n)), carray(gamma_, (groups, n))
    sums = carray(sums_, (parts, 3, n))
    means, rstds = carray(mean_, parts * rows), carray(rstd_, parts * rows)
    d_bits, x_bits, o_bits = np.empty(n, np.uint32), np.empty(n, np.uint32), np.empty(n, np.uint32)
    g, h, o = d_bits.view(np.float32), x_bits.view(np.float32), o_bits.view(np.float32)
    for part in range(parts):
        gamma, bias = gammas[part // tasks], biases[part // tasks]
        if wanted:
            sums[part] = ZERO
            to_gamma, to_beta, to_bias = sums[part, 0], sums[part, 1], sums[part, 2]
        else:
            to_gamma, to_beta, to_bias = gamma, gamma, gamma  # never written
        for r in range(part * rows, (part + 1) * rows):
            load(d[r], d_bits)
            load(x[r], x_bits)
            if biased:
                for i in range(n):
                    h[i] += bias[i]
            mean, rstd = means[r], rstds[r]
            if relu:
                load(out[r], o_bits)
                for i in range(n):
                    g[i] = ZERO if o[i] <= ZERO else g[i]
            first, second = ZERO, ZERO
            for i in range(n):
                h[i] = (h[i] - mean) * rstd
                first += g[i] * gamma[i]
                second += g[i] * gamma[i] * h[i]
            first /= np.float32(n)
            second /= np.float32(n)
            if wanted:
                for i in range(n):
                    to_gamma[i] += g[i] * h[i]
                    to_beta[i] += g[i]
                    g[i] = (g[i] * gamma[i] - first - h[i] * second) * rstd
                    to_bias[i] += g[i]
            else:
                for i in range(n):
                    g[i] = (g[i] * gamma[i] - first - h[i] * second) * rstd
            store(d_bits, dx[r])


def mix(shares_: Any, parts_: Any, out_: Any, count: int, rows: int, n: int) -> None:
    shares, parts, out = (
        carray(shares_, (rows, count)),
        carray(parts_, (count, rows, n)),
        carray(out_, (rows, n)),
    )
    for r in range(rows):
        for i in range(n):
            out[r, i] = shares[r, 0] * parts[0, r, i]
        for k in range(1, count):
            for i in range(n):
                out[r, i] += shares[r, k] * parts[k, r, i]


def unmix(
    d_: Any, shares_: Any, parts_: Any, to_shares_: Any, to_parts_: Any, count: int, rows: int, n: int
) -> None:
    d, shares, parts = carray(d_, (rows, n)), carray(shares_, (rows, count)), carray(parts_, (count, rows, n))
    to_shares, to_parts = carray(to_shares_, (rows, count)), carray(to_parts_, (count, rows, n))
    for r in range(rows):
        for k in range(count):
            share, total = shares[r, k], ZERO
            for i in range(n):
                total += d[r, i] * parts[k, r, i]
                to_parts[k, r, i] = share * d[r, i]
            to_shares[r, k] = total


def _compile(function: Callable[..., None], kinds: list[Any]) -> Callable[..., None]:
    signature = types.void(*kinds)
    try:
        made = numba.cfunc(signature, fastmath=REORDER, cache=True)(function)
    except RuntimeError:  # nowhere to keep a cache
        made = numba.cfunc(signature, fastmath=REORDER)(function)
    KEPT.append(made)
    plain = {types.int64: ctypes.c_int64, types.int8: ctypes.c_int8}
    return ctypes.CFUNCTYPE(None, *(plain.get(kind, ctypes.c_void_p) for kind in kinds))(made.address)


KEPT: list[Any] = []  # code lives as long as its object does
FORWARD: dict[torch.dtype, Callable[..., None]] = {}
BACKWARD: dict[torch.dtype, Callable[..., None]] = {}
for _dtype, _number in ((torch.float32, types.float32), (torch.bfloat16, types.uint16)):
    _many, _exact = types.CPointer(_number), types.CPointer(types.float32)
    FORWARD[_dtype] = _compile(
        forward, [_many, *[_exact] * 3, _many, *[_exact] * 2, *[types.int64] * 3, *[types.int8] * 2]
    )
    BACKWARD[_dtype] = _compile(
        backward,
        [_many, _many, _exact, _many, *[_exact] * 3, _many, _exact, *[types.int64] * 4, *[types.int8] * 3],
    )
_exact, _count = types.CPointer(types.float32), [types.int64] * 3
MIX = _compile(mix, [_exact] * 3 + _count)
UNMIX = _compile(unmix, [_exact] * 5 + _count)
