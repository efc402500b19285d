"""Prefill kernels against the reference: every dialect, any shape, any border of a chunk.

Caches are NaN wherever nothing was written. Without a GPU the kernels run in Triton's interpreter.
"""

import itertools
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from nsa_kernels.prefill.dense import dense_prefill
from nsa_kernels.prefill.layer import sparse_prefill
from nsa_kernels.prefill.tuning import PrefillTuning, fitted
from nsa_kernels.spec import SparseSpec
from nsa_serve.config import NSAConfig
from tests.support.dialects import BASE, DIALECTS
from tests.support.prefill_cases import (
    DEVICE,
    Case,
    Shape,
    expected,
    expected_dense,
    make_case,
    relative_error,
    spec_of,
)
from tests.support.specs import paper_spec

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

NARROW = PrefillTuning(
    flash_rows=32,
    flash_slots=16,
    flash_keys=16,
    flash_warps=4,
    flash_registers=None,
    score_columns=64,
    score_slots=16,
    score_warps=4,
    select_queries=8,
    selected_rows=32,
    selected_keys=16,
)
"""Many tiles, even in short sequences."""


def wide(case: Case, **changes: Any) -> PrefillTuning:
    """Few programs, for the interpreter's sake."""
    shape = case.shape
    dtype = torch.promote_types(case.q.dtype, case.cache.k.dtype)
    sizes = fitted(None, dtype, shape.head_dim, shape.value_dim, shape.group)
    return replace(sizes, **{"select_queries": 32} | changes)


def run(case: Case, tuning: PrefillTuning | None = None, **changes: Any) -> Tensor:
    given: dict[str, Any] = {
        "q": case.q,
        "q_compressed": case.q_compressed,
        "gates": case.gates,
        "cache": case.cache,
        "chunks": case.chunks,
        "spec": case.shape.spec,
        "scale": case.scale,
        "memory": case.memory,
        "out": torch.full_like(case.q[..., :1], torch.nan).repeat(1, 1, case.shape.value_dim),
        "tuning": wide(case) if tuning is None else tuning,
    }
    return sparse_prefill(**given | changes)


def shape_of(nsa: NSAConfig, **changes: Any) -> Shape:
    fields: dict[str, Any] = {
        "spec": spec_of(nsa),
        "chunks": ((0, 61), (37, 20)),
        "memory": nsa.memory_slots,
        "independent": nsa.branch_kv == "independent",
        "raw_queries": nsa.compressed_rope == "none",
    }
    return Shape(**fields | changes)


def replace_config(**changes: Any) -> NSAConfig:
    return msgspec.structs.replace(BASE, **changes)


def different_dialects() -> dict[str, NSAConfig]:
    """Those that differ in what the kernels are told; φ and gates are not theirs."""
    shapes = {shape_of(nsa): name for name, nsa in reversed(DIALECTS.items())}
    return {name: DIALECTS[name] for name in sorted(shapes.values())}


@pytest.mark.parametrize("name", different_dialects())
def test_every_dialect_equals_the_reference(name: str) -> None:
    case = make_case(shape_of(DIALECTS[name]))
    assert relative_error(run(case), expected(case)) < 1e-5


@pytest.mark.parametrize("name", ["wide_slots", "lucidrains"])
def test_tiles_of_any_size_give_the_same(name: str) -> None:
    case = make_case(shape_of(DIALECTS[name], chunks=((13, 40), (0, 9)), seed=1))
    assert relative_error(run(case, NARROW), expected(case)) < 1e-5


@pytest.mark.parametrize(
    ("group", "kv_heads", "head_dim", "value_dim", "page_size"),
    [(3, 1, 24, 12, 32), (1, 3, 48, 32, 8), (16, 1, 16, 48, 16), (5, 2, 32, 96, 24)],
)
def test_odd_groups_dims_and_pages(
    group: int, kv_heads: int, head_dim: int, value_dim: int, page_size: int
) -> None:
    shape = shape_of(
        BASE,
        group=group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        page_size=page_size,
        chunks=((29, 30),),
    )
    case = make_case(shape)
    assert relative_error(run(case), expected(case)) < 1e-5


def test_blocks_and_strides_that_are_no_powers_of_two() -> None:
    nsa = replace_config(compress_block=12, compress_stride=4, select_block=12, num_selected=3)
    case = make_case(shape_of(nsa, page_size=24, chunks=((30, 43),)))
    assert relative_error(run(case), expected(case)) < 1e-5
    assert relative_error(run(case, NARROW), expected(case)) < 1e-5


@pytest.mark.parametrize("first", [31, 32, 33, 39, 40])
@pytest.mark.parametrize("length", [1, 8])
def test_chunks_may_start_and_end_anywhere(first: int, length: int) -> None:
    case = make_case(shape_of(BASE, chunks=((first, length),), kv_heads=1))
    assert relative_error(run(case), expected(case)) < 1e-5


def part_of(case: Case, first: int, stop: int) -> Case:
    """Queries [first, stop) of a case of one chunk that starts at 0."""
    return replace(
        case,
        shape=replace(case.shape, chunks=((first, stop - first),)),
        q=case.q[first:stop],
        q_compressed=case.q_compressed[first:stop],
        gates=case.gates[first:stop],
        chunks=replace(case.chunks, first_positions=[first], lengths=[stop - first], plans={}),
    )


def test_cutting_a_chunk_changes_no_bit() -> None:
    """Tiles are anchored at absolute positions, and where a step reads one block, those of other
    queries leave a query's sums alone."""
    case = make_case(shape_of(DIALECTS["wide_blocks"], chunks=((0, 90),), kv_heads=1, memory=1))
    whole = run(case, NARROW)
    parts = [run(part_of(case, a, b), NARROW) for a, b in itertools.pairwise([0, 35, 53, 90])]
    assert torch.equal(torch.cat(parts), whole)


def test_chunks_of_a_batch_do_not_touch_each_other() -> None:
    shape = shape_of(BASE, chunks=((21, 30), (0, 17), (44, 3)))
    case = make_case(shape)
    together = run(case)
    start = 0
    for row, (first, length) in enumerate(shape.chunks):
        stop = start + length
        alone = replace(
            case,
            q=case.q[start:stop],
            q_compressed=case.q_compressed[start:stop],
            gates=case.gates[start:stop],
            chunks=replace(
                case.chunks,
                first_positions=[first],
                lengths=[length],
                block_table=case.chunks.block_table[row : row + 1],
                plans={},
            ),
        )
        assert torch.equal(run(alone), together[start:stop])
        start = stop


def test_slabs_do_not_show() -> None:
    case = make_case(shape_of(DIALECTS["no_forced"], chunks=((33, 40),)))
    narrow = replace(NARROW, slab_bytes=1)
    assert torch.equal(run(case, narrow), run(case, NARROW))


@pytest.mark.parametrize("splits", [1, 3])
def test_splitting_the_scores_changes_no_bit(splits: int) -> None:
    spec = replace(spec_of(BASE), select_block=4, compress_block=4, first_slot=0, window=5)
    case = make_case(Shape(spec=spec, chunks=((300, 9),), kv_heads=1))
    tuning = replace(NARROW, score_splits=splits)
    assert relative_error(run(case, tuning), expected(case)) < 1e-5


def test_gate_logits_shared_gates_and_strided_inputs() -> None:
    case = make_case(shape_of(BASE, chunks=((30, 20),)))
    logits = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    wide = torch.zeros(20, 7, 40, device=DEVICE)
    wide[:, 1:5, 3:19] = case.q
    found = run(
        case, q=wide[:, 1:5, 3:19], q_compressed=wide[:, 1:5, 3:19], gates=logits, gate_logits=True
    )
    assert relative_error(found, expected(case, torch.sigmoid(logits))) < 1e-5
    one = torch.rand(3, 4, generator=torch.Generator().manual_seed(4)).to(DEVICE).T[None]
    assert relative_error(run(case, gates=one), expected(case, one.expand(20, 4, 3))) < 1e-5


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            torch.bfloat16,
            marks=pytest.mark.skipif(
                DEVICE.type == "cpu", reason="Triton's interpreter multiplies no bfloat16"
            ),
        ),
        torch.float16,
    ],
)
def test_half_precision(dtype: torch.dtype) -> None:
    """Against the reference on the same rounded inputs; a near tie may fall either way, so the
    bound is that of a norm."""
    case = make_case(shape_of(BASE, chunks=((0, 61), (37, 20)), dtype=dtype))
    assert relative_error(run(case), expected(case)) < 1e-2


def test_float32_queries_over_bfloat16_caches() -> None:
    case = make_case(shape_of(BASE, chunks=((30, 20),), dtype=torch.bfloat16))
    wide = replace(case, q=case.q.float(), q_compressed=case.q.float(), gates=case.gates.float())
    assert relative_error(run(wide), expected(wide)) < 1e-5


def test_equal_scores_go_to_the_lower_block() -> None:
    """Equal keys everywhere make every complete block's score the same, to the last bit."""
    spec = replace(spec_of(BASE), init_blocks=0, local_blocks=1, compress_block=4, first_slot=0)
    case = make_case(Shape(spec=spec, chunks=((0, 79),), kv_heads=1, group=1))
    case.cache.k_compressed.fill_(0.25)  # type: ignore[union-attr]
    found = run(case, gates=torch.tensor([0.0, 1.0, 0.0], device=DEVICE).expand(1, 1, 3))
    reads = torch.zeros(79, 79, dtype=torch.bool, device=DEVICE)
    for t in range(79):
        for block in {0, 1, 2, t // 8} if t >= 32 else range(t // 8 + 1):
            reads[t, block * 8 : block * 8 + 8] = True
    reads = reads.tril()
    pages = case.chunks.block_table[0, :5].long()
    k, v = (x[pages, 0].flatten(0, 1)[:79].double() for x in (case.cache.k, case.cache.v))
    logits = (case.q[:, 0].double() @ k.T * case.scale).masked_fill(~reads, -torch.inf)
    assert relative_error(found[:, 0], logits.softmax(-1) @ v) < 1e-5


@pytest.mark.parametrize("uses", [(True, False, False), (False, False, True), (True, True, False)])
def test_unused_branches_are_left_out(uses: tuple[bool, bool, bool]) -> None:
    spec = replace(spec_of(BASE), uses=uses)
    case = make_case(Shape(spec=spec, chunks=((25, 30),), kv_heads=1))
    assert relative_error(run(case), expected(case)) < 1e-5


@pytest.mark.parametrize("chunks", [((0, 50), (31, 9)), ((64, 33),)])
@pytest.mark.parametrize("group", [1, 3])
def test_dense_attention_equals_the_reference(
    chunks: tuple[tuple[int, int], ...], group: int
) -> None:
    case = make_case(shape_of(BASE, chunks=chunks, group=group, value_dim=24))
    tuning = NARROW if group == 1 else None
    found = dense_prefill(
        case.q, case.cache.k, case.cache.v, case.chunks, case.scale, tuning=tuning
    )
    assert relative_error(found, expected_dense(case)) < 1e-5


REAL: dict[str, dict[str, Any]] = {
    "64/4 d128": {"group": 16, "kv_heads": 4, "head_dim": 128, "value_dim": 128},
    "32/8 d128": {"group": 4, "kv_heads": 8, "head_dim": 128, "value_dim": 128},
    "9/3 d64": {"group": 3, "kv_heads": 3, "head_dim": 64, "value_dim": 64},
    "8/8 d128": {"group": 1, "kv_heads": 8, "head_dim": 128, "value_dim": 128},
    "64/1 d64": {"group": 64, "kv_heads": 1, "head_dim": 64, "value_dim": 64},
    "16/2 d256": {"group": 8, "kv_heads": 2, "head_dim": 256, "value_dim": 256},
    "64/4 d192/128": {"group": 16, "kv_heads": 4, "head_dim": 192, "value_dim": 128},
    "10/2 d96": {"group": 5, "kv_heads": 2, "head_dim": 96, "value_dim": 96},
}


@pytest.mark.skipif(DEVICE.type == "cpu", reason="this machine has no GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("heads", REAL)
@pytest.mark.parametrize(
    "lengths",
    [
        {},
        {"select_block": 16, "compress_block": 16, "first_slot": 0, "window": 128},
        {"select_block": 128, "num_selected": 8, "importance": "max_pool", "window": 1000},
    ],
)
def test_real_sizes(heads: str, dtype: torch.dtype, lengths: dict[str, Any]) -> None:
    shape = Shape(
        spec=paper_spec(**lengths),
        chunks=((0, 1300), (4091, 700), (2048, 64)),
        page_size=max(64, lengths.get("select_block", 64)),
        dtype=dtype,
        **REAL[heads],
    )
    case = make_case(shape)
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    found = sparse_prefill(
        case.q, case.q, case.gates, case.cache, case.chunks, shape.spec, case.scale
    )
    assert relative_error(found, expected(case)) < bound
    dense = dense_prefill(case.q, case.cache.k, case.cache.v, case.chunks, case.scale)
    assert relative_error(dense, expected_dense(case)) < bound


def random_shape(seed: int) -> Shape:
    """Lengths, rules and sizes drawn together."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    stride = draw(1, 4)
    overlap, per_block = draw(1, 5), draw(1, 5)
    block = stride * per_block
    n = 2 * draw(1, 4)
    init, local = draw(0, 1), draw(0, 1)
    strict = bool(draw(0, 1))
    left = bool(draw(0, 1))
    spec = SparseSpec(
        compress_block=stride * overlap,
        compress_stride=stride,
        select_block=block,
        num_selected=n,
        window=draw(1, 40),
        first_slot=0 if left else overlap - 1,
        strict=strict,
        importance=("prob_sum", "max_pool", "logit_mean")[draw(0, 2)],
        init_blocks=init,
        local_blocks=max(local, 1),
        forced_counted=bool(draw(0, 1)) and init + 1 <= n,
        half_merge=bool(draw(0, 1)) and n >= 4,
        dense_len=draw(0, 30) * draw(0, 1),
        uses=(bool(draw(0, 1)), True, bool(draw(0, 1))),
    )
    return Shape(
        spec=spec,
        chunks=tuple((draw(0, 90), draw(1, 40)) for _ in range(draw(1, 3))),
        kv_heads=draw(1, 2),
        group=draw(1, 5),
        head_dim=8 * draw(1, 5),
        value_dim=8 * draw(1, 5),
        page_size=block * draw(1, 3),
        memory=draw(0, 2),
        independent=bool(draw(0, 1)),
        seed=seed,
    )


def check_random_shape(seed: int) -> None:
    case = make_case(random_shape(seed))
    tuning = NARROW if seed % 3 == 0 else wide(case, selected_fixed_top=seed % 3 == 1)
    assert relative_error(run(case, tuning), expected(case)) < 1e-5


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes(seed: int) -> None:
    check_random_shape(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 150))
def test_more_random_shapes(seed: int) -> None:
    check_random_shape(seed)
