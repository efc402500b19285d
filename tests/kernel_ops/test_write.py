"""The kernel that norms, rotates and writes, against torch: what is written where, and what is
left alone."""

from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import CacheLayout, LayerCache
from nsa_kernels.write.averages import Average, Averages, RowSlots
from nsa_kernels.write.rotate import HeadNorm, OwnBranches, rotate_and_write
from nsa_kernels.write.slots import complete_decode_slots, complete_slots
from nsa_serve.model.norm import RMSNorm
from nsa_serve.model.rope import Rope
from tests.support.dialects import model_config
from tests.support.specs import paper_spec
from tests.support.written import (
    DEVICE,
    Tokens,
    nan_cache,
    random,
    scattered_tables,
    slots_of,
    tokens_of,
)

PAGE, TOLERANCE = 8, {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}


class Shape(msgspec.Struct, kw_only=True, frozen=True):
    heads: int = 4
    kv_heads: int = 2
    dim: int = 8
    value_dim: int = 8
    dtype: Any = torch.float32
    interleaved: bool = False
    norm: bool = False
    own: bool = False
    apart: bool = False
    rotate_phi: bool = False
    by_position: bool = True


SHAPES = {
    "plain": Shape(),
    "odd_group_and_dims": Shape(heads=9, kv_heads=3, dim=12, value_dim=20),
    "interleaved": Shape(interleaved=True, dim=12),
    "bfloat16": Shape(dtype=torch.bfloat16, dim=16, value_dim=16),
    "float16_normed": Shape(dtype=torch.float16, dim=16, value_dim=12, norm=True),
    "normed": Shape(norm=True, dim=12, heads=6),
    "normed_pairs": Shape(norm=True, interleaved=True, by_position=False, dim=12),
    "raw_phi_keys": Shape(apart=True, norm=True),
    "own_branches": Shape(own=True, rotate_phi=True, value_dim=4),
    "own_raw_branches": Shape(own=True, norm=True),
    "many_heads": Shape(heads=40, kv_heads=20, dim=64, value_dim=64, by_position=False),
}


class Case:
    """A step of tokens through the kernel and through torch."""

    def __init__(self, shape: Shape, tokens: Tokens, num_pages: int, stride: int = 4) -> None:
        self.shape, self.tokens = shape, tokens
        h, kv, d, dv = shape.heads, shape.kv_heads, shape.dim, shape.value_dim
        count = len(tokens.positions)
        names = {"q": h * d, "k": kv * d, "v": kv * dv}
        if shape.own:
            names |= {"k_window": kv * d, "v_window": kv * dv, "k_phi": kv * d, "v_phi": kv * dv}
        joined = random(count, sum(names.values()) + 3, seed=count, dtype=shape.dtype)
        parts = joined[:, : sum(names.values())].split(list(names.values()), -1)
        self.x = {
            name: part.unflatten(-1, (-1, dv if name.startswith("v") else d))
            for name, part in zip(names, parts, strict=True)
        }
        config = model_config(None, head_dim=d, rope_interleaved=shape.interleaved)
        self.rope = Rope(config, DEVICE)
        self.norms = [RMSNorm(d, 1e-5).to(DEVICE, shape.dtype) for _ in range(2)]
        for i, norm in enumerate(self.norms):
            norm.weight.data = random(d, seed=50 + i, dtype=shape.dtype)
        layout = CacheLayout(
            num_kv_heads=kv,
            head_dim=d,
            value_dim=dv,
            page_size=PAGE,
            stride=stride,
            independent_kv=shape.own,
            raw_phi_keys=shape.apart,
        )
        self.cache = nan_cache(layout, num_pages, shape.dtype)

    def table(self, length: int = 64) -> Tensor:
        """cos and sin of every position."""
        return torch.cat(self.rope.angles(torch.arange(length, device=DEVICE)), -1)

    def run(self, slots: RowSlots | None = None) -> tuple[Tensor, Tensor]:
        """(rotated queries, raw queries)"""
        s, x, positions = self.shape, self.x, self.tokens.positions
        raw = torch.empty_like(x["q"].contiguous())
        table = self.table()
        own = None
        if s.own:
            own = OwnBranches(
                x["k_window"], x["v_window"], x["k_phi"], x["v_phi"], rotate_phi=s.rotate_phi
            )
        norm = HeadNorm(self.norms[0].weight, self.norms[1].weight, 1e-5) if s.norm else None
        out = rotate_and_write(
            x["q"],
            x["k"],
            x["v"],
            table if s.by_position else table[positions.clamp_min(0)],
            positions if s.by_position else None,
            self.tokens.places(PAGE),
            self.cache,
            interleaved=s.interleaved,
            norm=norm,
            raw_queries=raw,
            own=own,
            slots=slots,
        )
        return out, raw

    def expected(self) -> dict[str, Tensor]:
        """Of every token: what torch makes of it."""
        s, x = self.shape, self.x
        rotate = self.rope.at(self.tokens.positions.clamp_min(0))

        def normed(value: Tensor, which: int) -> Tensor:
            return (self.norms[which](value) if s.norm else value).float()

        q_raw, k_raw = normed(x["q"], 0), normed(x["k"], 1)
        out = {"q": rotate(q_raw), "q_raw": q_raw, "k": rotate(k_raw), "v": x["v"]}
        if s.own:
            k_phi = normed(x["k_phi"], 1)
            out |= {
                "k_window": rotate(normed(x["k_window"], 1)),
                "v_window": x["v_window"],
                "phi_k": rotate(k_phi) if s.rotate_phi else k_phi,
                "phi_v": x["v_phi"],
            }
        elif s.apart:
            out["phi_k"] = k_raw
        return {name: value.float() for name, value in out.items()}

    def close(self, found: Tensor, expected: Tensor) -> None:
        tolerance = TOLERANCE[self.shape.dtype]
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def written(cache: Tensor, places: Tensor) -> Tensor:
    """[T, kv_heads, dim] at places of a cache."""
    return cache[places // PAGE, :, places % PAGE]


@pytest.mark.parametrize("name", SHAPES)
def test_everything_goes_where_it_belongs_and_nowhere_else(name: str) -> None:
    table = scattered_tables(3, 3)
    tokens = tokens_of(table, [[7, 8, 9], [-1, 0], [17]])
    case = Case(SHAPES[name], tokens, num_pages=9)
    with torch.no_grad():
        expected = case.expected()
    q, raw = case.run()
    valid = tokens.positions >= 0
    case.close(q[valid], expected.pop("q")[valid])
    case.close(raw[valid], expected.pop("q_raw")[valid])
    places = tokens.places(PAGE)[valid]
    for field, values in expected.items():
        cache = getattr(case.cache, field)
        case.close(written(cache, places), values[valid])
        cache[places // PAGE, :, places % PAGE] = torch.nan
    for tensor in case.cache.tensors:
        assert bool(tensor.isnan().all())


def test_a_token_gets_the_same_bits_in_any_step() -> None:
    table = scattered_tables(4, 3)
    together = Case(SHAPES["normed"], tokens_of(table, [[5, 6], [0], [20], [13]]), 12)
    q, _ = together.run()
    alone = Case(SHAPES["normed"], tokens_of(table, [[], [], [20], []]), 12)
    alone.x = {name: value[3:4] for name, value in together.x.items()}
    found, _ = alone.run()
    assert torch.equal(found[0], q[3])
    place = alone.tokens.places(PAGE)
    assert torch.equal(written(alone.cache.k, place), written(together.cache.k, place))


def averages(shape: Shape, case: Case, **changes: Any) -> dict[str, Averages]:
    """Mean, and weighted with positions, of l = 8 and d = 4."""
    kv, d, dv = shape.kv_heads, shape.dim, shape.value_dim
    fields = {"compress_block": 8, "compress_stride": 4, "select_block": 8, "first_slot": 1}
    spec = paper_spec(**{**fields, **changes})
    table = case.table() if shape.apart else None
    weighted_keys = Average(
        random(kv, 8, seed=1), random(kv, d, seed=2), table, interleaved=shape.interleaved
    )
    weighted_values = Average(random(kv, 8, seed=3), random(kv, dv, seed=4))
    return {
        "mean": Averages(spec, Average(), Average()),
        "weighted": Averages(spec, weighted_keys, weighted_values),
    }


def slot_by_definition(case: Case, phi: Averages, row: int, slot: int) -> tuple[Tensor, Tensor]:
    """([kv_heads, D], [kv_heads, Dv]) from the tokens in the pages, in float64."""
    l, d = phi.spec.compress_block, phi.spec.compress_stride  # noqa: E741
    out = []
    for cache, phi_of in ((case.cache.phi_k, phi.keys), (case.cache.phi_v, phi.values)):
        total = torch.zeros(cache.shape[1], cache.shape[3], dtype=torch.float64, device=DEVICE)
        for i in range(l):
            token = (slot + 1) * d - l + i
            if token >= 0:
                page = int(case.tokens.block_table[row, token // PAGE])
                value = cache[page, :, token % PAGE].double()
                weight = 1 / l if phi_of.weights is None else phi_of.weights[:, i, None].double()
                total += weight * value
        if phi_of.bias is not None:
            total += phi_of.bias
        if phi_of.cos_sin is not None:
            first = torch.tensor([(slot + 1) * d - l], device=DEVICE)
            total = case.rope.at(first)(total.float()[None])[0].double()
        out.append(total.float())
    return out[0], out[1]


def slot_in(cache: Tensor, block_table: Tensor, row: int, slot: int) -> Tensor:
    per_page = cache.shape[2]
    return cache[int(block_table[row, slot // per_page]), :, slot % per_page]


def filled(shape: Shape, positions: list[list[int]]) -> Case:
    """A case whose last token of each row is still to be written; the others are in the pages."""
    table = scattered_tables(len(positions), 3)
    case = Case(shape, tokens_of(table, positions), num_pages=3 * len(positions))
    places = tokens_of(table, [list(range(max(row))) for row in positions]).places(PAGE)
    for i, tensor in enumerate(case.cache.tensors):
        if tensor.shape[2] == PAGE:
            values = random(len(places), shape.kv_heads, tensor.shape[3], seed=60 + i)
            tensor[places // PAGE, :, places % PAGE] = values.to(tensor.dtype)
    return case


SLOT_SHAPES = {
    "plain": Shape(),
    "bfloat16": Shape(dtype=torch.bfloat16, dim=12, value_dim=20, kv_heads=3, heads=3),
    "raw_phi_keys": Shape(apart=True, dim=12),
    "raw_phi_pairs": Shape(apart=True, interleaved=True, norm=True),
    "own_branches": Shape(own=True, value_dim=4),
}
AT = [[7], [23], [3], [10], [-1]]
COMPLETED = [(0, 1), (1, 5), (2, 0)]


def rows_of(case: Case) -> DecodeRows:
    return case.tokens.as_rows()


def snapshot(cache: LayerCache) -> list[Tensor]:
    return [tensor.clone() for tensor in cache.tensors]


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(
        torch.equal(x.nan_to_num(777.0), y.nan_to_num(777.0)) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "kind", "left"),
    [
        *((name, kind, False) for name in SLOT_SHAPES for kind in ("mean", "weighted")),
        ("plain", "mean", True),
        ("raw_phi_pairs", "weighted", True),
    ],
)
def test_slots_are_made_alike_by_the_writer_by_rows_and_by_list(
    name: str, kind: str, left: bool
) -> None:
    shape = SLOT_SHAPES[name]
    case = filled(shape, AT)
    phi = averages(shape, case, first_slot=0 if left else 1)[kind]
    rows = rows_of(case)
    case.run(RowSlots(rows, phi))
    caches = [snapshot(case.cache)]
    compressed = case.cache.k_compressed, case.cache.v_compressed
    for way in ("rows", "list"):
        for tensor in compressed:
            assert tensor is not None
            tensor.fill_(torch.nan)
        if way == "rows":
            complete_decode_slots(case.cache, rows, phi)
        else:
            work = [*COMPLETED, (3, -1)] if left else [w for w in COMPLETED if w[1] > 0]
            complete_slots(case.cache, slots_of(case.tokens.block_table, work), phi)
        caches.append(snapshot(case.cache))
    assert same_bits(caches[0], caches[1])
    assert same_bits(caches[0], caches[2])
    assert case.cache.k_compressed is not None
    assert case.cache.v_compressed is not None
    made = [w for w in COMPLETED if left or w[1] > 0]
    for row, slot in made:
        keys, values = slot_by_definition(case, phi, row, slot)
        table = case.tokens.block_table
        case.close(slot_in(case.cache.k_compressed, table, row, slot), keys)
        case.close(slot_in(case.cache.v_compressed, table, row, slot), values)
    for tensor in (case.cache.k_compressed, case.cache.v_compressed):
        assert int((~tensor.isnan()).any(-1).any(1).sum()) == len(made)


def test_one_slot_of_four_strides_over_several_pages() -> None:
    shape = Shape(dim=4, value_dim=4, kv_heads=1, heads=1)
    case = filled(shape, [[22], [23]])
    case.run()
    phi = averages(shape, case, compress_block=16, first_slot=3)["mean"]
    complete_slots(case.cache, slots_of(case.tokens.block_table, [(1, 5), (0, 4), (1, 3)]), phi)
    assert case.cache.k_compressed is not None
    for row, slot in ((1, 5), (0, 4), (1, 3)):
        keys, _ = slot_by_definition(case, phi, row, slot)
        case.close(slot_in(case.cache.k_compressed, case.tokens.block_table, row, slot), keys)


def test_keys_alone_where_values_are_not_compressed() -> None:
    shape = Shape()
    case = filled(shape, [[7]])
    phi = averages(shape, case)["mean"]
    keys_only = LayerCache(
        page_size=PAGE,
        **{
            name: getattr(case.cache, name)
            for name in ("k", "v", "k_window", "v_window", "phi_k", "phi_v", "k_compressed")
        },
    )
    case.cache = keys_only
    case.run(RowSlots(rows_of(case), phi))
    expected, _ = slot_by_definition(case, phi, 0, 1)
    assert keys_only.k_compressed is not None
    case.close(slot_in(keys_only.k_compressed, case.tokens.block_table, 0, 1), expected)
    keys_only.k_compressed.fill_(torch.nan)
    complete_decode_slots(keys_only, rows_of(case), phi)
    case.close(slot_in(keys_only.k_compressed, case.tokens.block_table, 0, 1), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 64), (64, 4, 192), (9, 3, 96)])
def test_real_shapes_complete_slots_alike(heads: int, kv_heads: int, dim: int) -> None:
    """A page of 64 tokens, l = 32, d = 16: the rows' kernel and the writer's, bit for bit."""
    page, rows = 64, 33
    layout = CacheLayout(
        num_kv_heads=kv_heads, head_dim=dim, value_dim=128, page_size=page, stride=16
    )
    cache = nan_cache(layout, 4 * rows, torch.bfloat16)
    cache.k.copy_(random(*cache.k.shape, seed=0, dtype=torch.bfloat16))
    cache.v.copy_(random(*cache.v.shape, seed=1, dtype=torch.bfloat16))
    table = scattered_tables(rows, 4)
    positions = torch.arange(rows, dtype=torch.int32, device=DEVICE) * 5 + 95
    decode = DecodeRows(positions, table, max_context=256)
    q, k, v = (
        random(rows, h, d, seed=2 + h, dtype=torch.bfloat16)
        for h, d in ((heads, dim), (kv_heads, dim), (kv_heads, 128))
    )
    rope = Rope(model_config(None, head_dim=dim), DEVICE)
    cos_sin = torch.cat(rope.angles(torch.arange(256, device=DEVICE)), -1)
    phi = Averages(paper_spec(), Average(), Average())
    tokens = Tokens(positions.long(), torch.arange(rows, device=DEVICE), table)
    places = tokens.places(page)
    out = rotate_and_write(q, k, v, cos_sin, positions, places, cache, slots=RowSlots(decode, phi))
    rotate = rope.at(positions)
    torch.testing.assert_close(out.float(), rotate(q.float()), rtol=1e-2, atol=1e-2)
    stored = cache.k[places // page, :, places % page]
    torch.testing.assert_close(stored.float(), rotate(k.float()), rtol=1e-2, atol=1e-2)
    before = snapshot(cache)
    assert cache.k_compressed is not None
    assert cache.v_compressed is not None
    assert bool((~cache.k_compressed.isnan()).any())
    cache.k_compressed.fill_(torch.nan)
    cache.v_compressed.fill_(torch.nan)
    complete_decode_slots(cache, decode, phi)
    assert same_bits(before, snapshot(cache))
