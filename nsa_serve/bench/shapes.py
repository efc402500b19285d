"""The attention layers that are measured."""

import re
from dataclasses import dataclass

from nsa_kernels.spec import SparseSpec
from nsa_serve.errors import ConfigError

PAPER = SparseSpec(
    compress_block=32,
    compress_stride=16,
    select_block=64,
    num_selected=16,
    window=512,
    first_slot=1,
)
"""The lengths of the paper, shared keys and values."""
PAGE_SIZE = 64


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of one attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def scale(self) -> float:
        """Of logits."""
        return float(self.head_dim**-0.5)

    def __str__(self) -> str:
        """As `parse_heads` reads it."""
        dims = (
            [self.head_dim] if self.head_dim == self.value_dim else [self.head_dim, self.value_dim]
        )
        return "/".join(map(str, [self.num_heads, self.num_kv_heads, *dims]))


ALL_SHAPES = (
    HeadShape(64, 4, 128, 128),
    HeadShape(32, 8, 128, 128),
    HeadShape(32, 2, 128, 128),
    HeadShape(9, 3, 64, 64),
    HeadShape(64, 4, 192, 128),
)
"""The first is the default."""


def parse_heads(text: str) -> HeadShape:
    """`64/4/128`: query heads, kv heads, head dim; a fourth number is the values' dim if that
    differs. Raises ConfigError."""
    if not re.fullmatch(r"\d+(/\d+){2,3}", text):
        raise ConfigError(
            f"heads {text!r} must be HEADS/KV_HEADS/DIM or HEADS/KV_HEADS/DIM/VALUE_DIM"
        )
    num_heads, num_kv_heads, dim, *value_dim = map(int, text.split("/"))
    shape = HeadShape(num_heads, num_kv_heads, dim, value_dim[0] if value_dim else dim)
    if min(num_heads, num_kv_heads, dim, shape.value_dim) < 1 or num_heads % num_kv_heads:
        raise ConfigError(f"heads {text!r}: kv heads must divide heads, and no number be 0")
    return shape
