"""Matrix products on processors without tiles: dot products of 16-bit activations and 8-bit
weights.

LLVM's own vectoriser finds no good code for them (6 to 10 GB of weights per second and core, these
do 17), so the vectors are written out.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nsa_serve.model import fused
from nsa_serve.model.compiled.jit import Bytes, Floats, Words, compiled
from nsa_serve.model.compiled.rows import magnitude_of, write_planes
from nsa_serve.model.compiled.vectors import (
    FLOATS,
    I8,
    I16,
    I32,
    I64,
    INTS,
    LANES,
    Code,
    constant,
    has,
    writes,
)

TERMS = 2 * LANES
"""Terms that one instruction multiplies; lengths of rows must be multiples of it."""
MAX_TERMS = LANES * (2**31 // (32_385 * 127))
"""More could overflow an int32 lane."""
OUTPUTS = 32
"""Outputs that are computed at once."""
_BLOCK = 4
"""Rows and outputs that are in registers at once."""


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] int8 → [out / 32, 32, in]"""
    return weight.unflatten(0, (-1, OUTPUTS)).contiguous()


@compiled
def empty_rows(count: int, length: int) -> Words:
    """Room for activations: [count in fours, length]."""
    return np.zeros((-(-count // _BLOCK) * _BLOCK, length), np.int16)


@compiled
def round_row(x: Floats, rows: Words, row: int) -> np.float32:
    """Put x [length] into a row, as 254 · high + low of its two int8 planes; returns its magnitude,
    NaN if it is not finite."""
    magnitude = magnitude_of(x)
    _round(x, fused.LEVELS / magnitude, rows[row])
    return magnitude


@intrinsic
def _round(typing_context: Any, x: Any, factor: Any, out: Any) -> Any:
    return types.void(x, types.float32, out), writes(_write_round)


def _write_round(code: Code, _x: Any, factor: Any, _out: Any) -> None:
    builder, x, factor, out = code.builder, code.data(0), code.spread(factor), code.data(2)
    words = ir.VectorType(I16, LANES)

    def vector(index: Any) -> None:
        source = code.at(x, builder.mul(index, I64(4 * LANES)))
        high, low = (
            builder.trunc(of, words) for of in write_planes(code, code.load(source), factor)
        )
        both = builder.add(builder.mul(high, constant(words, int(fused.LOW))), low)
        code.store(both, code.at(out, builder.mul(index, I64(2 * LANES))))

    code.loop(builder.udiv(code.extent(0, 0), I64(LANES)), vector)


@compiled
def start() -> None:
    """Nothing to prepare."""


@compiled
def stop() -> None:
    """Nothing to give back."""


@compiled
def multiply(rows: Words, first: int, count: int, weight: Bytes, n: int, sums: Floats) -> None:
    """sums[i] [16, 32] of `count` ≤ 16 rows from `first`, a multiple of 8, on, times the outputs
    of block n of weight [out / 32, 32, in]."""
    outputs = weight[n]
    for c in range(0, OUTPUTS, _BLOCK):
        if count == 1:
            _dots_of_one(rows, first, outputs, c, sums, 0)
        else:
            for row in range(0, count, _BLOCK):
                _dots_of_four(rows, first + row, outputs, c, sums, row)


def _dots(num_rows: int) -> Any:
    """A function of (rows [·, K] int16, first row, w [32, K] int8, first output, sums [·, 32],
    first place) for so many rows by four outputs. Each lane adds up exactly, and all sums add their
    lanes in the same order: a sum depends on its own row and output only."""

    @intrinsic
    def dots(typing_context: Any, x: Any, row: Any, w: Any, c: Any, sums: Any, place: Any) -> Any:
        signature = types.void(x, types.int64, w, types.int64, sums, types.int64)
        return signature, writes(lambda code, *args: _write_dots(code, num_rows, *args))

    return dots


def _write_dots(
    code: Code, num_rows: int, _x: Any, row: Any, _w: Any, c: Any, _sums: Any, place: Any
) -> None:
    builder = code.builder
    length = code.extent(0, 1)

    def line(pointer: Any, first: Any, offset: int, width: int) -> Any:
        index = builder.add(first, I64(offset))
        return code.at(pointer, builder.mul(builder.mul(index, length), I64(width)))

    x_rows = [line(code.data(0), row, r, 2) for r in range(num_rows)]
    w_rows = [line(code.data(2), c, i, 1) for i in range(_BLOCK)]
    zero = ir.Constant(INTS, None)
    totals = [code.variables([zero] * _BLOCK) for _ in x_rows]

    def step(index: Any) -> None:
        offset = builder.mul(index, I64(TERMS))
        wide = ir.VectorType(I16, TERMS)
        weights = [
            builder.sext(code.load(code.at(w_row, offset), ir.VectorType(I8, TERMS)), wide)
            for w_row in w_rows
        ]
        for x_row, line_totals in zip(x_rows, totals, strict=True):
            values = code.load(code.at(x_row, builder.mul(offset, I64(2))), wide)
            for weight, total in zip(weights, line_totals, strict=True):
                builder.store(_multiply_add(code, builder.load(total), values, weight), total)

    code.loop(builder.udiv(length, I64(TERMS)), step)
    for r, line_totals in enumerate(totals):
        four = _sums_of_lanes(code, [builder.load(total) for total in line_totals])
        index = builder.add(builder.mul(builder.add(place, I64(r)), I64(OUTPUTS)), c)
        code.store(four, code.at(code.data(4), builder.mul(index, I64(4))))


def _multiply_add(code: Code, total: Any, x: Any, w: Any) -> Any:
    """total + the sums of neighbouring products of x and w."""
    builder = code.builder
    if LANES == 16 and has("avx512vnni"):
        pairs = builder.bitcast(x, INTS), builder.bitcast(w, INTS)
        return code.call("llvm.x86.avx512.vpdpwssd.512", INTS, total, *pairs)
    name = "llvm.x86.avx512.pmaddw.d.512" if LANES == 16 else "llvm.x86.avx2.pmadd.wd"
    return builder.add(total, code.call(name, INTS, x, w))


def _sums_of_lanes(code: Code, totals: list[Any]) -> Any:
    """The four sums of four int32 vectors as float32, added up in an order of its own making."""
    a, b, c, d = (code.builder.sitofp(total, FLOATS) for total in totals)
    ab, cd = _add_pairs(code, a, b, 1), _add_pairs(code, c, d, 1)
    total, width = _add_pairs(code, ab, cd, 2), LANES
    while width > 4:
        width //= 2
        low, high = (_shuffled(code, total, total, range(i, i + width)) for i in (0, width))
        total = code.builder.fadd(low, high)
    return total


def _add_pairs(code: Code, a: Any, b: Any, size: int) -> Any:
    """In every 128 bits of two vectors: their parts of `size` lanes in turn, the lower half plus
    the upper."""

    def half(first: int) -> list[int]:
        return [
            vector + start + first + part + lane
            for start in range(0, LANES, 4)
            for part in range(0, 2, size)
            for vector in (0, LANES)
            for lane in range(size)
        ]

    return code.builder.fadd(_shuffled(code, a, b, half(0)), _shuffled(code, a, b, half(2)))


def _shuffled(code: Code, a: Any, b: Any, lanes: Any) -> Any:
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
    return code.builder.shuffle_vector(a, b, mask)


_dots_of_one, _dots_of_four = _dots(1), _dots(4)
