"""What keeps threads in compiled code together: a barrier, and work taken piece by piece."""

from typing import Any

from numba import types
from numba.extending import intrinsic

from nsa_serve.model.compiled.jit import Indices, compiled
from nsa_serve.model.compiled.vectors import I32, I64, Code, writes

_SPINS = 4096
"""Looks at the counter before others may have the core."""


@compiled
def wait_for_all(counter: Indices, target: int) -> None:
    """Everyone adds one to the counter, which only grows, and waits until it is at `target`."""
    _add_one(counter)
    spins = 0
    while _read(counter) < target:
        spins += 1
        if spins > _SPINS:
            _give_way()


@intrinsic
def take(typing_context: Any, taken: Any, index: Any) -> Any:
    """The number of the next piece of a phase of the work: taken[index], which grows by one."""
    return types.int64(taken, types.int64), writes(_write_take)


def _write_take(code: Code, taken: Any, index: Any) -> Any:
    place = code.at(code.data(0), code.builder.mul(index, I64(8)))
    place = code.builder.bitcast(place, I64.as_pointer())
    return code.builder.atomic_rmw("add", place, I64(1), "seq_cst")


@intrinsic
def _add_one(typing_context: Any, counter: Any) -> Any:
    return types.void(counter), writes(_write_add_one)


def _write_add_one(code: Code, counter: Any) -> None:
    place = code.builder.bitcast(code.data(0), I64.as_pointer())
    code.builder.atomic_rmw("add", place, I64(1), "seq_cst")


@intrinsic
def _read(typing_context: Any, counter: Any) -> Any:
    return types.int64(counter), writes(_write_read)


def _write_read(code: Code, counter: Any) -> Any:
    place = code.builder.bitcast(code.data(0), I64.as_pointer())
    return code.builder.load_atomic(place, "seq_cst", 8)


@intrinsic
def _give_way(typing_context: Any) -> Any:
    return types.void(), writes(lambda code: code.call("sched_yield", I32) and None)
