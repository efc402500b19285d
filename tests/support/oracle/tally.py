"""Counts answers, and tells right ones from wrong ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.oracle.asks import FORBIDDEN, SELECTED, SLOT, WINDOW, Asks, Compressed
from tests.support.oracle.codes import Codes

TOLERANCE = 0.01
"""Digits are whole numbers: what is wrong is wrong by 1 at least."""


@dataclass(slots=True)
class Tally:
    """What was read so far."""

    slots: int = 0
    """Each of them is l tokens that φ has read."""
    slots_of_rows: int = 0
    """Those among them that single queries read."""
    selected: int = 0
    window: int = 0
    refused: int = 0
    """Answers of heads that asked for what they must not see."""
    empty: int = 0
    """Answers of heads that had no slot to read."""
    padding: int = 0
    """Rows that read nothing."""
    wrong: int = 0
    first_wrong: str = ""
    steps: int = 0
    mixed_steps: int = 0
    """Those with chunks."""
    aborts: int = 0
    preemptions: int = 0
    tokens_shared: int = 0
    """Prompt tokens that the prefix cache gave."""
    pages_reused: int = 0
    """Pages begun that held something else before."""

    @property
    def reads(self) -> int:
        """Slots and tokens that an answer has named."""
        return self.slots + self.selected + self.window

    def check(
        self, asks: Asks, found: Tensor, codes: Codes, phi: Compressed, num_rows: int
    ) -> int | None:
        """Count the answers found [T, H, Dv], of which the first `num_rows` queries are single.
        Returns the query of the first wrong one, which `first_wrong` describes."""
        unit = torch.where(asks.branch == SLOT, phi.value_weights.min(), 1.0)[..., None]
        error = ((found.float() - asks.expected).abs() / unit).amax(-1)
        refuses, is_slot = asks.role == FORBIDDEN, (asks.role == SLOT) & ~asks.empty
        # Neither holds for what is not a number.
        right = torch.where(refuses, error > 0.5, error <= TOLERANCE)
        counted = (
            is_slot,
            asks.role == SELECTED,
            asks.role == WINDOW,
            refuses,
            asks.empty,
            ~right,
        )
        slots, selected, window, refused, empty, wrong = (
            torch.stack(counted).flatten(1).sum(-1).tolist()
        )
        self.slots += slots
        self.slots_of_rows += int(is_slot[:num_rows].sum())
        self.selected += selected
        self.window += window
        self.refused += refused
        self.empty += empty
        if not wrong:
            return None
        query, head = (~right).nonzero()[0].tolist()
        self.wrong += wrong
        self.first_wrong = self.first_wrong or _described(asks, found, codes, phi, query, head)
        return int(query)

    def check_padding(self, found: Tensor) -> None:
        """Rows of padding [N, H, Dv] must be zero."""
        self.padding += len(found)
        wrong = int((found != 0).flatten(1).any(1).sum()) if len(found) else 0
        if wrong:
            self.wrong += wrong
            self.first_wrong = self.first_wrong or "a row of padding read something"


def _described(
    asks: Asks, found: Tensor, codes: Codes, phi: Compressed, query: int, head: int
) -> str:
    branch = int(asks.branch[query, head])
    role = int(asks.role[query, head])
    scale = torch.ones(codes.block, device=found.device)
    if branch == SLOT:
        first = int(asks.slot_first[query, head])
        weights = phi.value_weights[head // (found.shape[1] // len(phi.value_weights))]
        scale = (
            1.0 / weights[(torch.arange(codes.block, device=found.device) - first) % codes.block]
        )
    asked, got = (
        codes.describe(values[query, head], scale) for values in (asks.expected, found.float())
    )
    verb = "must not see" if role == FORBIDDEN else "asked for"
    name = ("compressed", "selected", "window")[branch]
    return f"head {head}, {name} branch, {verb} {asked}; got {got}"
