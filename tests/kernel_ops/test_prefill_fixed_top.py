"""Logits taken relative to the maximum of one tile: right however far they are from it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from nsa_kernels.prefill.layer import sparse_prefill
from nsa_kernels.prefill.tuning import PrefillTuning
from tests.kernel_ops.test_prefill import NARROW, shape_of
from tests.support.dialects import BASE
from tests.support.prefill_cases import (
    Case,
    Shape,
    expected,
    make_case,
    relative_error,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning"),
]

FIXED = replace(NARROW, selected_fixed_top=True)
FOLLOWED = replace(NARROW, selected_fixed_top=False)


def run(case: Case, tuning: PrefillTuning) -> Tensor:
    return sparse_prefill(
        case.q,
        case.q_compressed,
        case.gates,
        case.cache,
        case.chunks,
        case.shape.spec,
        case.scale,
        memory=case.memory,
        tuning=tuning,
    )


def sloped(logit: Callable[[Tensor], Tensor], shape: Shape) -> Case:
    """A case of one sequence whose logits differ by about logit(t) at token t, for every query."""
    case = make_case(shape)
    table = case.chunks.block_table[0].long()
    case.q[..., 0] = 4.0
    for cache, stride in ((case.cache.k, 1), (case.cache.k_compressed, shape.spec.compress_stride)):
        assert cache is not None
        entries = cache.shape[2]
        index = torch.arange(sum(shape.chunks[0]) // stride, device=cache.device)
        value = logit(index.float() * stride) / (4.0 * case.scale)
        rows = table[index // entries]
        kept = ~cache[rows, :, index % entries, 0].isnan()  # what is not written stays so
        cache[rows, :, index % entries, 0] = torch.where(kept, value[:, None], torch.nan)
    return case


SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "rises": lambda t: t * 2.5,
    "falls": lambda t: t * -2.5,
    "jumps": lambda t: torch.where(t < 40, -150.0, 90.0),
    "all far below 0": lambda t: t * 0.0 - 140.0,
    "rises within the range": lambda t: t * 0.3,
}


@pytest.mark.parametrize(
    ("slope", "group"),
    [
        ("rises", 1),
        ("falls", 4),
        ("jumps", 4),
        ("all far below 0", 1),
        *(pytest.param(slope, 3, marks=pytest.mark.slow) for slope in SLOPES),
    ],
)
def test_maxima_far_from_the_first_tile(slope: str, group: int) -> None:
    """A group of 1 makes tiles of many queries, whose windows begin behind the first tile."""
    case = sloped(
        SLOPES[slope], shape_of(BASE, chunks=((3, 83),), kv_heads=1, group=group, memory=0)
    )
    found = run(case, FIXED)
    assert relative_error(found, expected(case)) < 1e-4  # logits of hundreds in float32
    assert relative_error(found, run(case, FOLLOWED).double()) < 1e-4


def test_values_that_overflow_before_they_are_divided() -> None:
    """Totals are in range, weights times values are not."""
    case = sloped(lambda t: t * 0.45, shape_of(BASE, chunks=((0, 80),), kv_heads=1))
    scale = 2.0**100
    for cache in (case.cache.v, case.cache.v_compressed):
        assert cache is not None
        cache.mul_(scale)
    assert relative_error(run(case, FIXED) / scale, expected(case) / scale) < 1e-4


def test_a_row_that_is_no_number_stays_alone() -> None:
    case = make_case(shape_of(BASE, chunks=((20, 30),)))
    clean = run(case, FIXED)
    case.q[7, 1, 3] = torch.nan
    case.q[9, 2, 5] = torch.inf
    found = run(case, FIXED)
    assert bool(found[7, 1].isnan().all())
    assert bool(found[9, 2].isnan().all())
    broken = torch.zeros(found.shape[:2], dtype=torch.bool, device=found.device)
    broken[7, :2] = broken[9, 2:] = True  # heads of a group choose their blocks together
    assert torch.equal(found[~broken], clean[~broken])


def test_most_rows_are_computed_once() -> None:
    """With logits as they are usually, what is fixed gives what is followed, but for rounding."""
    case = make_case(shape_of(BASE, chunks=((0, 60),)))
    fixed, followed = run(case, FIXED), run(case, FOLLOWED)
    assert not torch.equal(fixed, followed)
    assert relative_error(fixed, followed.double()) < 1e-6


def test_float16_follows_its_maxima() -> None:
    case = make_case(shape_of(BASE, chunks=((0, 40),), dtype=torch.float16))
    assert torch.equal(run(case, FIXED), run(case, FOLLOWED))
