"""Decode kernels against the plain torch reference, every field of the dialects."""

import random
from dataclasses import replace

import pytest
import torch

from nsa_kernels.decode import TUNING, dense_decode, sparse_decode
from nsa_kernels.geometry import page_size_for
from nsa_kernels.spec import SparseSpec
from nsa_serve.config import NSAConfig
from nsa_serve.model.attention import sparse_spec
from tests.support.dialects import BASE, DIALECTS
from tests.support.kernel_cases import (
    DEVICE,
    SMALL,
    DecodeCase,
    Heads,
    decode_case,
    relative_error,
    run_decode,
)

BASE_SPEC = sparse_spec(BASE)
BFLOAT16 = pytest.param(
    torch.bfloat16,
    1e-2,
    marks=pytest.mark.skipif(
        DEVICE.type == "cpu", reason="Triton's interpreter multiplies no bfloat16"
    ),
)


def case_of(nsa: NSAConfig, positions: list[int], heads: Heads) -> DecodeCase:
    return decode_case(
        sparse_spec(nsa),
        positions,
        heads,
        independent=nsa.branch_kv == "independent",
        raw_queries=nsa.compressed_rope == "none",
        memory_slots=nsa.memory_slots,
    )


def distinct_dialects() -> dict[str, NSAConfig]:
    """Those that differ in what these kernels compute."""
    found: dict[object, str] = {}
    for name, nsa in DIALECTS.items():
        key = sparse_spec(nsa), nsa.branch_kv, nsa.compressed_rope == "none", nsa.memory_slots
        found.setdefault(key, name)
    return {name: DIALECTS[name] for name in found.values()}


@pytest.mark.parametrize("name", distinct_dialects())
def test_dialects_equal_the_reference(name: str) -> None:
    case = case_of(DIALECTS[name], [130, 41, -1, 0], Heads(num_heads=2, num_kv_heads=1))
    assert relative_error(run_decode(case), case.expected()) < 1e-5


def test_the_real_constants_equal_the_reference() -> None:
    case = decode_case(BASE_SPEC, [260, 7])
    assert relative_error(run_decode(case, TUNING), case.expected()) < 1e-5


def test_every_border_of_slots_blocks_pages_and_window() -> None:
    borders = [0, 3, 7, 8, 10, 11, 15, 16, 18, 31, 32, 63, 64]
    case = decode_case(BASE_SPEC, borders, Heads(num_heads=2, num_kv_heads=1))
    found, expected = run_decode(case), case.expected()
    for row in range(len(borders)):
        assert relative_error(found[row], expected[row]) < 1e-5, borders[row]


def test_padding_rows_give_zeros_and_never_shift_others() -> None:
    case = decode_case(BASE_SPEC, [-1, 44, -1])
    found = run_decode(case)
    assert not bool(found[0].any())
    assert not bool(found[2].any())
    assert relative_error(found, case.expected()) < 1e-5
    assert not bool(run_decode(decode_case(BASE_SPEC, [-1, -1])).any())


@pytest.mark.parametrize(
    ("dtype", "bound"), [BFLOAT16, (torch.float16, 2e-3), (torch.float32, 1e-5)]
)
def test_cache_dtypes(dtype: torch.dtype, bound: float) -> None:
    case = decode_case(BASE_SPEC, [130, 77], dtype=dtype)
    found = run_decode(case)
    assert found.dtype == dtype
    assert relative_error(found, case.expected()) < bound


@pytest.mark.parametrize(
    "heads",
    [
        Heads(num_heads=3, num_kv_heads=1),
        Heads(num_heads=9, num_kv_heads=3),
        Heads(num_heads=20, num_kv_heads=1, head_dim=16, value_dim=24),
        Heads(num_heads=2, num_kv_heads=2, head_dim=24, value_dim=16, page_size=32),
        Heads(num_heads=64, num_kv_heads=1, head_dim=4, value_dim=4),
    ],
    ids=str,
)
def test_groups_and_head_dims(heads: Heads) -> None:
    case = decode_case(BASE_SPEC, [99, 20], heads)
    assert relative_error(run_decode(case), case.expected()) < 1e-5


def test_strided_inputs_and_gate_logits() -> None:
    case = decode_case(BASE_SPEC, [70, 33])
    b, h, d = case.q.shape
    fused = torch.full((b, 5 * h * d + 3 * h), torch.nan, device=case.q.device)
    fused[:, h * d : 2 * h * d] = case.q.flatten(1)
    logits = torch.randn(b, h, 3, generator=torch.Generator().manual_seed(5)).to(case.q.device)
    fused[:, -3 * h :] = logits.transpose(1, 2).flatten(1)
    q = fused[:, h * d : 2 * h * d].view(b, h, d)
    gates = fused[:, -3 * h :].view(b, 3, h).transpose(1, 2)
    out = torch.full((b, h, 2 * d), torch.nan, device=case.q.device)[:, :, :d]
    found = sparse_decode(
        q,
        q,
        gates,
        case.cache,
        case.rows,
        case.spec,
        case.scale,
        gate_logits=True,
        out=out,
        tuning=SMALL,
    )
    assert found.data_ptr() == out.data_ptr()
    assert relative_error(found, replace(case, gates=logits.sigmoid()).expected()) < 1e-5


def test_gates_shared_by_rows_and_heads() -> None:
    case = decode_case(BASE_SPEC, [70, 33])
    shared = replace(case, gates=torch.tensor([[[0.5, -1.0, 2.0]]], device=case.q.device))
    assert relative_error(run_decode(shared), shared.expected()) < 1e-5


def test_huge_logits_stay_finite_and_exact() -> None:
    """Differences of logits that overflow exp, within a row and between its splits."""
    case = decode_case(BASE_SPEC, [130, 59])
    case = replace(case, scale=300.0)
    assert relative_error(run_decode(case), case.expected()) < 1e-4


def test_a_visible_nan_stays_in_its_row() -> None:
    case = decode_case(BASE_SPEC, [90, 90])
    page = case.rows.block_table[0, 0]
    assert case.cache.k_compressed is not None
    case.cache.k_compressed[page, :, 2] = torch.nan
    found, expected = run_decode(case), case.expected()
    assert bool(found[0].isnan().any())
    assert relative_error(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize(("dtype", "bound"), [BFLOAT16, (torch.float32, 1e-5)])
def test_dense_equals_the_reference(dtype: torch.dtype, bound: float) -> None:
    positions = [0, 15, -1, 16, 140, 300]
    heads = Heads(num_heads=3, num_kv_heads=1, value_dim=12)
    case = decode_case(BASE_SPEC, positions, heads, dtype=dtype)
    arguments = case.q, case.cache.k, case.cache.v, case.rows, case.scale
    assert relative_error(dense_decode(*arguments, tuning=SMALL), case.expected_dense()) < bound
    assert relative_error(dense_decode(*arguments), case.expected_dense()) < bound


def random_case(seed: int) -> DecodeCase:
    """A dialect and a layer drawn over all that they can be."""
    draw = random.Random(seed)
    stride = draw.choice([1, 2, 4])
    strides = draw.choice([1, 2, 3, 5])
    block = stride * draw.choice([1, 2, 3, 4, 6])
    n = draw.randint(1, 9)
    half = draw.random() < 0.2
    n += half and n % 2
    init = draw.randint(0, min(2, n))
    counted = draw.random() < 0.6
    local = draw.randint(int(half), max(min(3, n - init), int(half)) if counted else 3)
    uses = draw.choice([(True, True, True)] * 5 + [(False, True, True), (False, True, False)])
    spec = SparseSpec(
        compress_block=stride * strides,
        compress_stride=stride,
        select_block=block,
        num_selected=n,
        window=draw.randint(1, 40),
        first_slot=draw.choice([0, strides - 1]),
        strict=draw.random() < 0.4,
        importance=draw.choice(["prob_sum", "prob_sum", "logit_mean", "max_pool"]),
        init_blocks=init if not half else min(init, n // 2),
        local_blocks=local,
        forced_counted=counted,
        half_merge=half,
        selection_floor=draw.choice([0.0, 0.0, 0.01]),
        dense_len=draw.choice([0, 0, 0, 37]),
        uses=uses,
    )
    kv_heads = draw.choice([1, 1, 2])
    heads = Heads(
        num_heads=kv_heads * draw.choice([1, 2, 3, 5]),
        num_kv_heads=kv_heads,
        head_dim=draw.choice([4, 8, 12, 20]),
        value_dim=draw.choice([4, 8, 12, 20]),
        page_size=page_size_for(block, stride, draw.choice([1, 16, 32])),
    )
    return decode_case(
        spec,
        [draw.randint(0, 150), draw.randint(0, 90), draw.randint(-1, 20)],
        heads,
        independent=draw.random() < 0.3,
        raw_queries=draw.random() < 0.3,
        memory_slots=draw.choice([0, 0, 1, 3]),
        max_context=draw.choice([None, 400]),
        seed=seed,
    )


@pytest.mark.parametrize(
    "seed",
    [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 150))],
)
def test_any_dialect_equals_the_reference(seed: int) -> None:
    case = random_case(seed)
    assert relative_error(run_decode(case), case.expected()) < 1e-5, (case.spec, case.heads)
