"""Loops that a CPU step runs between its matrix products, compiled by numba where it is installed.

A decode step of a small model is some four thousand tensor operations of a few microseconds each;
one of these loops does the work of a dozen. The same in torch stands beside each use, runs without
numba, and is what the loops are tested against.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

try:
    from numba import njit
except ImportError:  # the extra `cpu` brings it
    njit = None

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.int8]

LEVELS = np.float32(127.0)
"""Steps of an int8 plane on each side of zero."""
LOW = np.float32(254.0)
"""Steps of the low plane in one step of the high plane."""
SMALLEST = np.float32(1e-30)
"""Rows whose largest magnitude is below count as zero: one over it must stay finite."""
_ROUND = np.float32(1.5 * 2**23)
"""Adding and subtracting it rounds a small float32 to the nearest integer, ties to even."""
_MAGNITUDE = np.int32(0x7FFFFFFF)
"""All but the sign bit: as integers, magnitudes order as floats do, NaN above all."""


INSTALLED = njit is not None


def usable(x: Tensor) -> bool:
    """Whether the loops can be used on x: numba is there, and x is plain float32 on a CPU."""
    return INSTALLED and x.dtype is torch.float32 and x.is_cpu and not torch.is_grad_enabled()


def split_planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, in] → (planes [2, T, in] int8, magnitude [T, 1])."""
    values = x.contiguous().numpy()
    planes = np.empty((2, *values.shape), np.int8)
    magnitude = np.empty((len(values), 1), np.float32)
    _split_planes(
        values,
        values.view(np.int32),
        planes,
        magnitude,
        magnitude.view(np.int32),
    )
    return torch.from_numpy(planes), torch.from_numpy(magnitude)


def scaled_sum(products: Tensor, scale: Floats, magnitude: Tensor) -> Tensor:
    """products [2·T, out] int32, the high planes' first, scale [out], magnitude [T, 1]
    → (LOW · high + low) · scale · magnitude [T, out]."""
    sums = products.numpy()
    out = np.empty((len(sums) // 2, sums.shape[1]), np.float32)
    _scaled_sum(sums, scale, magnitude.numpy(), out)
    return torch.from_numpy(out)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., dim], contiguous in its last dimension → x / rms(x) · weight."""
    values = x.reshape(-1, x.shape[-1]).numpy()
    out = np.empty(values.shape, np.float32)
    _rms_norm(values, weight.numpy(), np.float32(eps), out)
    return torch.from_numpy(out).view(x.shape)


def kept(function: Any, **options: Any) -> Any:
    """A compiled function that numba keeps on disk: beside its source, or else in the user's cache
    folder. Where neither can be written it is compiled in every process."""
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no place
        return njit(**options)(function)


def _compiled(function: Any) -> Any:
    """Sums may be reordered, which vectors need; nothing is assumed about NaN."""
    if njit is None:
        return function
    return kept(function, fastmath={"reassoc", "contract"}, nogil=True)


@_compiled
def _split_planes(
    x: Floats,
    bits: Ints,
    planes: Bytes,
    magnitude: Floats,
    magnitude_bits: Ints,
) -> None:
    rows, width = x.shape
    for t in range(rows):
        largest = np.int32(0)
        for k in range(width):
            largest = max(largest, bits[t, k] & _MAGNITUDE)
        magnitude_bits[t, 0] = largest
        if magnitude[t, 0] < SMALLEST:
            magnitude[t, 0] = SMALLEST
        factor = LEVELS / magnitude[t, 0]
        for k in range(width):
            scaled = x[t, k] * factor
            high = (scaled + _ROUND) - _ROUND
            rest = ((scaled - high) * LOW + _ROUND) - _ROUND
            planes[0, t, k] = np.int8(high)
            planes[1, t, k] = np.int8(rest)


@_compiled
def _scaled_sum(products: Ints, scale: Floats, magnitude: Floats, out: Floats) -> None:
    rows, width = out.shape
    for t in range(rows):
        size = magnitude[t, 0]
        for n in range(width):
            high = np.float32(products[t, n])
            low = np.float32(products[rows + t, n])
            out[t, n] = (high * LOW + low) * scale[n] * size


@_compiled
def _rms_norm(x: Floats, weight: Floats, eps: np.float32, out: Floats) -> None:
    rows, width = x.shape
    for t in range(rows):
        square = np.float32(0.0)
        for k in range(width):
            square += x[t, k] * x[t, k]
        scale = np.float32(1.0) / np.sqrt(square / np.float32(width) + eps)
        for k in range(width):
            out[t, k] = x[t, k] * scale * weight[k]
