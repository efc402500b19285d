"""Tiles of a prefill: anchored at absolute positions, complete, and cut into slabs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.prefill.plan import PlanKey, TileMap, make_plan, slabs
from nsa_kernels.prefill.sizes import dense_end
from tests.support.specs import paper_spec

CHUNKS = st.lists(st.tuples(st.integers(0, 90), st.integers(1, 50)), min_size=1, max_size=4)


def chunks_of(pairs: list[tuple[int, int]]) -> PrefillChunks:
    table = torch.zeros(len(pairs), 4, dtype=torch.int32)
    return PrefillChunks([a for a, _ in pairs], [n for _, n in pairs], table)


def tiles_of(tiles: TileMap) -> list[tuple[int, int]]:
    return [(int(chunk), int(start)) for chunk, start in tiles.tiles]


@settings(max_examples=100, deadline=None)
@given(pairs=CHUNKS, size=st.sampled_from([1, 8, 16]), dense=st.integers(0, 100))
def test_tiles_cover_every_query_that_is_scored_once(
    pairs: list[tuple[int, int]], size: int, dense: int
) -> None:
    plan = make_plan(chunks_of(pairs), PlanKey(4, size, 8, 2, dense))
    tiles = tiles_of(plan.scores)
    assert [start for _, start in tiles] == plan.scores.starts
    assert plan.scores.starts == sorted(plan.scores.starts, reverse=True)
    assert all(start % size == 0 for _, start in tiles)
    covered = [(chunk, start + i) for chunk, start in tiles for i in range(size)]
    assert len(set(covered)) == len(covered)
    queries = {(c, t) for c, (a, n) in enumerate(pairs) for t in range(a, a + n) if t >= dense}
    assert queries <= set(covered)
    for chunk, start in tiles:
        assert any((chunk, start + i) in queries for i in range(size)), "no tile without work"


@settings(max_examples=50, deadline=None)
@given(pairs=CHUNKS)
def test_slots_of_a_sequence_have_rows_of_their_own(pairs: list[tuple[int, int]]) -> None:
    plan = make_plan(chunks_of(pairs), PlanKey(4, 4, 8, 4, 0))
    expected = 0
    for (first, length), row in zip(pairs, plan.chunks.tolist(), strict=True):
        assert row[:2] == [first, first + length]
        assert row[3] == expected
        expected += (first + length) // 4
    assert plan.num_slots == expected


@settings(max_examples=100, deadline=None)
@given(
    starts=st.lists(st.integers(0, 40), min_size=0, max_size=30),
    limit=st.integers(1, 20_000),
)
def test_slabs_are_complete_and_bounded(starts: list[int], limit: int) -> None:
    ordered = sorted((8 * start for start in starts), reverse=True)
    tiles = TileMap(torch.zeros(len(ordered), 2, dtype=torch.int32), ordered)
    made = slabs(tiles, 8, 4, 3, limit)
    assert [i for slab in made for i in range(slab.start, slab.stop)] == list(range(len(ordered)))
    for slab in made:
        blocks = max((start + 7) // 4 + 1 for start in ordered[slab.start : slab.stop])
        assert slab.num_blocks >= blocks
        assert slab.stop - slab.start == 1 or (
            (slab.stop - slab.start) * 8 * slab.num_blocks * 3 <= limit
        )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 16 * 64),
        ({"dense_len": 2000}, 2000),
        ({"importance": "logit_mean"}, 0),
        ({"selection_floor": 0.1, "dense_len": 100}, 100),
    ],
)
def test_dense_queries_end_where_one_may_leave_a_block_out(
    changes: dict[str, object], expected: int
) -> None:
    spec = paper_spec(**changes)
    end = dense_end(spec)
    assert end == expected
    assert not spec.selects_all(end)
    assert end == 0 or spec.selects_all(end - 1)
