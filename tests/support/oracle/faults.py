"""Faults for the token oracle to find: what the kernels are told is changed, never the kernels."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.support.oracle.layer import Launch


@dataclass(frozen=True, slots=True)
class Past:
    """What a fault may know of the pages."""

    page_size: int
    num_pages: int
    used: frozenset[int]
    """Pages that were written before the step."""


Fault = Callable[[Launch, Past], Launch | None]
"""A launch with something wrong; None where this cannot go wrong with it."""


def rows_of_the_block_table_swapped(launch: Launch, past: Past) -> Launch | None:
    """Two single queries read each other's pages."""
    rows = launch.step.rows
    if rows is None:
        return None
    table = _swapped(rows.block_table, int((rows.positions >= 0).sum()))
    if table is None:
        return None
    return _with(launch, rows=replace(rows, block_table=table))


def chunks_of_the_block_table_swapped(launch: Launch, past: Past) -> Launch | None:
    """Two chunks read each other's pages."""
    chunks = launch.step.chunks
    if chunks is None:
        return None
    table = _swapped(chunks.block_table, len(chunks.lengths))
    return None if table is None else _with(launch, chunks=replace(chunks, block_table=table))


def slot_index_too_large(launch: Launch, past: Past) -> Launch | None:
    """Slots are made one place too far on."""
    return _slots_moved(launch, 1)


def slot_index_too_small(launch: Launch, past: Past) -> Launch | None:
    """Slots are made one place too early: the last one of the step never is."""
    return _slots_moved(launch, -1)


def stale_page(launch: Launch, past: Past) -> Launch | None:
    """A page that was another's is not written."""
    places = launch.step.token_rows
    pages = torch.where(places < 0, -1, places // past.page_size)
    begun = pages[(places >= 0) & (places % past.page_size == 0)].tolist()
    stale = [page for page in begun if page in past.used]
    if not stale:
        return None
    return _with(launch, token_rows=torch.where(pages == stale[0], -1, places))


def token_one_page_off(launch: Launch, past: Past) -> Launch | None:
    """One token goes to its offset in the page next to its own."""
    places = launch.step.token_rows.clone()
    last = int((places >= 0).nonzero()[-1])
    places[last] = (places[last] + past.page_size) % (past.num_pages * past.page_size)
    return _with(launch, token_rows=places)


def slots_seen_early(launch: Launch, past: Past) -> Launch | None:
    """A slot is seen by the query at the token that completes it, from which it is hidden."""
    assert launch.spec.strict
    return replace(launch, spec=replace(launch.spec, strict=False))


def slots_seen_late(launch: Launch, past: Past) -> Launch | None:
    """A slot is hidden from the query at the token that completes it."""
    assert not launch.spec.strict
    return replace(launch, spec=replace(launch.spec, strict=True))


def window_too_wide(launch: Launch, past: Past) -> Launch | None:
    """By one key."""
    return replace(launch, spec=replace(launch.spec, window=launch.spec.window + 1))


def window_too_narrow(launch: Launch, past: Past) -> Launch | None:
    """By one key."""
    return replace(launch, spec=replace(launch.spec, window=launch.spec.window - 1))


def _swapped(table: Tensor, num_rows: int) -> Tensor | None:
    """The table with its first row exchanged for one that begins in another page."""
    first = table[:num_rows, 0].tolist()
    other = next((row for row, page in enumerate(first) if page != first[0]), None)
    if other is None:
        return None
    order = list(range(len(table)))
    order[0], order[other] = other, 0
    return table[torch.tensor(order, device=table.device)]


def _slots_moved(launch: Launch, places: int) -> Launch | None:
    work = launch.step.completed
    if work is None:
        return None
    moved = torch.where(work.slots < 0, work.slots, work.slots + places)
    return _with(launch, completed=replace(work, slots=moved))


def _with(launch: Launch, **fields: Any) -> Launch:
    return replace(launch, step=replace(launch.step, **fields))
