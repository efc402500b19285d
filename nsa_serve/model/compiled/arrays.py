"""Arrays at addresses, as compiled code sees them."""

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
