"""Decode kernels at real shapes, in CUDA graphs and with overlapping launches. Needs a GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nsa_kernels.decode import TUNING, dense_decode
from tests.support.kernel_cases import (
    DecodeCase,
    Heads,
    decode_case,
    relative_error,
    run_decode,
)
from tests.support.specs import paper_spec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

SHAPES = {
    "64/4 d128": Heads(num_heads=64, num_kv_heads=4, head_dim=128, value_dim=128, page_size=64),
    "32/8 d128": Heads(num_heads=32, num_kv_heads=8, head_dim=128, value_dim=128, page_size=64),
    "32/2 d128": Heads(num_heads=32, num_kv_heads=2, head_dim=128, value_dim=128, page_size=128),
    "9/3 d64": Heads(num_heads=9, num_kv_heads=3, head_dim=64, value_dim=64, page_size=64),
    "64/4 192/128": Heads(num_heads=64, num_kv_heads=4, head_dim=192, value_dim=128, page_size=64),
    "8/4 d96": Heads(num_heads=8, num_kv_heads=4, head_dim=96, value_dim=96, page_size=64),
    "64/1 d256": Heads(num_heads=64, num_kv_heads=1, head_dim=256, value_dim=256, page_size=64),
}
POSITIONS = [131_071, 8_191, -1, 1_023, 1_024, 33_333, 0, 65_536]
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "blocks of 16": {
        "compress_block": 16,
        "compress_stride": 16,
        "select_block": 16,
        "window": 128,
        "first_slot": 0,
        "init_blocks": 0,
        "local_blocks": 1,
    },
    "half merge": {"half_merge": True, "init_blocks": 0, "local_blocks": 1},
    "blocks of 128": {"select_block": 128, "num_selected": 8},
    "64 of max pool": {
        "importance": "max_pool",
        "num_selected": 64,
        "forced_counted": False,
        "dense_len": 8192,
        "uses": (False, True, False),
    },
    "logit mean with a floor": {
        "importance": "logit_mean",
        "selection_floor": 1e-10,
        "strict": True,
        "init_blocks": 0,
        "local_blocks": 1,
        "forced_counted": False,
    },
}


def bfloat16_case(heads: Heads, changes: dict[str, Any], **options: Any) -> DecodeCase:
    defaults: dict[str, Any] = {
        "positions": POSITIONS,
        "dtype": torch.bfloat16,
        "max_context": 1 << 17,
    }
    heads = replace(heads, page_size=max(heads.page_size, changes.get("select_block", 64)))
    return decode_case(paper_spec(**changes), heads=heads, **(defaults | options))


@pytest.mark.parametrize("shape", SHAPES)
def test_head_shapes(shape: str) -> None:
    case = bfloat16_case(SHAPES[shape], {})
    found, expected = run_decode(case, TUNING), case.expected()
    for row in range(len(POSITIONS)):
        assert relative_error(found[row], expected[row]) < 1e-2, POSITIONS[row]
    dense = dense_decode(case.q, case.cache.k, case.cache.v, case.rows, case.scale)
    assert relative_error(dense, case.expected_dense()) < 1e-2


@pytest.mark.parametrize("variant", VARIANTS)
def test_dialects_at_real_lengths(variant: str) -> None:
    case = bfloat16_case(SHAPES["64/4 d128"], VARIANTS[variant])
    assert relative_error(run_decode(case, TUNING), case.expected()) < 1e-2


@pytest.mark.parametrize("shape", ["64/4 d128", "64/4 192/128", "9/3 d64"])
def test_float32_chooses_and_sums_as_the_reference_does(shape: str) -> None:
    case = bfloat16_case(SHAPES[shape], {}, dtype=torch.float32, positions=[131_071, 8_191, 1_024])
    assert relative_error(run_decode(case, TUNING), case.expected()) < 1e-5


def test_independent_keys_and_values_and_memory() -> None:
    case = bfloat16_case(
        SHAPES["64/4 d128"], {}, independent=True, memory_slots=4, raw_queries=True
    )
    assert relative_error(run_decode(case, TUNING), case.expected()) < 1e-2


def test_a_million_tokens() -> None:
    heads = Heads(num_heads=16, num_kv_heads=1, head_dim=128, value_dim=128, page_size=64)
    case = bfloat16_case(heads, {}, positions=[999_999, 5_000], max_context=1 << 20)
    assert relative_error(run_decode(case, TUNING), case.expected()) < 1e-2


def test_bits_do_not_depend_on_batch_pages_bound_or_overlap() -> None:
    case = bfloat16_case(SHAPES["64/4 d128"], {})
    together = run_decode(case, TUNING)
    assert torch.equal(run_decode(case, TUNING), together)
    for row in range(len(POSITIONS)):
        assert torch.equal(run_decode(case.only([row]), TUNING), together[row : row + 1])
    assert torch.equal(run_decode(case.only([5], 1 << 18), TUNING), together[5:6])
    assert torch.equal(run_decode(case.moved(1), TUNING), together)
    overlapped = replace(TUNING, overlap_launches=not TUNING.overlap_launches)
    assert torch.equal(run_decode(case, overlapped), together)


def test_a_graph_follows_positions_that_change() -> None:
    case = bfloat16_case(SHAPES["64/4 d128"], {})
    found = run_decode(case, TUNING)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_decode(case, TUNING)
    for shift in (0, 1, 700):
        shifted = (case.rows.positions - shift).clamp_min(-1)
        case.rows.positions.copy_(shifted)
        captured.fill_(torch.nan)
        graph.replay()
        found = run_decode(case, TUNING)
        assert torch.equal(captured, found)
        assert bool(found.isfinite().all())
