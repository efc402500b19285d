"""Scheduled work as the device's attention sees it."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.batch import CompletedSlots, DecodeRows, PrefillChunks
from nsa_scheduler.output import ScheduledSequence
from nsa_serve.engine.gpu_inputs import BlockTables, Uploader, mixed_inputs
from nsa_serve.engine.graphs import GraphKey, RowBuffers
from nsa_serve.engine.inputs import SlotRule
from nsa_serve.model.device import DeviceStep

MAX_CHUNK_CONTEXT = 1 << 20
"""Tokens of all chunks of one launch with those before them: kernels put their slots side by side,
and hundreds of short messages behind one long prompt would take gigabytes."""


@dataclass(frozen=True, slots=True)
class MixedStep:
    """Single queries, then chunks, of T tokens together."""

    items: list[ScheduledSequence]
    """In the order of their tokens."""
    token_ids: Tensor
    """[T]"""
    attention: DeviceStep
    last_tokens: Tensor
    """Of each item that is sampled: its last token's place among the T."""
    sampled_rows: Tensor
    """Of each item that is sampled: its row of the tables."""


def in_launches(
    items: SequenceOf[ScheduledSequence], max_chunk_context: int
) -> list[list[ScheduledSequence]]:
    """Parts whose chunks reach over at most so many tokens together, unless one alone does; all
    single queries are in the first."""
    parts = [[item for item in items if item.num_tokens == 1]]
    context = 0
    for item in items:
        if item.num_tokens > 1:
            if context and context + item.end > max_chunk_context:
                parts.append([])
                context = 0
            parts[-1].append(item)
            context += item.end
    return parts


def mixed_step(
    items: SequenceOf[ScheduledSequence],
    tables: BlockTables,
    upload: Uploader,
    *,
    page_size: int,
    rule: SlotRule | None,
    lists_row_slots: bool,
) -> MixedStep:
    """Bring a step's inputs to the device. `lists_row_slots`: whether the slots of single queries
    must be listed too."""
    singles = [item for item in items if item.num_tokens == 1]
    chunks = [item for item in items if item.num_tokens > 1]
    n = len(singles)
    inputs = mixed_inputs(
        tables,
        singles + chunks,
        page_size=page_size,
        rule=rule,
        num_unlisted=0 if lists_row_slots else n,
    )
    tables.flush(upload)
    token_rows, token_ids, table_rows, last_tokens, sampled_rows, positions, slots, slot_items = (
        upload(inputs.arrays)
    )
    block_table = tables.device.index_select(0, table_rows)
    rows = completed = prefill = None
    if singles:
        rows = DecodeRows(positions[:n], block_table[:n], max(item.end for item in singles))
    if chunks:
        starts, lengths = [item.start for item in chunks], [item.num_tokens for item in chunks]
        prefill = PrefillChunks(starts, lengths, block_table[n:])
    if len(slots):
        completed = CompletedSlots(slots, slot_items, block_table)
    step = DeviceStep(positions, token_rows, rows, prefill, completed)
    return MixedStep(singles + chunks, token_ids, step, last_tokens, sampled_rows)


def rows_step(buffers: RowBuffers, key: GraphKey, tables: BlockTables) -> DeviceStep:
    """A step of single queries whose inputs are in buffers; a graph can hold all of it."""
    torch.index_select(tables.device, 0, buffers.table_rows, out=buffers.block_table)
    completed = None
    if key.lists_slots:
        completed = CompletedSlots(buffers.slots, buffers.items, buffers.block_table)
    rows = DecodeRows(buffers.positions, buffers.block_table, key.context)
    return DeviceStep(buffers.positions, buffers.token_rows, rows, None, completed)
