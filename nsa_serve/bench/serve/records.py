"""What is known of one request: when it was planned and sent, and when each token came."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import msgspec

Status = Literal["ok", "failed", "cancelled", "not sent"]
TokenCounts = Literal["token ids", "usage", "chunks", "estimated"]
"""How tokens were counted, best first: each chunk named its token ids, each chunk gave the usage so
far, a chunk was a token, or the total was known and was spread evenly over the chunks."""


class Needle(msgspec.Struct, frozen=True, kw_only=True):
    """A question with one right answer, about a fact at a place in a long text."""

    length: int
    """Tokens that the prompt was made for."""
    depth: float
    """Where the fact stands, from 0 (beginning) to 100 (end)."""
    answer: str


class Arrival(msgspec.Struct, frozen=True, array_like=True):
    """Tokens that reached the client together."""

    time: float
    """Seconds after the request was sent."""
    num_tokens: int


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request. Seconds; `planned`, `due` and `sent` count from the load's start."""

    index: int
    status: Status = "not sent"
    error: str = ""
    http_status: int | None = None
    planned: float = 0.0
    """When it should have arrived."""
    due: float = 0.0
    """When the load generator got to it: late where it cannot keep up."""
    sent: float | None = None
    """After it had its place among those in flight."""
    end: float | None = None
    """Seconds after `sent` at which the answer ended."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    max_tokens: int = 0
    """Length of the answer that was asked for."""
    cached_tokens: int = 0
    """Prompt tokens that the target found in its prefix cache, if it says."""
    token_counts: TokenCounts = "chunks"  # noqa: S105
    arrivals: list[Arrival] = []
    finish_reason: str | None = None
    text: str = ""
    needle: Needle | None = None

    @property
    def ttft(self) -> float | None:
        """From sending to the first token."""
        return self.arrivals[0].time if self.arrivals else None

    @property
    def e2el(self) -> float | None:
        """From sending to the end of the answer."""
        return self.end

    @property
    def tpot(self) -> float | None:
        """Mean time of a token after the first; None for answers of one token."""
        if self.ttft is None or self.end is None or self.output_tokens < 2:
            return None
        return (self.end - self.ttft) / (self.output_tokens - 1)

    @property
    def itls(self) -> list[float]:
        """Time of each token after the first arrival."""
        return inter_token_latencies(self.arrivals)

    @property
    def gaps(self) -> list[float]:
        """Time between arrivals, whatever number of tokens each brought: what a reader sees."""
        times = [arrival.time for arrival in self.arrivals]
        return [late - early for early, late in pairwise(times)]

    @property
    def queued(self) -> float:
        """How long it waited at the client for a place among those in flight."""
        return 0.0 if self.sent is None else self.sent - self.due

    @property
    def late(self) -> float:
        """How much later than planned the load generator got to it."""
        return max(self.due - self.planned, 0.0)

    @property
    def found(self) -> bool | None:
        """Whether the answer holds the needle; None if none was asked for or no answer came."""
        if self.needle is None or self.status != "ok":
            return None
        return self.needle.answer in self.text.replace(",", "").replace(" ", "")


def inter_token_latencies(arrivals: Sequence[Arrival]) -> list[float]:
    """One latency a token: tokens that came together share the time since the arrival before.

    Tokens beside the very first one have none, since nobody knows how it splits from the prefill.
    """
    latencies: list[float] = []
    for early, late in pairwise(arrivals):
        latencies += [(late.time - early.time) / late.num_tokens] * late.num_tokens
    return latencies


def spread_tokens(times: Sequence[float], num_tokens: int) -> list[Arrival]:
    """A known number of tokens over arrivals that do not say how many each brought, evenly.

    At least one each; so there are never more arrivals than tokens, the last ones are joined.
    """
    if not times or num_tokens < 1:
        return []
    kept = list(times[:num_tokens])
    kept[-1] = times[-1]
    each, more = divmod(num_tokens, len(kept))
    extra = {i * len(kept) // more for i in range(more)}
    return [Arrival(time, each + (i in extra)) for i, time in enumerate(kept)]
