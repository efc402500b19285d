"""Drawing a token from each row: exact top-k and top-p without a sort, no word to the host."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.sample.chunks import (
    best_kernel,
    chunk_for,
    mass_kernel,
    order_keys,
    pack_kernel,
    row_best,
    weights_of,
)
from nsa_kernels.sample.params import RowParams

ROOM = 8192
"""Candidates of a row that are put side by side; a row with more is searched where it is."""
TILE = 4096
"""Candidates that a program looks at together."""
WARPS = 8


def draw(logits: Tensor, params: RowParams, room: int = ROOM) -> Tensor:
    """A token id [N] int64 for each row of logits [N, vocab] of any float type, rows of any
    stride; −1 where the highest is no number (NaN or infinite)."""
    num_rows, vocab = logits.shape
    assert logits.stride(1) == 1
    assert room % 16 == 0
    device = logits.device
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return token_ids
    chunk = chunk_for(vocab)
    num_chunks = triton.cdiv(vocab, chunk)
    chunks = triton.next_power_of_2(num_chunks)
    grid = (num_rows, num_chunks)
    row = logits, logits.stride(0)
    best = torch.empty(grid, dtype=torch.float32, device=device)
    best_ids = torch.empty(grid, dtype=torch.int32, device=device)
    best_kernel[grid](
        *row, best, best_ids, num_rows, num_chunks, VOCAB=vocab, CHUNK=chunk, num_warps=4
    )
    mass = counts = packed_ids = best_ids
    packed = logits
    table = best if params.table is None else params.table
    if params.table is not None:
        mass = torch.empty(grid, dtype=torch.int64, device=device)
        counts = torch.empty(grid, dtype=torch.int32, device=device)
        sizes = {"VOCAB": vocab, "CHUNK": chunk, "CHUNKS": chunks, "num_warps": 4}
        mass_kernel[grid](
            *row,
            table,
            best,
            mass,
            counts,
            num_rows,
            num_chunks,
            FILTERED=params.filtered,
            **sizes,
        )
        if params.filtered:
            packed = torch.empty((num_rows, room), dtype=logits.dtype, device=device)
            packed_ids = torch.empty((num_rows, room), dtype=torch.int32, device=device)
            pack_kernel[grid](
                *row,
                table,
                best,
                counts,
                packed,
                packed_ids,
                num_rows,
                num_chunks,
                ROOM=room,
                **sizes,
            )
    _draw_kernel[(num_rows,)](
        *row,
        table,
        best,
        best_ids,
        mass,
        counts,
        packed,
        packed_ids,
        token_ids,
        num_rows,
        num_chunks,
        VOCAB=vocab,
        CHUNK=chunk,
        CHUNKS=chunks,
        ROOM=room,
        RANDOM=params.table is not None,
        FILTERED=params.table is not None and params.filtered,
        TILE=TILE,
        num_warps=WARPS,
    )
    return token_ids


@triton.jit(do_not_specialize=["num_rows"])
def _draw_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    best: tl.tensor,
    best_ids: tl.tensor,
    mass: tl.tensor,
    counts: tl.tensor,
    packed: tl.tensor,
    packed_ids: tl.tensor,
    token_ids: tl.tensor,
    num_rows: tl.tensor,
    num_chunks: tl.tensor,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROOM: tl.constexpr,
    RANDOM: tl.constexpr,
    FILTERED: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    highest, finite, bests = row_best(best, row, num_chunks, CHUNKS)
    chunks = tl.arange(0, CHUNKS)
    inside = chunks < num_chunks
    places = tl.load(best_ids + row * num_chunks + chunks, mask=inside, other=0)
    token = tl.min(tl.where((bests == highest) & inside, places, VOCAB - 1), 0)
    if RANDOM:
        temperature = tl.load(table + row).to(tl.float32)
        if finite & (temperature > 0.0):
            temperature = tl.maximum(temperature, 1.1754943508222875e-38)
            top_k = tl.load(table + num_rows + row).to(tl.int64)
            top_p = tl.load(table + 2 * num_rows + row)
            min_p = tl.load(table + 3 * num_rows + row).to(tl.float32)
            number = tl.load(table + 4 * num_rows + row)
            masses = tl.load(mass + row * num_chunks + chunks, mask=inside, other=0)
            total = tl.sum(masses, 0)
            source = logits + row * stride
            if FILTERED:
                if (top_k > 0) | (top_p < 1.0):
                    numbers = tl.load(counts + row * num_chunks + chunks, mask=inside, other=0)
                    count = tl.sum(numbers, 0)
                    is_packed = count <= ROOM
                    source = tl.where(is_packed, packed + row * ROOM, source)
                    # Sixteen at a time can be loaded at once; there is room for all of them.
                    readable = tl.where(is_packed, (count + 15) // 16 * 16, VOCAB)
                    count = tl.where(is_packed, count, VOCAB)
                    token = _draw_filtered(
                        source,
                        count,
                        readable,
                        total,
                        top_k,
                        top_p,
                        number,
                        highest,
                        temperature,
                        min_p,
                        TILE,
                    )
                    packed_id = packed_ids + row * ROOM + tl.minimum(token, ROOM - 1)
                    token = tl.where(is_packed, tl.load(packed_id, mask=is_packed), token)
                else:
                    token = _draw_from_chunks(
                        source, masses, number, highest, temperature, min_p, VOCAB, CHUNK, CHUNKS
                    )
            else:
                token = _draw_from_chunks(
                    source, masses, number, highest, temperature, min_p, VOCAB, CHUNK, CHUNKS
                )
    tl.store(token_ids + row, tl.where(finite, token, -1).to(tl.int64))


@triton.jit
def _draw_from_chunks(
    source: tl.tensor,
    masses: tl.tensor,
    number: tl.tensor,
    highest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
) -> tl.tensor:
    """The token of an unfiltered row: its chunk by the masses of all, its place within that."""
    target = _share(number, tl.sum(masses, 0))
    chunk = tl.sum((tl.cumsum(masses, 0) <= target).to(tl.int32), 0)
    target -= tl.sum(tl.where(tl.arange(0, CHUNKS) < chunk, masses, 0), 0)
    places = chunk * CHUNK + tl.arange(0, CHUNK)
    _keys, masses = _tile(source, places, VOCAB, VOCAB, highest, temperature, min_p)
    return chunk * CHUNK + tl.sum((tl.cumsum(masses, 0) <= target).to(tl.int32), 0)


@triton.jit
def _share(number: tl.tensor, total: tl.tensor) -> tl.tensor:
    """A number in [0, 1) of the total, below it even where the product is rounded up."""
    return tl.minimum((number * total.to(tl.float64)).to(tl.int64), total - 1)


@triton.jit
def _draw_filtered(
    source: tl.tensor,
    count: tl.tensor,
    readable: tl.tensor,
    total: tl.tensor,
    top_k: tl.tensor,
    top_p: tl.tensor,
    number: tl.tensor,
    highest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The place among `count` logits at which what top-k and top-p keep, in the order of ids,
    reaches the number. `total` is the mass that min-p leaves of the whole row."""
    lowest = tl.full([], -2147483648, tl.int32)
    top = order_keys(highest)
    last = lowest  # of the order: kept is what is higher, and the first `ties` of its equals
    ties = tl.full([], 9223372036854775807, tl.int64)
    kept = total
    some = tl.full([], 0, tl.int64)
    if top_k > 0:
        some, kept, _low, _high = _above(
            source, count, readable, lowest, highest, temperature, min_p, TILE
        )
    for by_mass in range(2):  # top-k, then top-p of what it leaves; a loop to compile it once
        limit = top_k
        asked = (top_k > 0) & (top_k < some)
        if by_mass > 0:
            limit = tl.maximum(tl.ceil(top_p * kept.to(tl.float64)).to(tl.int64), 1)
            asked = top_p < 1.0
        if asked:
            end, higher, above = _border(
                source, count, readable, limit, top, highest, temperature, min_p, by_mass > 0, TILE
            )
            one = _mass_at(end, highest, temperature)
            few = tl.where(by_mass > 0, (limit - above + one - 1) // one, limit - higher)
            ties = tl.where(end == last, tl.minimum(ties, few), few)
            last = end
            kept = above + ties * one
    target = _share(number, kept)
    return _find(source, count, readable, target, last, ties, highest, temperature, min_p, TILE)


@triton.jit
def _border(
    source: tl.tensor,
    count: tl.tensor,
    readable: tl.tensor,
    limit: tl.tensor,
    top: tl.tensor,
    highest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    by_mass: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The lowest key above which there are fewer than `limit` candidates, or less mass: (key,
    number above it, mass above it). There must be as much as `limit` in all."""
    low = order_keys(highest - 30.0 * temperature)  # below it no weight is more than 0
    high = top
    some = tl.full([], 0, tl.int64)
    mass = tl.full([], 0, tl.int64)
    while low < high:
        middle = ((low.to(tl.int64) + high.to(tl.int64)) >> 1).to(tl.int32)
        now_some, now_mass, next_above, next_below = _above(
            source, count, readable, middle, highest, temperature, min_p, TILE
        )
        reached = tl.where(by_mass, now_mass, now_some) >= limit
        low = tl.where(reached, next_above, low)
        high = tl.where(reached, high, next_below)
        some = tl.where(reached, some, now_some)
        mass = tl.where(reached, mass, now_mass)
    return high, some, mass


@triton.jit
def _above(
    source: tl.tensor,
    count: tl.tensor,
    readable: tl.tensor,
    key: tl.tensor,
    highest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """Of candidates above a key: (number, mass, lowest key); and the highest key at or below."""
    places = tl.arange(0, TILE)
    some = tl.zeros([TILE], tl.int32)
    mass = tl.zeros([TILE], tl.int64)
    next_above = tl.full([TILE], 2147483647, tl.int32)
    next_below = tl.full([TILE], -2147483648, tl.int32)
    for start in range(0, count, TILE):
        keys, masses = _tile(source, start + places, count, readable, highest, temperature, min_p)
        above = (keys > key) & (masses > 0)
        some += above.to(tl.int32)
        mass += tl.where(above, masses, 0)
        next_above = tl.minimum(next_above, tl.where(above, keys, 2147483647))
        below = (keys <= key) & (masses > 0)
        next_below = tl.maximum(next_below, tl.where(below, keys, -2147483648))
    return (
        tl.sum(some, 0).to(tl.int64),
        tl.sum(mass, 0),
        tl.min(next_above, 0),
        tl.max(next_below, 0),
    )


@triton.jit
def _tile(
    source: tl.tensor,
    places: tl.tensor,
    count: tl.tensor,
    readable: tl.tensor,
    highest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
) -> tl.tensor:
    """Keys and masses of some logits, 0 where min-p removes them."""
    x = tl.load(source + places, mask=places < readable, other=-float("inf")).to(tl.float32)
    x = tl.where(places < count, x, -float("inf"))
    weights, masses = weights_of(x, highest, temperature)
    return order_keys(x), tl.where(weights >= min_p, masses, 0)


@triton.jit
def _mass_at(key: tl.tensor, highest: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Mass of a candidate with this key."""
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    _weights, masses = weights_of(bits.to(tl.float32, bitcast=True), highest, temperature)
    return masses


@triton.jit
def _find(
    source: tl.tensor,
    count: tl.tensor,
    readable: tl.tensor,
    target: tl.tensor,
    last: tl.tensor,
    ties: tl.tensor,
    highest: tl.tensor,
    temperature: tl.tensor,
    min_p: tl.tensor,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The first place up to which what is kept has more mass than the target."""
    place = tl.full([], -1, tl.int32)
    start = tl.full([], 0, tl.int32)
    seen = tl.full([], 0, tl.int64)
    before = tl.full([], 0, tl.int64)
    places = tl.arange(0, TILE)
    while (place < 0) & (start < count):
        keys, masses = _tile(source, start + places, count, readable, highest, temperature, min_p)
        equal = ((keys == last) & (masses > 0)).to(tl.int64)
        rank = seen + tl.cumsum(equal, 0)
        kept = (keys > last) | ((keys == last) & (rank <= ties))
        masses = tl.where(kept, masses, 0)
        reached = before + tl.cumsum(masses, 0)
        first = tl.min(tl.where(reached > target, start + places, count), 0)
        place = tl.where(first < count, first, -1)
        seen += tl.sum(equal, 0)
        before += tl.sum(masses, 0)
        start += TILE
    return tl.maximum(place, 0)
