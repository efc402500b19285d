"""Keys that attention reads, counted from positions, against the definition's own selection."""

import random
from typing import Any

import pytest

from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.config import NSAConfig
from nsa_serve.engine.reads import ReadCounter, TokensRead
from nsa_serve.model.attention import sparse_spec
from tests.support.naive_select import select, slot_visible

SMALL: dict[str, Any] = {"compress_block": 8, "compress_stride": 4, "select_block": 8, "window": 20}
DIALECTS = {
    "paper": NSAConfig(**SMALL, num_selected=6),
    "forced blocks on top": NSAConfig(**SMALL, num_selected=4, forced_counted=False),
    "own block only": NSAConfig(**SMALL, num_selected=4, init_blocks=0, local_blocks=1),
    "half merge": NSAConfig(
        **SMALL, num_selected=4, selection="half_merge", init_blocks=0, local_blocks=1
    ),
    "strict": NSAConfig(**SMALL, num_selected=6, visibility="strict"),
    "left padding": NSAConfig(**SMALL, num_selected=6, padding="left"),
    "dense at first": NSAConfig(**SMALL, num_selected=6, dense_len=30),
    "selected only": NSAConfig(**SMALL, num_selected=6, gate="none", fixed_gates=(0, 1, 0)),
    "window only": NSAConfig(**SMALL, num_selected=6, gate="none", fixed_gates=(0, 0, 1)),
}
LENGTH = 150


def item(start: int, num_tokens: int) -> ScheduledSequence:
    sequence = Sequence(
        sequence_id=start, token_ids=[0] * LENGTH, num_prompt_tokens=LENGTH, max_output_tokens=1
    )
    return ScheduledSequence(sequence, start, num_tokens)


def by_definition(nsa: NSAConfig, t: int) -> TokensRead:
    """What one query at t reads in one layer."""
    if t < nsa.dense_len:
        return TokensRead(dense=t + 1, context=t + 1)
    own = t // nsa.select_block
    scores: list[float | None] = [random.random() for _ in range(own + 1)]
    blocks = select(nsa, scores, t)
    uses = nsa.uses
    must_rank = uses[1] and own >= nsa.num_selected
    return TokensRead(
        compressed=sum(slot_visible(nsa, s, t) for s in range(t)) if uses[0] or must_rank else 0,
        selected=sum(min(nsa.select_block, t + 1 - nsa.select_block * b) for b in blocks) * uses[1],
        window=min(t + 1, nsa.window) * uses[2],
        context=t + 1,
    )


@pytest.mark.parametrize("name", DIALECTS)
def test_each_position_reads_what_the_definition_reads(name: str) -> None:
    nsa = DIALECTS[name]
    for t in range(LENGTH):
        counter = ReadCounter(sparse_spec(nsa), 1, 0)
        counter.add(ScheduledBatch([item(t, 1)]))
        assert counter.total == by_definition(nsa, t), t


def test_a_step_is_the_sum_of_its_queries_over_all_layers() -> None:
    spec = sparse_spec(DIALECTS["paper"])
    together, apart = ReadCounter(spec, 3, 2), ReadCounter(spec, 3, 2)
    together.add(ScheduledBatch([item(7, 1), item(100, 1), item(0, 60)]))
    for t in (7, 100, *range(60)):
        apart.add(ScheduledBatch([item(t, 1)]))
    assert together.total == apart.total
    assert together.total.dense * 5 == together.total.context * 2


def test_a_dense_model_reads_everything() -> None:
    counter = ReadCounter(None, 0, 4)
    counter.add(ScheduledBatch([item(9, 1)]))
    assert counter.total == TokensRead(dense=40, context=40)
