"""A scheduled step as tensors: tokens, positions, where they go and which rows are sampled."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.geometry import num_pages_for
from nsa_kernels.metadata import (
    AttentionMetadata,
    Chunk,
    RowGroup,
    SlotWork,
    long,
    slots_completed,
)
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence


@dataclass(frozen=True, slots=True)
class SlotRule:
    """When compressed slots complete: one every `stride` tokens, from `first_slot` on."""

    stride: int
    first_slot: int


@dataclass(frozen=True, slots=True)
class StepInputs:
    """A step of T tokens: single queries first, in order of context length, then chunks."""

    items: list[ScheduledSequence]
    """In the order of their tokens."""
    starts: list[int]
    """First token of each item."""
    token_ids: Tensor
    positions: Tensor
    meta: AttentionMetadata


def build_inputs(
    batch: ScheduledBatch, page_size: int, rule: SlotRule | None, device: torch.device
) -> StepInputs:
    """Tensors of a step; `rule` None where no layer compresses."""
    singles = sorted((i for i in batch.items if i.num_tokens == 1), key=lambda item: item.end)
    chunked = [i for i in batch.items if i.num_tokens > 1]
    items = singles + chunked
    starts: list[int] = []
    token_ids: list[int] = []
    positions: list[int] = []
    rows: list[int] = []
    for item in items:
        starts.append(len(token_ids))
        token_ids += item.sequence.token_ids[item.start : item.end]
        positions += range(item.start, item.end)
        pages = item.sequence.pages
        rows += [pages[t // page_size] * page_size + t % page_size for t in positions[starts[-1] :]]
    all_positions = long(positions, device)
    meta = AttentionMetadata(
        token_rows=long(rows, device),
        page_size=page_size,
        groups=_groups(singles, all_positions, page_size, device),
        chunks=[
            Chunk(
                start=start,
                stop=start + item.num_tokens,
                first_position=item.start,
                block_table=_table([item], page_size, device),
            )
            for item, start in zip(chunked, starts[len(singles) :], strict=True)
        ],
        completed=None if rule is None else _completed(items, rule, page_size, device),
    )
    return StepInputs(items, starts, long(token_ids, device), all_positions, meta)


def _table(items: list[ScheduledSequence], page_size: int, device: torch.device) -> Tensor:
    """Pages of items [N, longest], padded with the item's own first page: padding is masked, but
    another's page may hold NaN, and 0 · NaN is NaN."""
    counts = [num_pages_for(item.end, page_size) for item in items]
    width = max(counts)
    return torch.tensor(
        [
            item.sequence.pages[:count] + item.sequence.pages[:1] * (width - count)
            for item, count in zip(items, counts, strict=True)
        ],
        dtype=torch.int64,
        device=device,
    )


def _groups(
    singles: list[ScheduledSequence], positions: Tensor, page_size: int, device: torch.device
) -> list[RowGroup]:
    """Runs of single queries whose contexts differ by a factor of about two at most, so that
    padding to the longest stays cheap."""
    groups: list[RowGroup] = []
    start = 0
    while start < len(singles):
        limit = 2 * singles[start].end + 4 * page_size
        stop = start
        while stop < len(singles) and singles[stop].end <= limit:
            stop += 1
        members = singles[start:stop]
        groups.append(
            RowGroup(
                start=start,
                stop=stop,
                positions=positions[start:stop],
                block_table=_table(members, page_size, device),
                last_position=members[-1].end - 1,
            )
        )
        start = stop
    return groups


def _completed(
    items: list[ScheduledSequence], rule: SlotRule, page_size: int, device: torch.device
) -> SlotWork | None:
    """Slots that complete at the step's tokens."""
    work = [
        (item, slot)
        for item in items
        for slot in slots_completed(rule.stride, rule.first_slot, item.start, item.end)
    ]
    if not work:
        return None
    return SlotWork(
        slots=long([slot for _, slot in work], device),
        block_table=_table([item for item, _ in work], page_size, device),
    )
