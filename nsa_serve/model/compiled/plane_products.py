"""Attention's two products by AMX, of tiles of planes, and the softmax between them."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nsa_serve.model.compiled.jit import Bytes, Floats, compiled
from nsa_serve.model.compiled.planes import BLOCK, DIM, HALF, LINE, TILE, split, store_planes
from nsa_serve.model.compiled.scores import largest, store_shares
from nsa_serve.model.compiled.vectors import FLOATS, I8, I64, INTS, LANES, Code, constant, writes

_WIDE = 4
"""Vectors of columns whose sums are in tiles at once."""
_NOTHING = ir.VoidType()


@intrinsic
def score_block(
    typing_context: Any, queries: Any, planes: Any, index: Any, scores: Any, row: Any
) -> Any:
    """scores[row + j] = queries · key j of block `index`, for all 32; queries as `put_queries`
    makes them."""
    signature = types.void(queries, planes, types.int64, scores, types.int64)
    return signature, writes(_score_block)


def _score_block(
    code: Code, _queries: Any, _planes: Any, index: Any, _scores: Any, row: Any
) -> None:
    builder = code.builder
    size = code.extent(1, 1)
    steps = builder.udiv(size, I64(4 * BLOCK * DIM))
    keys = code.at(code.data(1), builder.mul(index, size))
    halves = keys, code.at(keys, builder.mul(steps, I64(2 * TILE)))
    for tile in range(2):
        code.call("llvm.x86.tilezero", _NOTHING, I8(tile))

    def step(s: Any) -> None:
        offset = builder.mul(s, I64(2 * TILE))
        _load_planes(code, 6, code.at(code.data(0), offset))
        for tile, half in enumerate(halves):
            own = 2 + 2 * tile
            _load_planes(code, own, code.at(half, offset))
            for a, b in ((own, 6), (own + 1, 6), (own, 7)):
                code.call("llvm.x86.tdpbf16ps", _NOTHING, I8(tile), I8(a), I8(b))

    code.loop(steps, step)
    out = code.at(code.data(3), builder.mul(row, I64(LINE)))
    for tile in range(2):
        place = code.at(out, I64(TILE * tile))
        code.call("llvm.x86.tilestored64", _NOTHING, I8(tile), place, I64(LINE))


def _load_planes(code: Code, first: int, place: Any) -> None:
    """Two tiles that lie one behind the other into registers `first` and the next."""
    for i in range(2):
        own = code.at(place, I64(TILE * i))
        code.call("llvm.x86.tileloadd64", _NOTHING, I8(first + i), own, I64(LINE))


@intrinsic
def weigh(typing_context: Any, scores: Any, count: Any, scale: Any, shares: Any) -> Any:
    """As `scores.softmax`, for `count` scores, a multiple of 32, that become tiles of weights, in
    their place."""
    return types.void(scores, types.int64, types.float32, shares), writes(_weigh)


def _weigh(code: Code, _scores: Any, count: Any, scale: Any, _shares: Any) -> None:
    builder, scores = code.builder, code.data(0)
    scale = code.spread(scale)
    shift = largest(code, scores, count)
    (total,) = code.variables([constant(FLOATS, 0.0)])

    def block(index: Any) -> None:
        lines = code.at(scores, builder.mul(index, I64(2 * TILE)))

        def pair(r: Any) -> None:
            first = code.at(lines, builder.mul(r, I64(LINE)))
            both = []
            for i in (0, HALF):
                score = code.load(code.at(first, I64(LINE * i)))
                both.append(code.exp(builder.fmul(builder.fsub(score, shift), scale)))
                builder.store(builder.fadd(builder.load(total), both[-1]), total)
            store_planes(code, split(code, *both), lines, r)

        code.loop(I64(HALF), pair)
        for plane in range(2):
            places = [code.at(lines, I64(TILE * plane + LINE * i)) for i in range(HALF)]
            turned = _transposed(code, [code.load(place) for place in places])
            for place, value in zip(places, turned, strict=True):
                code.store(value, place)

    code.loop(builder.udiv(count, I64(BLOCK)), block)
    store_shares(code, builder.load(total), code.data(3))


def _transposed(code: Code, lines: list[Any]) -> list[Any]:
    """16 vectors of 16 lanes: in four rounds, squares of growing size change places."""
    width = 1
    while width < LANES:
        lanes = range(LANES)
        upper = [LANES + lane - width if lane & width else lane for lane in lanes]
        lower = [LANES + lane if lane & width else lane + width for lane in lanes]
        before, lines = lines, list(lines)
        for i in lanes:
            if not i & width:
                pair = before[i], before[i + width]
                lines[i], lines[i + width] = (
                    code.builder.shuffle_vector(*pair, ir.Constant(INTS, mask))
                    for mask in (upper, lower)
                )
        width *= 2
    return lines


@compiled
def add_blocks(
    weights: Floats, row: int, planes: Bytes, index: int, count: int, out: Floats
) -> None:
    """out [16, Dv] += Σ weights[row + j] · value j of the 32 · count ones from block `index` on,
    weights as `weigh` leaves them."""
    column, columns = 0, out.shape[1] // LANES
    while column + _WIDE <= columns:
        _add_wide(weights, row, planes, index, count, column, out)
        column += _WIDE
    while column < columns:
        _add_narrow(weights, row, planes, index, count, column, out)
        column += 1


def _adder(width: int) -> Any:
    """A function of (weights, row, planes, index, count, column, out) for `width` vectors of
    columns from vector `column` on."""

    @intrinsic
    def adder(
        typing_context: Any, weights: Any, row: Any, planes: Any, index: Any, count: Any,
        column: Any, out: Any,
    ) -> Any:  # fmt: skip
        number = types.int64
        signature = types.void(weights, number, planes, number, number, number, out)
        return signature, writes(lambda code, *args: _write_adder(code, width, *args))

    return adder


def _write_adder(
    code: Code, width: int, _weights: Any, row: Any, _planes: Any, index: Any, count: Any,
    column: Any, _out: Any,
) -> None:  # fmt: skip
    builder = code.builder
    weights = code.at(code.data(0), builder.mul(row, I64(LINE)))
    size = code.extent(2, 1)
    values = code.at(code.data(2), builder.mul(index, size))
    values = code.at(values, builder.mul(column, I64(2 * TILE)))
    stride = builder.mul(code.extent(6, 1), I64(4))
    out = code.at(code.data(6), builder.mul(column, I64(LINE)))
    places = [code.at(out, I64(LINE * tile)) for tile in range(width)]
    for tile, place in enumerate(places):
        code.call("llvm.x86.tileloadd64", _NOTHING, I8(tile), place, stride)

    def block(i: Any) -> None:
        _load_planes(code, 4, code.at(weights, builder.mul(i, I64(2 * TILE))))
        own = code.at(values, builder.mul(i, size))
        for tile in range(width):
            _load_planes(code, 6, code.at(own, I64(2 * TILE * tile)))
            for a, b in ((4, 6), (5, 6), (4, 7)):
                code.call("llvm.x86.tdpbf16ps", _NOTHING, I8(tile), I8(a), I8(b))

    code.loop(count, block)
    for tile, place in enumerate(places):
        code.call("llvm.x86.tilestored64", _NOTHING, I8(tile), place, stride)


_add_wide, _add_narrow = _adder(_WIDE), _adder(1)
