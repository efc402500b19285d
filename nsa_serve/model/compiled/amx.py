"""Matrix products by AMX, the tile unit of newer Intel processors: 16 × 64 by 64 × 16 int8 with
int32 sums in one instruction.

A row of activations is two int8 planes, x ≈ magnitude · (254 · high + low) / 32258. Eight rows fill
a tile: their high planes its upper half, their low planes the lower. So one pass over the weights
multiplies both, and all sums are exact: a row's result depends on nothing but the row.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nsa_serve.model import fused
from nsa_serve.model.compiled.jit import Bytes, Floats, compiled
from nsa_serve.model.compiled.rows import magnitude_of, write_planes
from nsa_serve.model.compiled.vectors import (
    FLOATS,
    I8,
    I64,
    INTS,
    LANES,
    Code,
    constant,
    has,
    writes,
)

TERMS = 64
"""Lengths of rows must be multiples of it."""
MAX_TERMS = 2**31 // 127**2
ROWS = 8
"""Rows of activations in a tile."""
OUTPUTS = 32
"""Outputs that are computed at once: two tiles."""

_TILE = 1024
_LINE = 64
_HIGH_0, _HIGH_1 = 4, 5
"""Tile registers: 0 to 3 are sums, 4 and 5 activations, 6 and 7 weights."""
_WEIGHTS = 6


def available() -> bool:
    """Whether this processor has tiles and the kernel lets this process use them."""
    return has("amx-int8") and has("avx512bw") and torch.cpu._init_amx()


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] int8 → [out / 32, in / 64, 2, 16, 64], each tile the way the unit wants weights:
    four terms of an output side by side, then the same terms of the next output."""
    outputs, terms = weight.shape
    parts = weight.view(outputs // OUTPUTS, 2, 16, terms // TERMS, 16, 4)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(outputs // OUTPUTS, terms // TERMS, 2, 16, TERMS)


@compiled
def empty_rows(count: int, length: int) -> Bytes:
    """Room for activations: [count / 8, length / 64, 16, 64]."""
    return np.zeros((-(-count // ROWS), length // TERMS, 2 * ROWS, TERMS), np.int8)


@compiled
def round_row(x: Floats, rows: Bytes, row: int) -> np.float32:
    """Put x [length] into a row; returns its magnitude, NaN if it is not finite."""
    magnitude = magnitude_of(x)
    _round(x, fused.LEVELS / magnitude, rows[row // ROWS], row % ROWS)
    return magnitude


@intrinsic
def _round(typing_context: Any, x: Any, factor: Any, tiles: Any, place: Any) -> Any:
    return types.void(x, types.float32, tiles, types.int64), writes(_write_round)


def _write_round(code: Code, _x: Any, factor: Any, _tiles: Any, place: Any) -> None:
    builder, x, factor = code.builder, code.data(0), code.spread(factor)
    tiles = code.at(code.data(2), builder.mul(place, I64(_LINE)))
    bytes_of = ir.VectorType(I8, LANES)

    def tile(index: Any) -> None:
        source = code.at(x, builder.mul(index, I64(4 * TERMS)))
        target = code.at(tiles, builder.mul(index, I64(_TILE)))
        for at in range(0, TERMS, LANES):
            high, low = write_planes(code, code.load(code.at(source, I64(4 * at))), factor)
            code.store(builder.trunc(high, bytes_of), code.at(target, I64(at)))
            code.store(builder.trunc(low, bytes_of), code.at(target, I64(_LINE * ROWS + at)))

    code.loop(code.extent(2, 0), tile)


@intrinsic
def start(typing_context: Any) -> Any:
    """Give this thread its tiles. Between here and `stop` nothing else may use them."""
    return types.void(), writes(_start)


def _start(code: Code) -> None:
    config = bytearray(_LINE)
    config[0] = 1  # the only palette
    for tile in range(8):
        config[16 + 2 * tile] = _LINE  # bytes of a row
        config[48 + tile] = 16  # rows
    kind = ir.ArrayType(I8, _LINE)
    (place,) = code.variables([ir.Constant(kind, config)])
    code.call("llvm.x86.ldtilecfg", ir.VoidType(), code.builder.bitcast(place, I8.as_pointer()))


@intrinsic
def stop(typing_context: Any) -> Any:
    """Give the tiles back."""
    return types.void(), writes(
        lambda code: code.call("llvm.x86.tilerelease", ir.VoidType()) and None
    )


@intrinsic
def _multiply_one(
    typing_context: Any, rows: Any, block: Any, weight: Any, n: Any, sums: Any
) -> Any:
    signature = types.void(rows, types.int64, weight, types.int64, sums)
    return signature, writes(lambda code, *args: _multiply(code, 1, *args))


@intrinsic
def _multiply_two(
    typing_context: Any, rows: Any, block: Any, weight: Any, n: Any, sums: Any
) -> Any:
    signature = types.void(rows, types.int64, weight, types.int64, sums)
    return signature, writes(lambda code, *args: _multiply(code, 2, *args))


def _multiply(
    code: Code, num_blocks: int, _rows: Any, block: Any, _weight: Any, n: Any, _sums: Any
) -> None:
    """Sums of one block or two blocks of eight rows by 32 outputs."""
    builder, nothing = code.builder, ir.VoidType()
    steps = code.extent(0, 1)
    size = builder.mul(steps, I64(_TILE))
    activations = code.at(code.data(0), builder.mul(block, size))
    weights = code.at(code.data(2), builder.mul(n, builder.mul(size, I64(2))))
    planes = code.variables([ir.Constant(ir.ArrayType(ir.ArrayType(I8, _TILE), 4), None)])[0]
    planes = builder.bitcast(planes, I8.as_pointer())
    for tile in range(2 * num_blocks):
        code.call("llvm.x86.tilezero", nothing, I8(tile))

    def step(index: Any) -> None:
        offset = builder.mul(index, I64(_TILE))
        for i in range(num_blocks):
            place = code.at(activations, builder.add(offset, builder.mul(I64(i), size)))
            code.call("llvm.x86.tileloadd64", nothing, I8(_HIGH_0 + i), place, I64(_LINE))
        for j in range(2):
            place = code.at(weights, builder.add(builder.mul(offset, I64(2)), I64(_TILE * j)))
            code.call("llvm.x86.tileloadd64", nothing, I8(_WEIGHTS + j), place, I64(_LINE))
            for i in range(num_blocks):
                tiles = I8(2 * i + j), I8(_HIGH_0 + i), I8(_WEIGHTS + j)
                code.call("llvm.x86.tdpbssd", nothing, *tiles)

    code.loop(steps, step)
    for tile in range(2 * num_blocks):
        place = code.at(planes, I64(_TILE * tile))
        code.call("llvm.x86.tilestored64", nothing, I8(tile), place, I64(_LINE))
    out = code.data(4)
    for i in range(num_blocks):

        def join(row: Any, i: int = i) -> None:
            target = code.at(out, builder.mul(builder.add(row, I64(ROWS * i)), I64(4 * OUTPUTS)))
            for j in range(2):
                place = code.at(
                    planes, builder.add(builder.mul(row, I64(_LINE)), I64(_TILE * (2 * i + j)))
                )
                high = builder.sitofp(code.load(place, INTS), FLOATS)
                low = builder.sitofp(code.load(code.at(place, I64(_LINE * ROWS)), INTS), FLOATS)
                code.store(
                    code.fma(high, constant(FLOATS, float(fused.LOW)), low),
                    code.at(target, I64(_LINE * j)),
                )

        code.loop(I64(ROWS), join)


@compiled
def multiply(rows: Bytes, first: int, count: int, weight: Bytes, n: int, sums: Floats) -> None:
    """sums[i] [16, 32] of `count` ≤ 16 rows from `first`, a multiple of 8, on, times the outputs
    of block n of weight [out / 32, in / 64, 2, 16, 64]."""
    if count > ROWS:
        _multiply_two(rows, first // ROWS, weight, n, sums)
    else:
        _multiply_one(rows, first // ROWS, weight, n, sums)
