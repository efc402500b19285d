"""Penalties on the logits of tokens that a sequence already has."""

import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.sample.params import IN_PROMPT, Penalties

TILE = 1024


def penalise(logits: Tensor, penalties: Penalties) -> None:
    """Apply them to logits [N, vocab] float32, in place."""
    num_rows, vocab = penalties.rows.shape[0], logits.shape[1]
    assert logits.stride(1) == 1
    assert penalties.counts.is_contiguous()
    if num_rows == 0:
        return
    _penalise_kernel[(num_rows, triton.cdiv(vocab, TILE))](
        logits,
        logits.stride(0),
        penalties.rows,
        penalties.counts,
        penalties.count_rows,
        penalties.values,
        num_rows,
        VOCAB=vocab,
        TILE=TILE,
        PROMPT=IN_PROMPT,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["num_rows"])
def _penalise_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    rows: tl.tensor,
    counts: tl.tensor,
    count_rows: tl.tensor,
    values: tl.tensor,
    num_rows: tl.tensor,
    VOCAB: tl.constexpr,
    TILE: tl.constexpr,
    PROMPT: tl.constexpr,
) -> None:
    item = tl.program_id(0)
    ids = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = ids < VOCAB
    count_row = tl.load(count_rows + item).to(tl.int64)
    place = logits + tl.load(rows + item).to(tl.int64) * stride + ids
    repetition = tl.load(values + item)
    presence = tl.load(values + num_rows + item)
    frequency = tl.load(values + 2 * num_rows + item)
    seen = tl.load(counts + count_row * VOCAB + ids, mask=mask, other=0)
    x = tl.load(place, mask=mask, other=0.0)
    repeated = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    x = tl.where(seen > 0, repeated, x)
    times = seen % PROMPT
    x = tl.where(times > 0, x - (presence + frequency * times.to(tl.float32)), x)
    tl.store(place, x, mask=mask)
