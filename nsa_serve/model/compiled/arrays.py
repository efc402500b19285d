"""Arrays as compiled code sees them: at an address, or without being counted."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def array_at(typing_context: Any, address: Any, like: Any) -> Any:
    """The array that starts at an address and is shaped as `like`."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        make = context.make_array(signature.args[1])
        given, made = make(context, builder, args[1]), make(context, builder)
        context.populate_array(
            made,
            data=builder.inttoptr(args[0], given.data.type),
            shape=given.shape,
            strides=given.strides,
            itemsize=given.itemsize,
            meminfo=None,
        )
        return made._getvalue()

    return like(types.int64, like), codegen


@intrinsic
def borrowed(typing_context: Any, value: Any) -> Any:
    """An array, or a named tuple of such, whose slices count no references: counting is atomic and
    slices are many. What was given must outlive it, as arguments do; see `kept_until_here`."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _borrow(context, builder, signature.args[0], args[0])

    return value(value), codegen


def _borrow(context: Any, builder: ir.IRBuilder, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.BaseTuple):
        for i, part in enumerate(kind):
            part_of_it = _borrow(context, builder, part, builder.extract_value(value, i))
            value = builder.insert_value(value, part_of_it, i)
    elif isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = ir.Constant(array.meminfo.type, None)
        value = array._getvalue()
    return value


@intrinsic
def kept_until_here(typing_context: Any, value: Any) -> Any:
    """Uses a local array or named tuple, which numba frees after its last use."""
    return types.void(value), lambda context, builder, *_: context.get_dummy_value()
