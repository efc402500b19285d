"""Attention's two products by AMX, in bfloat16 planes that together are as good as 16 bits.

A float32 is a high plane (8 significant bits) plus a low plane (the next 8), and
x · y ≈ high · high + high · low + low · high, three products of tiles whose float32 sums the unit
adds in an order of its own: by 32 terms. Whatever adds keys therefore goes by blocks of 32 that
begin at multiples of 32, with weights of zero where a query does not see a key. So a query gets the
same bits whichever queries share its tile.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nsa_serve.model.compiled import products
from nsa_serve.model.compiled.jit import compiled
from nsa_serve.model.compiled.vectors import (
    FLOATS,
    I64,
    INTS,
    LANES,
    Code,
    constant,
    has,
    writes,
)

USES_TILES = products.USES_AMX and has("amx-bf16") and LANES == 16
BLOCK = 32
"""Keys that are added up at once."""
DIM = 32
"""Head dimensions must be multiples of it, those of values of half of it."""
HALF = 16
TILE = 1024
LINE = 64
_NOTHING = ir.VoidType()
_UPPER = -65536
"""The upper half of 32 bits."""
_WIDE = 4
"""Vectors of columns whose sums are in tiles at once."""


@compiled
def num_bytes(dim: int) -> int:
    """Of a block of keys or values."""
    return 4 * BLOCK * dim


def split(code: Code, a: Any, b: Any) -> tuple[Any, Any]:
    """Two vectors of floats → their high planes side by side in each lane, and their low planes."""
    builder = code.builder
    highs = [_upper_half(code, x) for x in (a, b)]
    rests = [
        builder.fsub(x, builder.bitcast(high, FLOATS))
        for x, high in zip((a, b), highs, strict=True)
    ]
    return _side_by_side(code, *highs), _side_by_side(code, *(_upper_half(code, x) for x in rests))


def _upper_half(code: Code, x: Any) -> Any:
    """Rounded to the nearest, the lower half zero."""
    bits = code.builder.add(code.builder.bitcast(x, INTS), constant(INTS, 1 << 15))
    return code.builder.and_(bits, constant(INTS, _UPPER))


def _side_by_side(code: Code, a: Any, b: Any) -> Any:
    return code.builder.or_(code.builder.lshr(a, constant(INTS, 16)), b)


@intrinsic
def put_queries(typing_context: Any, queries: Any, out: Any) -> Any:
    """queries [D, 16] into tiles, out [64 · D] int8."""
    return types.void(queries, out), writes(_put_queries)


def _put_queries(code: Code, _queries: Any, _out: Any) -> None:
    builder, source, out = code.builder, code.data(0), code.data(1)

    def step(s: Any) -> None:
        lines = code.at(source, builder.mul(s, I64(DIM * LINE)))
        tiles = code.at(out, builder.mul(s, I64(2 * TILE)))

        def pair(r: Any) -> None:
            first = code.at(lines, builder.mul(r, I64(LINE)))
            both = code.load(first), code.load(code.at(first, I64(HALF * LINE)))
            store_planes(code, split(code, *both), tiles, r)

        code.loop(I64(HALF), pair)

    code.loop(builder.udiv(code.extent(0, 0), I64(DIM)), step)


def store_planes(code: Code, planes: tuple[Any, Any], tiles: Any, line: Any) -> None:
    place = code.at(tiles, code.builder.mul(line, I64(LINE)))
    for plane, value in enumerate(planes):
        code.store(value, code.at(place, I64(TILE * plane)))


@intrinsic
def put_keys(
    typing_context: Any, keys: Any, first: Any, count: Any, planes: Any, index: Any
) -> Any:
    """keys[first + j] [D] for j < count into tiles, block `index` of planes [·, bytes]; zero for
    the others of 32."""
    signature = types.void(keys, types.int64, types.int64, planes, types.int64)
    return signature, writes(_put_keys)


def _put_keys(code: Code, _keys: Any, first: Any, count: Any, _planes: Any, index: Any) -> None:
    builder = code.builder
    size = builder.mul(code.extent(0, 1), I64(4))
    source = code.at(code.data(0), builder.mul(first, size))
    out = code.at(code.data(3), builder.mul(index, code.extent(3, 1)))
    steps = builder.udiv(size, I64(4 * DIM))

    def key(j: Any) -> None:
        line = _line_or_zero(code, j, count, source, size)
        half, place = builder.udiv(j, I64(HALF)), builder.urem(j, I64(HALF))
        tiles = code.at(out, builder.mul(builder.mul(half, steps), I64(2 * TILE)))

        def step(s: Any) -> None:
            offset = builder.mul(s, I64(4 * DIM))
            both = line(offset), line(builder.add(offset, I64(4 * HALF)))
            own = code.at(tiles, builder.mul(s, I64(2 * TILE)))
            store_planes(code, split(code, *both), own, place)

        code.loop(steps, step)

    code.loop(I64(BLOCK), key)


@intrinsic
def put_values(
    typing_context: Any, values: Any, first: Any, count: Any, planes: Any, index: Any
) -> Any:
    """values[first + j] [Dv] likewise."""
    signature = types.void(values, types.int64, types.int64, planes, types.int64)
    return signature, writes(_put_values)


def _put_values(code: Code, _values: Any, first: Any, count: Any, _planes: Any, index: Any) -> None:
    builder = code.builder
    size = builder.mul(code.extent(0, 1), I64(4))
    source = code.at(code.data(0), builder.mul(first, size))
    out = code.at(code.data(3), builder.mul(index, code.extent(3, 1)))

    def pair(r: Any) -> None:
        lines = [
            _line_or_zero(code, builder.add(r, I64(i)), count, source, size) for i in (0, HALF)
        ]

        def column(c: Any) -> None:
            offset = builder.mul(c, I64(LINE))
            tiles = code.at(out, builder.mul(c, I64(2 * TILE)))
            store_planes(code, split(code, *(line(offset) for line in lines)), tiles, r)

        code.loop(builder.udiv(size, I64(LINE)), column)

    code.loop(I64(HALF), pair)


def _line_or_zero(
    code: Code, index: Any, count: Any, source: Any, size: Any
) -> Callable[[Any], Any]:
    """A function of a byte offset: the vector there in line `index`, zero from line `count` on."""
    builder, zero = code.builder, constant(FLOATS, 0.0)
    there = builder.icmp_signed("<", index, count)
    line = code.at(source, builder.mul(builder.select(there, index, I64(0)), size))
    return lambda offset: builder.select(there, code.load(code.at(line, offset)), zero)
