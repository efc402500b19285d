"""What the paged layers take and give."""

from dataclasses import dataclass

from torch import Tensor

Branches = tuple[Tensor | None, Tensor | None, Tensor | None]
"""(compressed, selected, window), each [T, H, Dv], None where the branch cannot contribute."""


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries of a step: [T, H, D], those of the compressed branch perhaps not rotated."""

    q: Tensor
    q_compressed: Tensor
    scale: float
    memory: tuple[Tensor, Tensor] | None = None
    """Learned compressed tokens ([kv_heads, m, D], [kv_heads, m, Dv])."""

    def part(self, start: int, stop: int) -> "Queries":
        """Queries [start, stop) of the step."""
        return Queries(self.q[start:stop], self.q_compressed[start:stop], self.scale, self.memory)
