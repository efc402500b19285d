"""Rows of logits in chunks, many programs to a row: the highest logit, the weights, and the
candidates of top-k and top-p."""

import triton
import triton.language as tl

MOST_CHUNKS = 128
"""A program reads one number of each chunk of its row at once."""
LEAST_CHUNK = 1024


def chunk_for(vocab_size: int) -> int:
    """Logits of one chunk, a power of two."""
    return max(LEAST_CHUNK, int(triton.next_power_of_2(triton.cdiv(vocab_size, MOST_CHUNKS))))


@triton.jit
def weights_of(x: tl.tensor, best: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """exp((x − best) / temperature), and 2^42 of it as an integer."""
    weights = tl.exp(tl.div_rn(x - best, temperature))
    return weights, (weights * 4398046511104.0).to(tl.int64)


@triton.jit
def order_keys(x: tl.tensor) -> tl.tensor:
    """int32 that order as the floats do."""
    x = tl.where(x == 0.0, 0.0, x)  # −0 is 0
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def row_best(
    best: tl.tensor, row: tl.tensor, num_chunks: tl.tensor, CHUNKS: tl.constexpr
) -> tl.tensor:
    """(highest logit of a row, whether it is a number, each chunk's highest)."""
    chunks = tl.arange(0, CHUNKS)
    values = tl.load(
        best + row * num_chunks + chunks, mask=chunks < num_chunks, other=-float("inf")
    )
    unknown = tl.max((values != values).to(tl.int32), 0)
    highest = tl.max(tl.where(values != values, -float("inf"), values), 0)
    finite = (unknown == 0) & (highest < float("inf")) & (highest > -float("inf"))
    return highest, finite, values


@triton.jit(do_not_specialize=["num_rows"])
def best_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    best: tl.tensor,
    best_ids: tl.tensor,
    num_rows: tl.tensor,
    num_chunks: tl.tensor,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """The highest logit of each chunk (NaN if any is) and its lowest place."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * stride + ids, mask=ids < VOCAB, other=-float("inf")).to(tl.float32)
    unknown = x != x
    highest = tl.max(tl.where(unknown, -float("inf"), x), 0)
    place = tl.min(tl.where(x == highest, ids, VOCAB - 1), 0)
    highest = tl.where(tl.max(unknown.to(tl.int32), 0) > 0, float("nan"), highest)
    tl.store(best + row * num_chunks + chunk, highest)
    tl.store(best_ids + row * num_chunks + chunk, place)


@triton.jit
def _candidates(
    logits: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    num_rows: tl.tensor,
    row: tl.tensor,
    chunk: tl.tensor,
    highest: tl.tensor,
    bests: tl.tensor,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    FILTERED: tl.constexpr,
) -> tl.tensor:
    """A chunk's logits, their masses after min-p, and which of them top-k or top-p may keep."""
    ids = chunk * CHUNK + tl.arange(0, CHUNK)
    x = tl.load(logits + row * stride + ids, mask=ids < VOCAB, other=-float("inf")).to(tl.float32)
    temperature = tl.load(table + row).to(tl.float32)
    temperature = tl.maximum(temperature, 1.1754943508222875e-38)
    min_p = tl.load(table + 3 * num_rows + row).to(tl.float32)
    weights, masses = weights_of(x, highest, temperature)
    masses = tl.where(weights >= min_p, masses, 0)
    wanted = masses > 0
    if FILTERED:
        top_k = tl.load(table + num_rows + row)
        top_p = tl.load(table + 2 * num_rows + row)
        # The k-th highest logit is no lower than the k-th highest chunk's highest.
        higher = tl.sum((bests[None, :] > bests[:, None]).to(tl.int32), 1)
        bound = tl.min(tl.where((higher < top_k) & (bests == bests), bests, float("inf")), 0)
        bound = tl.where(
            (top_k > 0) & (top_k <= tl.sum((bests > -float("inf")).to(tl.int32), 0)),
            bound,
            -float("inf"),
        )
        # All tokens of less than this weight together are less than what top-p removes; half of
        # it is beyond the doubts of rounding. Top-k first needs the mass of what it keeps.
        least = tl.where(top_k > 0, 0.0, 0.5 * (1.0 - top_p) / VOCAB).to(tl.float32)
        wanted = wanted & (x >= bound) & (weights >= least)
    return ids, x, masses, wanted


@triton.jit(do_not_specialize=["num_rows"])
def mass_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    best: tl.tensor,
    mass: tl.tensor,
    counts: tl.tensor,
    num_rows: tl.tensor,
    num_chunks: tl.tensor,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    FILTERED: tl.constexpr,
) -> None:
    """The mass of each chunk, and how many candidates it has."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    highest, finite, bests = row_best(best, row, num_chunks, CHUNKS)
    if finite & (tl.load(table + row) > 0.0):
        _ids, _x, masses, wanted = _candidates(
            logits, stride, table, num_rows, row, chunk, highest, bests, VOCAB, CHUNK, FILTERED
        )
        tl.store(mass + row * num_chunks + chunk, tl.sum(masses, 0))
        tl.store(counts + row * num_chunks + chunk, tl.sum(wanted.to(tl.int32), 0))


@triton.jit(do_not_specialize=["num_rows"])
def pack_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    table: tl.tensor,
    best: tl.tensor,
    counts: tl.tensor,
    packed: tl.tensor,
    packed_ids: tl.tensor,
    num_rows: tl.tensor,
    num_chunks: tl.tensor,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    ROOM: tl.constexpr,
) -> None:
    """The candidates of each row side by side, by ascending id, where there is room for them."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    highest, finite, bests = row_best(best, row, num_chunks, CHUNKS)
    top_k = tl.load(table + num_rows + row)
    top_p = tl.load(table + 2 * num_rows + row)
    if finite & (tl.load(table + row) > 0.0) & ((top_k > 0) | (top_p < 1.0)):
        chunks = tl.arange(0, CHUNKS)
        numbers = tl.load(counts + row * num_chunks + chunks, mask=chunks < num_chunks, other=0)
        if tl.sum(numbers, 0) <= ROOM:
            ids, x, _masses, wanted = _candidates(
                logits, stride, table, num_rows, row, chunk, highest, bests, VOCAB, CHUNK, True
            )
            first = tl.sum(tl.where(chunks < chunk, numbers, 0), 0)
            place = row * ROOM + first + tl.cumsum(wanted.to(tl.int32), 0) - 1
            tl.store(packed + place, x.to(packed.dtype.element_ty), mask=wanted)
            tl.store(packed_ids + place, ids, mask=wanted)
