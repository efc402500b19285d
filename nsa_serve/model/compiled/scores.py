"""One query vector's attention arithmetic: up to `LANES` queries of one kv head, a lane each.

Scores are [keys, lanes], so that everything between the two products is the same instruction for
all queries; and whatever a lane adds up, it adds key by key and term by term, in the order of the
sequence. So a query gets the same bits whichever queries share its vector, and none at all.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from nsa_serve.model.compiled.jit import Floats, compiled
from nsa_serve.model.compiled.vectors import F32, FLOATS, I64, LANES, Code, constant, writes

KEYS = 16
"""Keys that are scored at once; scores need as many spare rows."""
_UNROLLED = 4
_LINE = 4 * LANES
_QUERIES = 4
_WIDE = 4


@intrinsic
def score_keys(
    typing_context: Any, queries: Any, keys: Any, first: Any, count: Any, scores: Any, row: Any
) -> Any:
    """scores[row + j] = queries [D, lanes] · keys[first + j] [D], for j < count; up to 15 rows
    behind are overwritten."""
    index = types.int64
    signature = types.void(queries, keys, index, index, scores, index)
    return signature, writes(_score_keys)


def _score_keys(
    code: Code, _queries: Any, _keys: Any, first: Any, count: Any, _scores: Any, row: Any
) -> None:
    builder = code.builder
    queries, keys, scores = code.data(0), code.data(1), code.data(4)
    dim = code.extent(0, 0)
    last = builder.sub(count, I64(1))
    totals = code.variables([constant(FLOATS, 0.0)] * KEYS)

    def block(index: Any) -> None:
        start = builder.mul(index, I64(KEYS))
        lines = []
        for i in range(KEYS):
            key = builder.add(start, I64(i))
            key = builder.select(builder.icmp_signed("<", key, last), key, last)
            line = builder.mul(builder.add(first, key), dim)
            lines.append(code.at(keys, builder.mul(line, I64(4))))
        for total in totals:
            builder.store(constant(FLOATS, 0.0), total)

        def terms(index: Any) -> None:
            for u in range(_UNROLLED):
                d = builder.add(builder.mul(index, I64(_UNROLLED)), I64(u))
                query = code.load(code.at(queries, builder.mul(d, I64(_LINE))))
                for total, line in zip(totals, lines, strict=True):
                    key = code.spread(code.load(code.at(line, builder.mul(d, I64(4))), F32))
                    builder.store(code.fma(query, key, builder.load(total)), total)

        code.loop(builder.udiv(dim, I64(_UNROLLED)), terms)
        for i, total in enumerate(totals):
            place = builder.add(builder.add(row, start), I64(i))
            code.store(builder.load(total), code.at(scores, builder.mul(place, I64(_LINE))))

    blocks = builder.udiv(builder.add(count, I64(KEYS - 1)), I64(KEYS))
    code.loop(blocks, block)


@intrinsic
def softmax(typing_context: Any, scores: Any, count: Any, scale: Any, shares: Any) -> Any:
    """scores [count, lanes] → e^(scale · (score − the lane's largest)), and shares [lanes]: one
    over their sum, or 0 for lanes that see no key, whose scores are all −∞."""
    return types.void(scores, types.int64, types.float32, shares), writes(_softmax)


def _softmax(code: Code, _scores: Any, count: Any, scale: Any, _shares: Any) -> None:
    builder, scale = code.builder, code.spread(scale)
    scores = code.data(0)
    shift = largest(code, scores, count)
    (total,) = code.variables([constant(FLOATS, 0.0)])

    def weigh(index: Any) -> None:
        place = code.at(scores, builder.mul(index, I64(_LINE)))
        weight = code.exp(builder.fmul(builder.fsub(code.load(place), shift), scale))
        code.store(weight, place)
        builder.store(builder.fadd(builder.load(total), weight), total)

    code.loop(count, weigh)
    store_shares(code, builder.load(total), code.data(3))


def largest(code: Code, scores: Any, count: Any) -> Any:
    """Of each lane of `count` vectors; 0 where all are −∞."""
    builder, lowest = code.builder, constant(FLOATS, float("-inf"))
    (found,) = code.variables([lowest])

    def find(index: Any) -> None:
        score = code.load(code.at(scores, builder.mul(index, I64(_LINE))))
        builder.store(code.larger(builder.load(found), score), found)

    code.loop(count, find)
    value = builder.load(found)
    none = builder.fcmp_unordered("==", value, lowest)
    return builder.select(none, constant(FLOATS, 0.0), value)


def store_shares(code: Code, sums: Any, shares: Any) -> None:
    """One over each lane's sum of weights, or 0."""
    zero = constant(FLOATS, 0.0)
    share = code.builder.fdiv(constant(FLOATS, 1.0), sums)
    empty = code.builder.fcmp_ordered("==", sums, zero)
    code.store(code.builder.select(empty, zero, share), shares)


@intrinsic
def _add_wide(
    typing_context: Any, weights: Any, row: Any, values: Any, first: Any, count: Any, lane: Any,
    column: Any, out: Any,
) -> Any:  # fmt: skip
    index = types.int64
    signature = types.void(weights, index, values, index, index, index, index, out)
    return signature, writes(lambda code, *args: _add_values(code, _WIDE, *args))


@intrinsic
def _add_narrow(
    typing_context: Any, weights: Any, row: Any, values: Any, first: Any, count: Any, lane: Any,
    column: Any, out: Any,
) -> Any:  # fmt: skip
    index = types.int64
    signature = types.void(weights, index, values, index, index, index, index, out)
    return signature, writes(lambda code, *args: _add_values(code, 1, *args))


def _add_values(
    code: Code, width: int, _weights: Any, row: Any, _values: Any, first: Any, count: Any,
    lane: Any, column: Any, _out: Any,
) -> None:  # fmt: skip
    """out[lane + i, column …] += Σ weights[row + j, lane + i] · values[first + j, column …] for
    four lanes and `width` vectors of columns."""
    builder = code.builder
    dim = code.extent(2, 1)

    def place(pointer: Any, line: Any, length: Any, at: Any) -> Any:
        return code.at(pointer, builder.mul(builder.add(builder.mul(line, length), at), I64(4)))

    outs = [
        code.at(place(code.data(7), builder.add(lane, I64(i)), dim, column), I64(_LINE * w))
        for i in range(_QUERIES)
        for w in range(width)
    ]
    totals = code.variables([code.load(out) for out in outs])

    def key(index: Any) -> None:
        weights = place(code.data(0), builder.add(row, index), I64(LANES), lane)
        line = place(code.data(2), builder.add(first, index), dim, column)
        values = [code.load(code.at(line, I64(_LINE * w))) for w in range(width)]
        for i in range(_QUERIES):
            weight = code.spread(code.load(code.at(weights, I64(4 * i)), F32))
            for total, value in zip(totals[i * width : (i + 1) * width], values, strict=True):
                builder.store(code.fma(weight, value, builder.load(total)), total)

    code.loop(count, key)
    for out, total in zip(outs, totals, strict=True):
        code.store(builder.load(total), out)


@compiled
def add_values(
    weights: Floats, row: int, values: Floats, first: int, count: int, num_lanes: int, out: Floats
) -> None:
    """out[i] [Dv] += Σ weights[row + j, i] · values[first + j] for j < count and lanes i <
    num_lanes, rounded up to fours."""
    dim = values.shape[1]
    wide = _WIDE * LANES
    for lane in range(0, num_lanes, _QUERIES):
        column = 0
        while column + wide <= dim:
            _add_wide(weights, row, values, first, count, lane, column, out)
            column += wide
        while column < dim:
            _add_narrow(weights, row, values, first, count, lane, column, out)
            column += LANES
