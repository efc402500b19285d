"""How functions of this package are compiled, and the names of their array types."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Words = NDArray[np.int16]
Bytes = NDArray[np.int8]
Indices = NDArray[np.int64]

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract"},
}
"""Sums may be reordered, which vectors need; nothing is assumed about NaN."""


def compiled(function: Any) -> Any:
    """Compile a function as part of whatever calls it."""
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)
