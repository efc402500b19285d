"""Linear layers on rows of activations, by whichever unit of the processor is fastest."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic

from nsa_serve.model.compiled import amx, dots
from nsa_serve.model.compiled.jit import Bytes, Floats, compiled
from nsa_serve.model.compiled.vectors import F32, FLOATS, I64, LANES, Code, constant, writes

USES_AMX = os.environ.get("NSA_SERVE_AMX") != "0" and amx.available()
"""The variable lets one do without."""
_unit: Any = amx if USES_AMX else dots
TERMS, MAX_TERMS, OUTPUTS = _unit.TERMS, _unit.MAX_TERMS, _unit.OUTPUTS
pack, empty_rows, round_row = _unit.pack, _unit.empty_rows, _unit.round_row
start, stop = _unit.start, _unit.stop
_multiply = _unit.multiply

_ROWS = 16
"""Rows that are multiplied at once."""


class Product(NamedTuple):
    """A linear layer of every decoder layer."""

    weight: Bytes
    """[layers, out / 32, …] as `pack` makes it"""
    scale_bias: Floats
    """[layers, 2, out]"""


Finish = Callable[[Code, list[Any], Any], None]
"""Writes what becomes of a row's outputs, in vectors, at a place in `out`."""


def _store(code: Code, values: list[Any], place: Any) -> None:
    for i, value in enumerate(values):
        code.store(value, code.at(place, I64(4 * LANES * i)))


def _add(code: Code, values: list[Any], place: Any) -> None:
    places = [code.at(place, I64(4 * LANES * i)) for i in range(len(values))]
    sums = [code.builder.fadd(code.load(p), v) for p, v in zip(places, values, strict=True)]
    _store(code, sums, place)


def _weigh(code: Code, values: list[Any], place: Any) -> None:
    builder, half = code.builder, len(values) // 2
    one, out = constant(FLOATS, 1.0), []
    for gate, up in zip(values[:half], values[half:], strict=True):
        power = code.exp(builder.fneg(gate))
        out.append(builder.fdiv(builder.fmul(gate, up), builder.fadd(one, power)))
    _store(code, out, place)


def _finisher(finish: Finish, width: int) -> Any:
    """A function of (sums [·, 32], count, first row, block of outputs, magnitudes, scale_bias,
    out): `finish` of the products of `count` rows and a block of outputs, of which it makes
    `width`."""

    @intrinsic
    def finisher(
        typing_context: Any, sums: Any, count: Any, row: Any, n: Any, magnitudes: Any,
        scale_bias: Any, out: Any,
    ) -> Any:  # fmt: skip
        index = types.int64
        signature = types.void(sums, index, index, index, magnitudes, scale_bias, out)
        return signature, writes(lambda code, *args: _write_finisher(code, finish, width, *args))

    return finisher


def _write_finisher(
    code: Code, finish: Finish, width: int, _sums: Any, count: Any, row: Any, n: Any, *_: Any
) -> None:
    builder = code.builder
    sums, magnitudes, scale, out = (code.data(i) for i in (0, 4, 5, 6))
    bias = code.at(scale, builder.mul(code.extent(5, 1), I64(4)))
    stride = builder.mul(code.extent(6, 1), I64(4))
    vectors = [I64(at) for at in range(0, 4 * OUTPUTS, 4 * LANES)]
    block = builder.mul(n, I64(4 * OUTPUTS))
    scales, biases = (
        [code.load(code.at(code.at(of, block), at)) for at in vectors] for of in (scale, bias)
    )

    def line(r: Any) -> None:
        index = builder.add(row, r)
        place = code.at(magnitudes, builder.mul(index, I64(4)))
        size = code.spread(code.load(place, F32))
        products = code.at(sums, builder.mul(r, I64(4 * OUTPUTS)))
        values = [
            code.fma(builder.fmul(code.load(code.at(products, at)), own_scale), size, own_bias)
            for at, own_scale, own_bias in zip(vectors, scales, biases, strict=True)
        ]
        place = code.at(out, builder.mul(index, stride))
        finish(code, values, code.at(place, builder.mul(n, I64(4 * width))))

    code.loop(count, line)


def _multiplier(finish: Finish, width: int = OUTPUTS) -> Any:
    """A function of (product, layer, rows, magnitudes [R], first, last, out [R, …]): the blocks of
    outputs [first, last) of R rounded rows, finished into `out`."""
    finisher = _finisher(finish, width)

    @compiled
    def multiplier(
        product: Product, layer: int, rows: Any, magnitudes: Floats, first: int, last: int,
        out: Floats,
    ) -> None:  # fmt: skip
        weight, scale_bias = product.weight[layer], product.scale_bias[layer]
        sums = np.empty((_ROWS, OUTPUTS), np.float32)
        for n in range(first, last):
            for row in range(0, out.shape[0], _ROWS):
                count = min(_ROWS, out.shape[0] - row)
                _multiply(rows, row, count, weight, n, sums)
                finisher(sums, count, row, n, magnitudes, scale_bias, out)

    return multiplier


multiply = _multiplier(_store)
multiply_add = _multiplier(_add)
"""Adds to what `out` holds."""
multiply_gated = _multiplier(_weigh, OUTPUTS // 2)
"""silu(gate) · up, half as many outputs: a block is 16 of the gate, then the same 16 of `up`."""
