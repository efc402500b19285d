"""Tiles fit into a multiprocessor's shared memory, for every shape of heads and blocks."""

import itertools
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

import nsa_kernels.prefill.tuning as tuning_module
from nsa_kernels.prefill.sizes import Heads, selected_steps
from nsa_kernels.prefill.tuning import (
    SHARED_BYTES,
    PrefillTuning,
    Tile,
    fit_tile,
    fitted,
    shared_bytes,
)
from tests.kernel_ops.test_prefill import NARROW, run, shape_of
from tests.support.dialects import BASE
from tests.support.prefill_cases import expected, make_case, relative_error

F32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize(
    ("tile", "dtype", "head_dim", "value_dim", "taken"),
    [
        # flash
        (Tile(128, 64, 2), BF16, 128, 128, 98304),
        (Tile(128, 64, 2), BF16, 192, 128, 131072),
        (Tile(64, 64, 2), BF16, 256, 256, 163840),
        (Tile(64, 32, 2), F32, 128, 128, 131072),
        (Tile(64, 32, 2), F32, 192, 128, 172032),
        (Tile(64, 32, 2), F32, 256, 256, 262144),
        # scores
        (Tile(256, 64, 3), BF16, 128, 0, 115712),
        (Tile(128, 64, 3), BF16, 256, 0, 164864),
        (Tile(64, 32, 3), F32, 128, 0, 100352),
        (Tile(64, 32, 3), F32, 192, 0, 149504),
        (Tile(64, 32, 3), F32, 256, 0, 200704),
        # selected
        (Tile(64, 64, 2), BF16, 128, 128, 82944),
        (Tile(64, 64, 2), BF16, 192, 128, 107520),
        (Tile(64, 128, 2), BF16, 256, 256, 295936),
        (Tile(32, 64, 2), F32, 128, 128, 114692),
        (Tile(32, 64, 2), F32, 256, 256, 213008),
        (Tile(32, 128, 2), F32, 192, 128, 245764),
    ],
)
def test_no_less_is_counted_than_compilers_take(
    tile: Tile, dtype: torch.dtype, head_dim: int, value_dim: int, taken: int
) -> None:
    """`taken` is what Triton 3.6 reported of these kernels for compute capability 9.0."""
    assert shared_bytes(tile, dtype, head_dim, value_dim) >= taken


DIMS = [(16, 16), (24, 12), (64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (128, 256)]


@pytest.mark.parametrize("dtype", [F32, BF16, torch.float16])
@pytest.mark.parametrize(("head_dim", "value_dim"), DIMS)
def test_default_tiles_fit(dtype: torch.dtype, head_dim: int, value_dim: int) -> None:
    def fits(tile: Tile, value_dim: int = value_dim) -> bool:
        return shared_bytes(tile, dtype, head_dim, value_dim) <= SHARED_BYTES

    for group, block in itertools.product([1, 3, 16, 64], [4, 16, 48, 64, 128, 256]):
        heads = Heads(
            kv_heads=1,
            group=group,
            head_dim=head_dim,
            value_dim=value_dim,
            page_size=block,
            compute=dtype,
            tuning=fitted(None, dtype, head_dim, value_dim, group),
        )
        tuning = heads.tuning
        flash_keys = max(tuning.flash_slots, tuning.flash_keys)
        flash_rows = heads.flash_queries * heads.group_padded
        assert fits(Tile(flash_rows, flash_keys, tuning.flash_stages))
        columns = heads.score_queries * heads.group_padded
        assert fits(Tile(columns, tuning.score_slots, tuning.score_stages), 0)
        steps = selected_steps(heads, block)
        assert fits(Tile(heads.selected_rows, steps.keys, steps.stages))
        assert steps.keys >= 16  # the least of a product
        assert steps.keys * steps.parts >= steps.blocks * block
        assert steps.blocks == 1 or steps.parts == 1


def test_what_gives_way_first() -> None:
    least = Tile(32, 16, 1)
    assert fit_tile(Tile(64, 64, 2), least, BF16, 128, 128) == Tile(64, 64, 2)
    assert fit_tile(Tile(64, 128, 2), least, BF16, 256, 256) == Tile(64, 128, 1)
    assert fit_tile(Tile(64, 256, 2), least, BF16, 256, 256) == Tile(32, 128, 1)
    assert fit_tile(Tile(16, 1 << 20, 2), Tile(16, 1 << 20, 1), F32, 16, 16).stages == 1


@pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")
@pytest.mark.parametrize(("block", "fixed_top"), [(48, False), (64, True)])
def test_blocks_that_do_not_fit_are_read_in_parts(
    monkeypatch: pytest.MonkeyPatch, block: int, fixed_top: bool
) -> None:
    spec = replace(
        shape_of(BASE).spec, select_block=block, compress_block=8, compress_stride=4, first_slot=1
    )
    case = make_case(
        replace(shape_of(BASE, chunks=((3 * block, 40),)), spec=spec, kv_heads=1, page_size=block)
    )
    monkeypatch.setattr(tuning_module, "SHARED_BYTES", 20 * 1024)
    tuning = replace(NARROW, selected_fixed_top=fixed_top, select_queries=32)
    heads = Heads.of(case.q, case.cache.k, case.cache.v, tuning)
    assert selected_steps(heads, block).parts > 1
    assert relative_error(run(case, tuning), expected(case)) < 1e-5


def test_sizes_that_are_given_are_kept() -> None:
    given = PrefillTuning(flash_rows=32)
    assert fitted(given, F32, 256, 256) is given


def test_registers_are_limited_only_where_results_leave_room() -> None:
    assert fitted(None, BF16, 128, 128).flash_registers == 128
    assert fitted(None, BF16, 256, 256).flash_registers is None
    assert fitted(None, F32, 64, 64).flash_registers is None
