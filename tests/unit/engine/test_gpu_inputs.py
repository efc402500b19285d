"""Page tables that follow their sequences, and a step's numbers as one array each."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.engine.gpu_inputs import (
    BlockTables,
    Uploader,
    mixed_inputs,
    row_inputs,
    slots_of_rows,
)
from nsa_serve.engine.gpu_steps import in_launches
from nsa_serve.engine.graphs import (
    BATCHES,
    batch_sizes,
    context_bounds,
    padding_inputs,
    smallest_that_holds,
)
from nsa_serve.engine.inputs import SlotRule, build_inputs

CPU = torch.device("cpu")
PAGE = 4
MOVES = ["grow", "grow", "grow", "preempt", "end", "step", "fail"]


def sequence(sequence_id: int, tokens: list[int], pages: list[int]) -> Sequence:
    return Sequence(
        sequence_id=sequence_id,
        token_ids=tokens,
        num_prompt_tokens=len(tokens),
        max_output_tokens=8,
        pages=pages,
    )


@settings(max_examples=200, deadline=None)
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(MOVES),
            st.integers(0, 4),
        )
    )
)
def test_tables_on_the_device_hold_every_running_sequences_pages(
    moves: list[tuple[str, int]],
) -> None:
    tables, upload = BlockTables(5, 12, CPU), Uploader(CPU)
    running: dict[int, Sequence] = {}
    ids, pages = iter(range(1000)), random.Random(0)
    slots: dict[int, int] = {}
    for move, slot in moves:
        if slot not in slots:
            slots[slot] = next(ids)
            running[slot] = sequence(slots[slot], [0], [])
        seq = running[slot]
        if move == "grow" and len(seq.pages) < 12:
            seq.pages.append(pages.randrange(1, 10_000))
        elif move == "preempt":  # the scheduler gives a resumed sequence a list of its own
            seq.pages = [pages.randrange(1, 10_000) for _ in range(3)]
        elif move == "end":
            tables.release(slots.pop(slot))
            del running[slot]
        elif move == "fail":
            tables.device.fill_(-1)
            tables.forget()
        elif move == "step":
            rows = {s: tables.row(running[s]) for s in running}
            tables.flush(upload)
            assert len(set(rows.values())) == len(rows)
            assert tables.padding_row not in rows.values()
            for s, row in rows.items():
                expected = running[s].pages
                assert tables.device[row, : len(expected)].tolist() == expected
                assert tables.host[row, : len(expected)].tolist() == expected


def test_only_new_pages_are_copied() -> None:
    tables, upload = BlockTables(3, 8, CPU), Uploader(CPU)
    seq = sequence(7, [0], [5, 6])
    row = tables.row(seq)
    tables.flush(upload)
    tables.device.fill_(0)
    seq.pages.append(9)
    assert tables.row(seq) == row
    tables.flush(upload)
    assert tables.device[row].tolist() == [0, 0, 9, 0, 0, 0, 0, 0]


def test_arrays_arrive_whole_and_in_one_piece() -> None:
    upload = Uploader(CPU)
    for size in (0, 1, 3, 100, 5000, 2):  # more than there are staging buffers, of other sizes
        arrays: list[NDArray[Any]] = [
            np.arange(size, dtype=np.int64) * 3,
            np.arange(size + 1, dtype=np.int32),
        ]
        tensors = upload(arrays)
        assert [t.tolist() for t in tensors] == [a.tolist() for a in arrays]
        storages = {t.untyped_storage().data_ptr() for t in tensors}
        assert len(storages) == 1


RULES = [None, SlotRule(2, 0), SlotRule(4, 1)]


@settings(max_examples=100, deadline=None)
@given(
    work=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=6),
    rule=st.sampled_from(RULES),
    lists_row_slots=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mixed_inputs_mean_what_the_references_do(
    work: list[tuple[int, int]], rule: SlotRule | None, lists_row_slots: bool, seed: int
) -> None:
    rng = random.Random(seed)
    work = sorted(work, key=lambda item: item[1] > 1)
    items = []
    for i, (start, length) in enumerate(work):
        total = start + length + rng.choice([0, 3])
        pages = [rng.randrange(1000) for _ in range(-(-total // PAGE))]
        tokens = [rng.randrange(500) for _ in range(total)]
        items.append(ScheduledSequence(sequence(i, tokens, pages), start, length))
    tables = BlockTables(8, 16, CPU)
    num_singles = sum(length == 1 for _, length in work)
    found = mixed_inputs(
        tables,
        items,
        page_size=PAGE,
        rule=rule,
        num_unlisted=0 if lists_row_slots else num_singles,
    )
    expected = build_inputs(ScheduledBatch(items), PAGE, rule, CPU)
    in_order = [items.index(item) for item in expected.items]
    spans = np.split(np.arange(sum(n for _, n in work)), np.cumsum([n for _, n in work])[:-1])
    order = np.concatenate([spans[i] for i in in_order])
    assert found.token_ids[order].tolist() == expected.token_ids.tolist()
    assert found.positions[order].tolist() == expected.positions.tolist()
    assert found.token_rows[order].tolist() == expected.meta.token_rows.tolist()
    assert found.last_tokens.tolist() == [
        spans[i][-1] for i, item in enumerate(items) if item.samples
    ]
    assert found.sampled_rows.tolist() == [
        tables.row(item.sequence) for item in items if item.samples
    ]
    listed = list(zip(found.slots.tolist(), found.slot_items.tolist(), strict=True))
    completed = [
        (slot, i)
        for i, item in enumerate(items)
        for slot in range(100)
        if rule is not None
        and slot >= rule.first_slot
        and item.start <= (slot + 1) * rule.stride - 1 < item.end
        and (lists_row_slots or i >= num_singles)
    ]
    assert sorted(listed) == sorted(completed)


@pytest.mark.parametrize("rule", RULES)
def test_row_inputs_are_those_of_mixed_inputs_and_padding(rule: SlotRule | None) -> None:
    tables = BlockTables(8, 16, CPU)
    sequences = [sequence(i, list(range(40 * i, 40 * i + 30)), list(range(9 * i, 9 * i + 8)))
                 for i in range(5)]  # fmt: skip
    positions = [3, 0, 29, 7, 12]
    items = [ScheduledSequence(s, t, 1) for s, t in zip(sequences, positions, strict=True)]
    mixed = mixed_inputs(tables, items, page_size=PAGE, rule=rule, num_unlisted=0)
    found = row_inputs(
        tables,
        [tables.row(s) for s in sequences],
        np.array(positions, np.int32),
        [s.token_ids[t] for s, t in zip(sequences, positions, strict=True)],
        slots_of_rows(np.array(positions, np.int32), rule),
        page_size=PAGE,
        padded_to=8,
    )
    padding = padding_inputs(3, tables.padding_row)
    for name in ("token_rows", "token_ids", "positions", "table_rows"):
        expected = [*getattr(mixed, name).tolist(), *getattr(padding, name).tolist()]
        assert getattr(found, name).tolist() == expected
    slots = dict(zip(mixed.slot_items.tolist(), mixed.slots.tolist(), strict=True))
    assert found.slots.tolist() == [slots.get(i, -1) for i in range(8)]


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 64, 100, 256, 300, 1000])
def test_a_batch_is_padded_to_the_smallest_size_that_holds_it(largest: int) -> None:
    sizes = batch_sizes(largest)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == largest
    for wanted in range(1, largest + 1):
        size = smallest_that_holds(sizes, wanted)
        assert wanted <= size <= largest
        if size > BATCHES[0]:
            assert all(other < wanted for other in sizes if other < size)


@pytest.mark.parametrize("largest", [1, 100, 1024, 1025, 131_072, 1_000_000])
def test_contexts_are_bounded_by_the_models(largest: int) -> None:
    bounds = context_bounds(largest)
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == largest
    assert all(smallest_that_holds(bounds, n) >= n for n in (1, largest // 2 + 1, largest))


@given(
    work=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=12),
    limit=st.integers(1, 120),
)
def test_launches_hold_every_item_once_and_bounded_chunks(
    work: list[tuple[int, int]], limit: int
) -> None:
    items = [ScheduledSequence(sequence(i, [0], []), a, n) for i, (a, n) in enumerate(work)]
    parts = in_launches(items, limit)
    assert sorted(map(id, (item for part in parts for item in part))) == sorted(map(id, items))
    for number, part in enumerate(parts):
        chunks = [item.end for item in part if item.num_tokens > 1]
        assert number == 0 or (part and len(chunks) == len(part))
        assert len(chunks) <= 1 or sum(chunks) <= limit
