"""Finding a drawn token, within a kernel of one program for each row: borders of top-k and top-p
by bisection over keys that order as logits do, then the place that the drawn share reaches."""

import triton
import triton.language as tl

from nsa_kernels.sample.chunks import order_keys, weights_of


@triton.jit
def draw_from_chunks(
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
def draw_filtered(
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
