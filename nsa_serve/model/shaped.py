"""Tensors annotated with their shapes: `Float[Tensor, "batch time hidden"]`.

The annotations are jaxtyping's where it is installed (the extra `train` brings it), and its import
hook can check them at run time. Serving needs no more than the tensor, so it does without.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
else:
    try:
        from jaxtyping import Float, Int
    except ImportError:

        class Float:
            """`Float[Tensor, "shape"]` is Tensor."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Int = Float

__all__ = ["Float", "Int"]
