"""Drawing a token from each row: exact top-k and top-p without a sort, no word to the host."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.sample.chunks import (
    best_kernel,
    chunk_for,
    mass_kernel,
    pack_kernel,
    row_best,
)
from nsa_kernels.sample.params import RowParams
from nsa_kernels.sample.search import draw_filtered, draw_from_chunks

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
                    token = draw_filtered(
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
                    token = draw_from_chunks(
                        source, masses, number, highest, temperature, min_p, VOCAB, CHUNK, CHUNKS
                    )
            else:
                token = draw_from_chunks(
                    source, masses, number, highest, temperature, min_p, VOCAB, CHUNK, CHUNKS
                )
    tl.store(token_ids + row, tl.where(finite, token, -1).to(tl.int64))
