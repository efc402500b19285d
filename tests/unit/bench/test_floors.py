"""Floors count the keys and values that a query must read, and no other."""

import pytest
import torch

from nsa_kernels.compressed.reference import visible_slots
from nsa_kernels.select.reference import select_blocks
from nsa_kernels.spec import SparseSpec
from nsa_serve.bench.floors import (
    Work,
    decode_work,
    dense_decode_work,
    dense_prefill_work,
    prefill_work,
)
from nsa_serve.bench.shapes import PAPER, HeadShape
from tests.support.specs import paper_spec

HEADS = HeadShape(8, 2, 16, 12)
SMALL = paper_spec(
    compress_block=8, compress_stride=4, select_block=8, num_selected=4, window=11, first_slot=1
)


def _read(spec: SparseSpec, position: int) -> int:
    """Compressed, selected and window keys of one query, told apart by the definition."""
    num_blocks = position // spec.select_block + 1
    scores = torch.arange(float(num_blocks))[None, None]
    chosen = select_blocks(spec, scores, torch.tensor([[position]])).flatten()
    keys = chosen[chosen >= 0][:, None] * spec.select_block + torch.arange(spec.select_block)
    slots = visible_slots(spec, torch.tensor(position), position)
    return int((keys <= position).sum() + slots.sum()) + min(position + 1, spec.window)


@pytest.mark.parametrize("context", [1, 4, 11, 31, 32, 33, 64, 80, 200])
def test_a_decode_step_reads_what_the_definition_reads(context: int) -> None:
    work = decode_work(SMALL, HEADS, 3, context, 2)
    read = _read(SMALL, context - 1)
    # A block that the query's own position cuts is counted whole once others crowd it out.
    assert 0 <= work.num_bytes - 3 * read * 2 * (16 + 12) * 2 < 3 * SMALL.select_block * 2 * 28 * 2
    assert work.flops == work.num_bytes // (2 * 2 * 28) * 8 * 28 * 2


def test_a_prefill_multiplies_what_its_decode_steps_do() -> None:
    steps = [decode_work(SMALL, HEADS, 1, context, 2).flops for context in range(1, 101)]
    work = prefill_work(SMALL, HEADS, 100, 2)
    assert work.flops == sum(steps)
    assert work.num_bytes == (100 + 25) * 2 * 28 * 2


def test_dense_work() -> None:
    assert dense_decode_work(HEADS, 3, 50, 4) == Work(3 * 50 * 2 * 28 * 4, 3 * 50 * 8 * 28 * 2)
    assert dense_prefill_work(HEADS, 4, 4) == Work(4 * 2 * 28 * 4, 10 * 8 * 28 * 2)


def test_the_slower_of_reading_and_multiplying_counts() -> None:
    assert Work(100, 300).seconds(10.0, 10.0) == 30.0
    assert Work(100, 300).seconds(1.0, 10.0) == 100.0


@pytest.mark.parametrize(
    ("batch", "context", "us"),
    [(1, 8192, 1.4), (1, 65_536, 3.8), (8, 32_768, 19.2), (32, 65_536, 120.6)],
)
def test_figures_that_were_worked_out_before(batch: int, context: int, us: float) -> None:
    work = decode_work(PAPER, HeadShape(64, 4, 128, 128), batch, context, 2)
    assert work.seconds(3.06e12, 1e18) * 1e6 == pytest.approx(us, rel=0.03)
