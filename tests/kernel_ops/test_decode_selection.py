"""Selections that span several chunks of blocks, ties, and lists longer than one comparison."""

from typing import Any

import pytest
import torch

from nsa_kernels.decode import TUNING, chosen_blocks
from nsa_kernels.paged import rows as reference
from nsa_kernels.spec import SparseSpec
from tests.support.kernel_cases import DecodeCase, Heads, decode_case, relative_error, run_decode

ONE_HEAD = Heads(num_heads=2, num_kv_heads=1, head_dim=4, value_dim=4)


def narrow(**changes: Any) -> SparseSpec:
    """Blocks of 4 tokens, so that a short row has many."""
    fields: dict[str, Any] = {
        "compress_block": 4,
        "compress_stride": 2,
        "select_block": 4,
        "num_selected": 5,
        "window": 7,
        "first_slot": 1,
    }
    return SparseSpec(**fields | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"forced_counted": False, "init_blocks": 2},
        {"half_merge": True, "num_selected": 6, "init_blocks": 0, "local_blocks": 1},
        {"importance": "logit_mean", "selection_floor": 0.004},
        {"importance": "max_pool"},
    ],
    ids=str,
)
def test_candidates_of_many_chunks_are_put_together(changes: dict[str, Any]) -> None:
    """With 16 blocks to a chunk, over 100 blocks: several rounds among the chunks' candidates."""
    case = decode_case(narrow(**changes), [430, 64, 63], ONE_HEAD)
    assert relative_error(run_decode(case), case.expected()) < 1e-5


def test_the_lower_block_wins_a_tie_across_chunks() -> None:
    case = decode_case(narrow(init_blocks=0, local_blocks=0, num_selected=3), [300], ONE_HEAD)
    for cache in (case.cache, case.clean):
        assert cache.k_compressed is not None
        cache.k_compressed.masked_fill_(~cache.k_compressed.isnan(), 0.5)
    assert relative_error(run_decode(case), case.expected()) < 1e-5


def test_lists_too_long_to_compare_each_with_each_are_sorted() -> None:
    case = decode_case(narrow(num_selected=70), [500], ONE_HEAD)
    assert relative_error(run_decode(case, TUNING), case.expected()) < 1e-5


def test_fewer_blocks_with_a_score_than_places() -> None:
    spec = narrow(importance="logit_mean", init_blocks=0, local_blocks=1, num_selected=9)
    case = decode_case(spec, [11, 12, 30], ONE_HEAD)
    assert relative_error(run_decode(case), case.expected()) < 1e-5


def test_scores_one_bit_apart_choose_different_blocks() -> None:
    """logit_mean of one slot per block and one head: the score is that slot's logit alone."""
    spec = narrow(
        importance="logit_mean",
        compress_block=4,
        compress_stride=4,
        first_slot=0,
        init_blocks=0,
        local_blocks=0,
        num_selected=1,
        uses=(False, True, False),
    )
    case = decode_case(spec, [159], Heads(num_heads=1, num_kv_heads=1, head_dim=2, value_dim=4))
    case.q.fill_(0.0)
    case.q[..., 0] = 1.0
    best = 17
    for cache in (case.cache, case.clean):
        assert cache.k_compressed is not None
        cache.k_compressed.fill_(1.0)
        page = case.rows.block_table[0, best * 4 // 16]
        above = torch.tensor(1.0).nextafter(torch.tensor(2.0))
        cache.k_compressed[page, 0, best % 4, 0] = above
    found = run_decode(case)
    assert relative_error(found, case.expected()) < 1e-5


def chosen_of(case: DecodeCase) -> list[list[list[int]]]:
    return chosen_blocks(
        case.q_compressed, case.cache, case.rows, case.spec, case.scale, memory=case.memory
    )


def expected_of(case: DecodeCase) -> list[list[list[int]]]:
    """Of each row that is no padding."""
    return [
        reference.chosen_blocks(case.queries.part(i, i + 1), case.clean, group, case.spec)[0]
        for i, group in case.groups()
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"forced_counted": False},
        {"half_merge": True, "num_selected": 6},
        {"importance": "logit_mean", "selection_floor": 0.004},
        {"importance": "max_pool"},
        {"uses": (False, True, False)},
        {"dense_len": 140},
    ],
    ids=str,
)
def test_the_blocks_that_a_step_reads_can_be_told(changes: dict[str, Any]) -> None:
    case = decode_case(narrow(**changes), [130, -1, 300, 9, 0], memory_slots=2)
    of_first, padding, *of_rest = chosen_of(case)
    expected = expected_of(case)
    assert [of_first, *of_rest] == expected
    assert padding == [[], []]
    assert of_first[0] != of_first[1] or "dense_len" in changes, "heads choose apart"


def test_a_short_context_reads_every_block() -> None:
    assert chosen_of(decode_case(narrow(), [18], ONE_HEAD)) == [[[0, 1, 2, 3, 4]]]
