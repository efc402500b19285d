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
from tests.support.oracle.shapes import LARGE, SHAPES, SPEC, STRICT, TINY
from tests.support.oracle.tally import Tally
from tests.support.oracle.world import TokenOracle

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")


def kernels_under_test() -> LayerKernels:
    """Cut into as many parts as the real constants cut longer contexts, where interpreted."""
    kernels = layer_kernels(DEVICE, "sdpa")  # no layer here is dense
    if DEVICE.type == "cuda":
        return kernels
    return replace(
        kernels,
        sparse_decode=partial(sparse_decode, tuning=replace(SMALL, merge_step=16)),
        sparse_prefill=partial(sparse_prefill, tuning=PrefillTuning(select_queries=32)),
    )


def check(shape: OracleShape, seed: int, num_reads: int) -> None:
    """Until so much was read, and everything that can happen to a page has."""
    oracle = TokenOracle(shape, kernels_under_test(), DEVICE, seed=seed)
    tally = oracle.run(
        lambda tally: (tally.reads >= num_reads and is_complete(tally)) or tally.steps >= 2_000
    )
    assert not tally.wrong, tally.first_wrong
    assert is_complete(tally), tally


def is_complete(tally: Tally) -> bool:
    seen = (tally.padding, tally.preemptions, tally.tokens_shared, tally.pages_reused)
    return tally.slots_of_rows >= 20 and min(seen) > 0


@pytest.mark.parametrize(
    ("name", "seed", "num_reads"), [("shared", 61, 1_000), ("independent", 146, 500)]
)
def test_what_was_read_is_what_was_asked_for(name: str, seed: int, num_reads: int) -> None:
    check(SHAPES[name], seed, num_reads)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", SHAPES)
def test_what_was_read_is_what_was_asked_for_in_every_shape(name: str, seed: int) -> None:
    check(SHAPES[name], seed, 3_000)


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


@pytest.mark.skipif(DEVICE.type == "cpu", reason="this machine has no GPU")
@pytest.mark.parametrize("name", LARGE)
def test_a_million_slots_at_real_sizes(name: str) -> None:
    oracle = TokenOracle(LARGE[name], kernels_under_test(), DEVICE, use_graphs=True)
    tally = oracle.run(lambda tally: tally.slots >= 1_000_000)
    print(name, tally)
    assert not tally.wrong, tally.first_wrong
    assert tally.slots >= 1_000_000
    assert min(tally.slots_of_rows, tally.refused, tally.padding, tally.pages_reused) > 0, tally
