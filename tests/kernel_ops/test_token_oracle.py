"""Every entry of the caches says which token it is, and every answer which entry was read.

The real scheduler hands out pages, the real kernels write and read them: interpreted here, compiled
where there is a GPU. docs/reliability.md says what came out.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from nsa_kernels.decode import sparse_decode
from nsa_kernels.dispatch import LayerKernels, layer_kernels
from nsa_kernels.prefill.layer import sparse_prefill
from nsa_kernels.prefill.tuning import PrefillTuning
from nsa_kernels.spec import SparseSpec
from tests.support.device_kernels import torch_kernels
from tests.support.kernel_cases import SMALL
from tests.support.oracle import faults
from tests.support.oracle.faults import Fault
from tests.support.oracle.layer import OracleShape
from tests.support.oracle.tally import Tally
from tests.support.oracle.world import TokenOracle
from tests.support.specs import paper_spec

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

SPEC = SparseSpec(
    compress_block=8,
    compress_stride=4,
    select_block=8,
    num_selected=4,
    window=10,
    first_slot=1,
    init_blocks=1,
    local_blocks=1,
)
STRICT = replace(SPEC, strict=True)
WITHOUT_OVERLAP = replace(
    SPEC, compress_stride=8, first_slot=0, num_selected=2, init_blocks=0, local_blocks=0
)
TINY = OracleShape(
    spec=SPEC, group=8, num_pages=10, max_len=64, max_output=6, max_seqs=4, budget=32
)
"""The interpreter takes long for a step: sequences that end soon, and few pages. It
multiplies no bfloat16."""
SHAPES = {
    "shared": TINY,
    "independent": replace(
        TINY,
        spec=STRICT,
        independent=True,
        raw_phi=True,
        weighted=True,
        interleaved=True,
        dtype=torch.float16 if DEVICE.type == "cpu" else torch.bfloat16,
    ),
    "raw keys for φ": replace(TINY, raw_phi=True, dtype=torch.float16),
    "learned": replace(TINY, learned=True, independent=True),
    "without overlap": replace(TINY, spec=WITHOUT_OVERLAP, group=1, kv_heads=3),
    "long pages": replace(
        TINY,
        spec=replace(SPEC, compress_block=16, select_block=16, window=5, first_slot=3),
        value_dim=64,
        head_dim=48,
        page_size=32,
        group=3,
        max_len=120,
    ),
}


def kernels_under_test() -> LayerKernels:
    """Cut into as many parts as the real constants cut longer contexts, where interpreted."""
    kernels = layer_kernels(DEVICE, "sdpa")
    if DEVICE.type == "cuda":
        return kernels
    return replace(
        kernels,
        sparse_decode=partial(sparse_decode, tuning=replace(SMALL, merge_step=16)),
        sparse_prefill=partial(sparse_prefill, tuning=PrefillTuning(select_queries=32)),
    )


def check(shape: OracleShape, seed: int, num_reads: int) -> None:
    """Until so much was read, and everything that can happen to a page did."""
    oracle = TokenOracle(shape, kernels_under_test(), DEVICE, seed=seed)
    tally = oracle.run(lambda tally: tally.reads >= num_reads and is_complete(tally))
    assert not tally.wrong, tally.first_wrong
    assert tally.steps < 1_000, tally


def is_complete(tally: Tally) -> bool:
    seen = (tally.padding, tally.preemptions, tally.tokens_shared, tally.pages_reused)
    return tally.slots_of_rows >= 30 and min(seen) > 0


@pytest.mark.parametrize(("name", "seed"), [("shared", 122), ("independent", 146)])
def test_what_was_read_is_what_was_asked_for(name: str, seed: int) -> None:
    check(SHAPES[name], seed, 1_000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SHAPES)
def test_what_was_read_is_what_was_asked_for_in_every_shape(name: str, seed: int) -> None:
    check(SHAPES[name], seed, 10_000)


@pytest.mark.parametrize("name", SHAPES)
def test_torch_in_the_place_of_kernels_reads_what_it_is_asked_for(name: str) -> None:
    shape = replace(SHAPES[name], dtype=torch.float32)
    oracle = TokenOracle(shape, torch_kernels(), CPU, poison=1e4)
    tally = oracle.run(lambda tally: tally.steps >= 60)
    assert not tally.wrong, tally.first_wrong
    assert is_complete(tally), tally


FAULTS: dict[str, tuple[Fault, SparseSpec]] = {
    fault.__name__: (fault, spec)
    for fault, spec in (
        (faults.rows_of_the_block_table_swapped, SPEC),
        (faults.chunks_of_the_block_table_swapped, SPEC),
        (faults.slot_index_too_large, SPEC),
        (faults.slot_index_too_small, SPEC),
        (faults.stale_page, SPEC),
        (faults.token_one_page_off, SPEC),
        (faults.slots_seen_early, STRICT),
        (faults.slots_seen_late, SPEC),
        (faults.window_too_wide, SPEC),
        (faults.window_too_narrow, SPEC),
    )
}


def find(name: str, kernels: LayerKernels, device: torch.device, seed: int, poison: float) -> None:
    """Run with a fault that strikes once, or to the end where it is a rule that is wrong."""
    fault, spec = FAULTS[name]
    oracle = TokenOracle(
        replace(TINY, spec=spec),
        kernels,
        device,
        seed=seed,
        poison=poison,
        fault=fault,
        fault_from=4,
        fault_lasts=name.startswith(("slots_seen", "window")),
    )
    tally = oracle.run(lambda tally: tally.steps >= 150)
    assert oracle.struck_in is not None, "the fault was never planted"
    assert tally.wrong > 0, f"a fault in step {oracle.struck_in} was not found"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, seed: int) -> None:
    if DEVICE.type == "cuda":
        find(name, kernels_under_test(), DEVICE, seed, torch.nan)
    else:
        find(name, torch_kernels(), CPU, seed, 1e4)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_in_what_interpreted_kernels_read(name: str) -> None:
    find(name, kernels_under_test(), DEVICE, 0, torch.nan)


GPU = OracleShape(
    spec=paper_spec(),
    kv_heads=4,
    group=16,
    head_dim=128,
    value_dim=128,
    page_size=64,
    dtype=torch.bfloat16,
    num_pages=700,
    max_len=4_000,
    max_output=500,
    max_seqs=16,
    budget=512,
)
MILLIONS = {
    "chunks": replace(GPU, max_len=12_000, max_output=256, budget=1024),
    "rows": replace(GPU, max_len=3_000, max_output=1_500, max_seqs=48, budget=1024),
    "three heads a group": replace(
        GPU,
        spec=paper_spec(compress_block=16, compress_stride=8, num_selected=5, strict=True),
        kv_heads=3,
        group=3,
        head_dim=64,
        value_dim=64,
        max_output=1_000,
        raw_phi=True,
        max_seqs=40,
    ),
}
"""Worlds of real sizes, a million slots each."""


@pytest.mark.skipif(DEVICE.type == "cpu", reason="this machine has no GPU")
@pytest.mark.parametrize("name", MILLIONS)
def test_a_million_slots_at_real_sizes(name: str) -> None:
    oracle = TokenOracle(MILLIONS[name], kernels_under_test(), DEVICE, use_graphs=True)
    tally = oracle.run(lambda tally: tally.slots >= 1_000_000)
    print(name, tally)
    assert not tally.wrong, tally.first_wrong
    assert tally.slots >= 1_000_000
    assert min(tally.slots_of_rows, tally.refused, tally.padding, tally.pages_reused) > 0, tally
