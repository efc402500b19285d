"""A row's result is the same bits in any batch, at any page placement, under any bound."""

import pytest
import torch

from nsa_kernels.decode import dense_decode
from nsa_serve.model.attention import sparse_spec
from tests.support.dialects import DIALECTS
from tests.support.kernel_cases import SMALL, DecodeCase, Heads, decode_case, run_decode

POSITIONS = [130, 41, -1, 7]


def case_of(name: str) -> DecodeCase:
    nsa = DIALECTS[name]
    return decode_case(
        sparse_spec(nsa),
        POSITIONS,
        Heads(num_heads=2, num_kv_heads=1),
        independent=nsa.branch_kv == "independent",
        memory_slots=nsa.memory_slots,
    )


@pytest.mark.parametrize(
    "name",
    [
        "base",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("lucidrains", "max_pool", "floor", "paper")
        ),
    ],
)
def test_alone_or_in_any_batch_or_pages_or_bound(name: str) -> None:
    case = case_of(name)
    together = run_decode(case)
    assert torch.equal(run_decode(case.only([3, 0, 1])), together[[3, 0, 1]])
    assert torch.equal(run_decode(case.only([0], 2048)), together[:1])
    assert torch.equal(run_decode(case.moved(3)), together)


def test_dense_alone_or_in_any_batch_or_pages_or_bound() -> None:
    case = case_of("base")

    def run(case: DecodeCase) -> torch.Tensor:
        return dense_decode(case.q, case.cache.k, case.cache.v, case.rows, case.scale, tuning=SMALL)

    together = run(case)
    assert torch.equal(run(case.only([3, 1])), together[[3, 1]])
    assert torch.equal(run(case.only([0], 1024)), together[:1])
    assert torch.equal(run(case.moved(5)), together)
