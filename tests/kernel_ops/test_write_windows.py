"""Slots of every φ, from windows that kernels gather and scatter, against the torch path."""

import pytest
import torch

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.metadata import SlotWork
from nsa_kernels.write.reference import compress_slots
from nsa_kernels.write.slots import complete_slots
from nsa_kernels.write.windows import (
    compress_learned,
    decode_slots,
    gather_windows,
    scatter_slots,
)
from nsa_serve.model.attention import NSABranches
from nsa_serve.model.averages import averages_of
from nsa_serve.model.paged import cache_layouts
from nsa_serve.model.rope import Rope
from tests.support.dialects import MODELS, model_config, random_decoder
from tests.support.specs import paper_spec
from tests.support.written import DEVICE, nan_cache, random, scattered_tables, slots_of

PAGE, NUM_TOKENS = 16, 48
NSA_MODELS = sorted(name for name, config in MODELS.items() if "nsa" in config.kinds)


def filled_cache(name: str, rows: int) -> LayerCache:
    """Random tokens everywhere, NaN in every slot."""
    config = MODELS[name]
    layout = cache_layouts(config, PAGE)[config.kinds.index("nsa")]
    cache = nan_cache(layout, rows * NUM_TOKENS // PAGE, torch.float32)
    for i, tensor in enumerate(cache.tensors):
        if tensor.shape[2] == PAGE:
            tensor.copy_(random(*tensor.shape, seed=i))
    return cache


@pytest.mark.parametrize("name", NSA_MODELS)
@torch.no_grad()
def test_every_dialect_compresses_like_torch(name: str) -> None:
    config = MODELS[name]
    decoder = random_decoder(config).to(DEVICE)
    branches = decoder.attentions[config.kinds.index("nsa")].nsa
    assert isinstance(branches, NSABranches)
    spec, rope = branches.spec, Rope(config, DEVICE)
    table = scattered_tables(2, NUM_TOKENS // PAGE)
    last = NUM_TOKENS // spec.compress_stride - 1
    listed = [(0, spec.first_slot), (1, last), (0, last - 1)]

    expected = filled_cache(name, 2)
    work = slots_of(table, listed)
    compress_slots(
        expected,
        SlotWork(work.slots.long(), table[work.rows.long()].long()),
        spec.compress_block,
        spec.compress_stride,
        lambda windows, first: branches.phi_k(windows, first, rope),
        branches.phi_v,
    )

    found = filled_cache(name, 2)
    work = slots_of(table, [(1, -1), *listed])
    cos_sin = torch.cat(rope.angles(torch.arange(NUM_TOKENS, device=DEVICE)), -1)
    phi = averages_of(branches, config.num_kv_heads, cos_sin, interleaved=config.rope_interleaved)
    if phi is not None:
        complete_slots(found, work, phi)
    else:
        compress_learned(
            found,
            work,
            spec,
            lambda windows, first: branches.phi_k(windows, first, rope),
            branches.phi_v,
        )
    for a, b in zip(found.tensors, expected.tensors, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_windows_hold_zeros_before_the_first_token_and_for_padding() -> None:
    """Also where a head is no power of two wide, and a window spans three pages."""
    cache = random(6, 3, 4, 20, seed=1)
    table = scattered_tables(2, 3)
    windows = gather_windows(cache, slots_of(table, [(1, 5), (0, 1), (0, -1)]), 10, 2)
    tokens = cache[table[1].long()].transpose(0, 1).flatten(1, 2)
    assert torch.equal(windows[0], tokens[:, 2:12])
    tokens = cache[table[0].long()].transpose(0, 1).flatten(1, 2)
    assert not bool(windows[1, :, :6].any())
    assert torch.equal(windows[1, :, 6:], tokens[:, :4])
    assert not bool(windows[2].any())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dim", [6, 16])
def test_scattered_results_can_be_rotated_on_the_way(interleaved: bool, dim: int) -> None:
    config = model_config(None, head_dim=dim, rope_interleaved=interleaved)
    rope = Rope(config, DEVICE)
    cos_sin = torch.cat(rope.angles(torch.arange(32, device=DEVICE)), -1)
    target = torch.full((4, 5, 4, dim), torch.nan, device=DEVICE)
    values = random(3, 5, dim, seed=0)
    work = slots_of(scattered_tables(2, 2), [(0, 0), (1, 7), (0, -1)])
    scatter_slots(target, work, values, cos_sin=cos_sin, block=6, stride=2, interleaved=interleaved)
    expected = rope.at(torch.tensor([-4, 10, 0], device=DEVICE))(values)
    table = work.block_table.long()
    torch.testing.assert_close(target[table[0, 0], :, 0], expected[0])
    torch.testing.assert_close(target[table[1, 1], :, 3], expected[1])
    assert int((~target.isnan()).any(-1).any(1).sum()) == 2


def test_an_odd_width_is_scattered_whole() -> None:
    target = torch.full((2, 3, 4, 7), torch.nan, device=DEVICE)
    values = random(1, 3, 7, seed=0)
    scatter_slots(target, slots_of(scattered_tables(1, 2), [(0, 2)]), values)
    assert torch.equal(target[int(scattered_tables(1, 2)[0, 0]), :, 2], values[0])


def test_rows_know_which_slot_their_token_completes() -> None:
    positions = torch.tensor([-1, 0, 14, 15, 16, 31, 47], dtype=torch.int32, device=DEVICE)
    rows = DecodeRows(positions, scattered_tables(7, 1), max_context=64)
    work = decode_slots(rows, paper_spec())
    assert work.slots.tolist() == [-1, -1, -1, -1, -1, 1, 2]
    assert decode_slots(rows, paper_spec(first_slot=0)).slots.tolist()[3] == 0
    assert work.rows.tolist() == list(range(7))
