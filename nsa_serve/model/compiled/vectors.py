"""Vector instructions written out, where LLVM's own vectoriser finds no good code.

An intrinsic is a Python function that writes LLVM's intermediate representation; numba puts what it
writes into the functions that call it. `Code` holds the operations that the intrinsics here need.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()


def has(feature: str) -> bool:
    """Whether this CPU has an instruction set, by LLVM's name for it."""
    return bool(binding.get_host_cpu_features().get(feature))


def lanes() -> int:
    """32-bit lanes of the vectors used: 16 (AVX-512), 8 (AVX2), 0 where the CPU has neither."""
    if has("avx512bw"):
        return 16
    return 8 if has("avx2") and has("fma") else 0


LANES = lanes()
FLOATS, INTS = ir.VectorType(F32, LANES or 1), ir.VectorType(I32, LANES or 1)

_LOG2_E = 1.0 / math.log(2.0)
_LN_2_HIGH = 0.693359375
_LN_2_LOW = math.log(2.0) - _LN_2_HIGH
ROUND = 1.5 * 2**23
"""Adding it to a small float32 leaves the nearest integer, ties to even, in the low bits;
subtracting it then gives that integer as a float."""
_SERIES = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
_LOWEST = -87.0
"""Below it e^x counts as zero."""


class Code:
    """Writes instructions on vectors of `LANES` floats, or on single floats."""

    def __init__(self, context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        self.builder = builder
        self._context, self._signature, self._args = context, signature, args

    def data(self, index: int) -> Any:
        """Where the array that is argument `index` begins, as a pointer to bytes."""
        return self.builder.bitcast(self._array(index).data, I8.as_pointer())

    def extent(self, index: int, axis: int) -> Any:
        """Length of an axis of an array argument."""
        return self.builder.extract_value(self._array(index).shape, axis)

    def _array(self, index: int) -> Any:
        make = self._context.make_array(self._signature.args[index])
        return make(self._context, self.builder, self._args[index])

    def at(self, pointer: Any, num_bytes: Any) -> Any:
        """A pointer so many bytes further on."""
        return self.builder.gep(pointer, [num_bytes])

    def load(self, pointer: Any, kind: Any = None) -> Any:
        """A value of `kind`, floats by default, at any address."""
        kind = FLOATS if kind is None else kind
        value = self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value: Any, pointer: Any) -> None:
        """At any address."""
        target = self.builder.bitcast(pointer, value.type.as_pointer())
        self.builder.store(value, target).align = 1

    def spread(self, value: Any) -> Any:
        """A float in all lanes."""
        one = self.builder.insert_element(ir.Constant(FLOATS, ir.Undefined), value, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, one, zeros)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a · b + c, rounded once."""
        kind = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
        return self.call(f"llvm.fma.{kind}", a.type, a, b, c)

    def call(self, name: str, result: Any, *args: Any) -> Any:
        """One of LLVM's functions or of the C library's."""
        kind = ir.FunctionType(result, [arg.type for arg in args])
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, kind, name), args
        )

    def larger(self, a: Any, b: Any) -> Any:
        """Lane by lane."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def exp(self, x: Any) -> Any:
        """e^x to 2 units in the last place, and exactly zero below −87."""
        builder = self.builder

        def of(value: float) -> Any:
            return constant(x.type, value)

        vanishes = builder.fcmp_ordered("<", x, of(_LOWEST))
        x = builder.select(vanishes, of(_LOWEST), x)
        shifted = self.fma(x, of(_LOG2_E), of(ROUND))
        turns = builder.fsub(shifted, of(ROUND))
        rest = self.fma(turns, of(-_LN_2_LOW), self.fma(turns, of(-_LN_2_HIGH), x))
        series = of(_SERIES[0])
        for coefficient in _SERIES[1:]:
            series = self.fma(series, rest, of(coefficient))
        integers = INTS if x.type == FLOATS else I32
        exponent = builder.add(builder.bitcast(shifted, integers), constant(integers, 127))
        power = builder.bitcast(builder.shl(exponent, constant(integers, 23)), x.type)
        return builder.select(vanishes, of(0.0), builder.fmul(series, power))

    def loop(self, count: Any, body: Callable[[Any], None]) -> None:
        """body(index) for every index below `count`."""
        with cgutils.for_range(self.builder, count, intp=I64) as loop:
            body(loop.index)

    def variables(self, initial: Sequence[Any]) -> list[Any]:
        """Memory for values that change in a loop; LLVM makes registers of it."""
        made = []
        for value in initial:
            variable = cgutils.alloca_once(self.builder, value.type)
            self.builder.store(value, variable)
            made.append(variable)
        return made


def constant(kind: Any, value: float) -> ir.Constant:
    """A number of a type, or in all lanes of it."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [ir.Constant(kind.element, value)] * kind.count)
    return ir.Constant(kind, value)


def writes(write: Callable[..., Any]) -> Any:
    """The second half of an intrinsic: code that write(code, *arguments) writes and whose value,
    if there is one, it returns."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = write(Code(context, builder, signature, args), *args)
        return context.get_dummy_value() if value is None else value

    return codegen
