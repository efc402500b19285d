"""How a checkpoint's tensors become a decoder's: by another name, or by a few views of theirs.

Imports no torch: recipes are tried on shapes before any data is read, and by whoever has torch.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""What a folder holds, by name; empty where only its config.json is known."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A tensor of a decoder: made of the checkpoint's `sources` by `make`, or the one it has."""

    sources: tuple[str, ...]
    make: "Callable[..., Tensor] | None" = None

    def __call__(self, *tensors: "Tensor") -> "Tensor":
        """Raises RuntimeError for shapes it is not made for."""
        return tensors[0] if self.make is None else self.make(*tensors)


def renamed(name: str) -> Recipe:
    """The tensor of that name, as it is."""
    return Recipe((name,))


class Names:
    """A table of names: the decoder's on the left, the checkpoint's on the right, without the
    `.weight` or `.bias` that both end in. `*` stands for the number of a layer."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._table = table

    def __getitem__(self, target: str) -> str | None:
        """The checkpoint's name of a decoder's tensor; None if the table has none."""
        stem, _, kind = target.rpartition(".")
        layer = re.search(r"\.(\d+)\.", stem)
        pattern = stem if layer is None else stem.replace(layer[0], ".*.", 1)
        found = self._table.get(pattern)
        if found is None:
            return None
        return f"{found if layer is None else found.replace('*', layer[1], 1)}.{kind}"


def layer_of(target: str) -> tuple[int, str]:
    """The number of a tensor's layer, and its name within the layer."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", target)
    assert match is not None, target
    return int(match[1]), match[2]


def rows(name: str, sizes: tuple[int, ...], part: int) -> Recipe:
    """One of the parts that a matrix's rows are divided into."""

    def take(whole: "Tensor") -> "Tensor":
        return whole.split(list(sizes))[part]

    return Recipe((name,), take)
