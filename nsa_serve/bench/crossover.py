"""From which context on NSA is faster than dense attention."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec


class Crossover(msgspec.Struct, frozen=True, kw_only=True):
    """Of one batch size; lengths in tokens."""

    batch: int
    faster: Literal["nsa", "dense", "from"]
    """NSA at every measured context, dense at every one, or NSA from `context` on."""
    context: float | None = None


def crossover(
    batch: int, contexts: Sequence[int], nsa: Sequence[float], dense: Sequence[float]
) -> Crossover:
    """The last place where the times cross, on straight lines between the logarithms of the
    measured points; contexts ascend."""
    gains = [math.log(d / n) for n, d in zip(nsa, dense, strict=True)]
    losing = [i for i, gain in enumerate(gains) if gain < 0]
    if not losing:
        return Crossover(batch=batch, faster="nsa")
    last = losing[-1]
    if last == len(gains) - 1:
        return Crossover(batch=batch, faster="dense")
    low, high = math.log(contexts[last]), math.log(contexts[last + 1])
    share = gains[last] / (gains[last] - gains[last + 1])
    return Crossover(batch=batch, faster="from", context=math.exp(low + share * (high - low)))
