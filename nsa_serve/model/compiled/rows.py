"""What a step does to rows between its matrix products."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from nsa_serve.model import fused
from nsa_serve.model.compiled.jit import Floats, compiled
from nsa_serve.model.compiled.vectors import (
    F32,
    FLOATS,
    I32,
    I64,
    INTS,
    LANES,
    ROUND,
    Code,
    constant,
    writes,
)

_ALL_BUT_SIGN = 0x7FFFFFFF
"""As integers, magnitudes order as floats do, infinity and NaN above all."""
_INFINITE = 0x7F800000
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)


@intrinsic
def exp(typing_context: Any, x: Any) -> Any:
    """e^x of a float32, to 2 units in the last place; 0 below −87."""
    return types.float32(types.float32), writes(lambda code, x: code.exp(x))


@intrinsic
def magnitude_of(typing_context: Any, x: Any) -> Any:
    """The largest |x| of x [K], at least `SMALLEST`; NaN if any is not finite. K is a multiple of
    the lanes."""
    return types.float32(x), writes(_write_magnitude_of)


def _write_magnitude_of(code: Code, _x: Any) -> Any:
    builder, x = code.builder, code.data(0)
    (largest,) = code.variables([constant(INTS, 0)])

    def find(index: Any) -> None:
        bits = code.load(code.at(x, builder.mul(index, I64(4 * LANES))), INTS)
        bits = builder.and_(bits, constant(INTS, _ALL_BUT_SIGN))
        largest_yet = builder.load(largest)
        larger = builder.icmp_signed(">", bits, largest_yet)
        builder.store(builder.select(larger, bits, largest_yet), largest)

    code.loop(builder.udiv(code.extent(0, 0), I64(LANES)), find)
    bits = code.call(f"llvm.vector.reduce.smax.v{LANES}i32", I32, builder.load(largest))
    value, smallest = builder.bitcast(bits, F32), constant(F32, float(fused.SMALLEST))
    value = builder.select(builder.fcmp_ordered("<", value, smallest), smallest, value)
    finite = builder.icmp_signed("<", bits, I32(_INFINITE))
    return builder.select(finite, value, constant(F32, float("nan")))


def write_planes(code: Code, x: Any, factor: Any) -> tuple[Any, Any]:
    """Integers whose low 16 bits are the two planes of a vector: x · factor ≈ high + low / 254."""
    builder, shift = code.builder, constant(FLOATS, ROUND)
    scaled = builder.fmul(x, factor)
    high = builder.fadd(scaled, shift)
    rest = builder.fsub(scaled, builder.fsub(high, shift))
    low = code.fma(rest, constant(FLOATS, float(fused.LOW)), shift)
    return builder.bitcast(high, INTS), builder.bitcast(low, INTS)


@compiled
def rms_norm(x: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    """x [K] → x / rms(x) · weight."""
    square = _ZERO
    for k in range(x.shape[0]):
        square += x[k] * x[k]
    scale = _ONE / np.sqrt(square / np.float32(x.shape[0]) + eps)
    for k in range(x.shape[0]):
        out[k] = x[k] * scale * weight[k]


@compiled
def rotate(x: Floats, cos: Floats, sin: Floats, interleaved: bool, out: Floats) -> None:
    """x [D] rotated; `sin` carries the signs."""
    half = x.shape[0] // 2
    if interleaved:
        for i in range(x.shape[0]):
            out[i] = x[i] * cos[i] + x[i ^ 1] * sin[i]
    else:
        for i in range(half):
            out[i] = x[i] * cos[i] + x[i + half] * sin[i]
            out[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half]


@compiled
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e^−x)"""
    return _ONE / (_ONE + exp(-x))
