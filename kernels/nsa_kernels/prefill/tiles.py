"""What several of the prefill kernels do: load runs of rows, and one step of online softmax.

A head dim that is no power of two is loaded in two parts (192 = 128 + 64), `first` and `rest`;
`rest` is 0 where there is one part only.
"""

from typing import Any

import torch
import triton
import triton.language as tl


def split_dim(dim: int) -> tuple[int, int]:
    """Sizes, powers of two of at least 16, of the one or two parts that hold `dim`."""
    first = max(16, 1 << (dim.bit_length() - 1))
    return first, 0 if dim <= first else max(16, next_power_of_2(dim - first))


def next_power_of_2(n: int) -> int:
    """The least power of two that is at least n, for n ≥ 1."""
    return 1 << (n - 1).bit_length()


def triton_dtype(dtype: torch.dtype) -> Any:
    """The dtype in which products of `dtype` are computed."""
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(dtype, tl.float32)


def precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied; other dtypes do not mind."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


@triton.jit
def load_part(
    base: tl.tensor,
    offsets: tl.tensor,
    keep: tl.tensor,
    MASKED: tl.constexpr,
    START: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
) -> tl.tensor:
    """Columns [START, START + SIZE) of rows at element offsets [N]; 0 behind column DIM and, if
    MASKED, in rows that are not kept."""
    columns = START + tl.arange(0, SIZE)
    pointers = base + offsets[:, None] + columns[None, :]
    if MASKED and START + SIZE > DIM:
        loaded = tl.load(pointers, mask=keep[:, None] & (columns < DIM)[None, :], other=0.0)
    elif MASKED:
        loaded = tl.load(pointers, mask=keep[:, None], other=0.0)
    elif START + SIZE > DIM:
        loaded = tl.load(pointers, mask=(columns < DIM)[None, :], other=0.0)
    else:
        loaded = tl.load(pointers)
    return loaded


@triton.jit
def row_logits(
    q: tl.tensor,
    q_rest: tl.tensor,
    base: tl.tensor,
    offsets: tl.tensor,
    keep: tl.tensor,
    MASKED: tl.constexpr,
    D: tl.constexpr,
    D_FIRST: tl.constexpr,
    D_REST: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """q · kᵀ, [rows, keys] float32, for keys at element offsets [keys]."""
    k = load_part(base, offsets, keep, MASKED, 0, D_FIRST, D).to(q.dtype)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if D_REST > 0:
        k_rest = load_part(base, offsets, keep, MASKED, D_FIRST, D_REST, D).to(q.dtype)
        s = tl.dot(q_rest, tl.trans(k_rest), s, input_precision=PRECISION)
    return s


@triton.jit
def no_sums(ROWS: tl.constexpr, DV_PADDED: tl.constexpr, FIXED: tl.constexpr) -> tl.tensor:
    """(top, total, acc) of rows that have seen nothing. FIXED: total is [ROWS, 8], for threads hold
    eight parts of a row's sum and need not add them up before the end."""
    if FIXED:
        top = tl.zeros([ROWS], tl.float32)
        total = tl.zeros([ROWS, 8], tl.float32)
    else:
        top = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
    return top, total, tl.zeros([ROWS, DV_PADDED], tl.float32)


@triton.jit
def fixed_top(s: tl.tensor, scale: tl.tensor) -> tl.tensor:
    """What all further logits of a row are taken relative to: the maximum of these, to base 2."""
    top = tl.max(s, 1) * scale
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def softmax_step(
    s: tl.tensor,
    v: tl.tensor,
    top: tl.tensor,
    total: tl.tensor,
    acc: tl.tensor,
    scale: tl.tensor,
    MASKED: tl.constexpr,
    VALUES: tl.constexpr,
    FIXED: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Take logits s [rows, keys] and values [keys, Dv] into (top, total, acc).

    `top` is the maximum of scale · s, to base 2, or FIXED: whatever it is, left alone. MASKED: rows
    may be −inf alone.
    """
    if FIXED:
        new_top = top
        p = tl.exp2(s * scale - top[:, None])
        total += tl.sum(tl.reshape(p, [s.shape[0], s.shape[1] // 8, 8]), 1)
    else:
        new_top = tl.maximum(top, tl.max(s, 1) * scale)
        shift = new_top
        if MASKED:
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(s * scale - shift[:, None])
        alpha = tl.exp2(top - shift)
        total = total * alpha + tl.sum(p, 1)
        if VALUES:
            acc = acc * alpha[:, None]
    if VALUES:
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return new_top, total, acc


@triton.jit
def total_of(total: tl.tensor, FIXED: tl.constexpr) -> tl.tensor:
    """[rows]: the sum of the parts of each row."""
    if FIXED:
        total = tl.sum(total, 1)
    return total


@triton.jit
def far_off(total: tl.tensor, acc: tl.tensor, keep: tl.tensor) -> tl.tensor:
    """Rows [N] whose fixed top was so far from their maximum that their sums may be wrong.

    A total below 1 means that the tile of the top showed the row nothing; above 2⁻¹⁶, weights keep
    their digits down to 2⁻¹¹⁰ of it. Sums that are no numbers are wrong, or right for other reasons
    (keys or values that are none).
    """
    numbers = tl.sum(acc * 0.0, 1) == 0.0
    return keep & ~((total > 1.52587890625e-05) & (total < 18446744073709551616.0) & numbers)


@triton.jit
def softmax_end(total: tl.tensor, acc: tl.tensor) -> tl.tensor:
    """acc / total; zero where nothing was seen."""
    return acc * tl.where(total == 0.0, 0.0, 1.0 / total)[:, None]


@triton.jit
def gate_of(
    gates: tl.tensor, offsets: tl.tensor, keep: tl.tensor, GATED: tl.constexpr, LOGITS: tl.constexpr
) -> tl.tensor:
    """Weight of a branch for each row: gates at element offsets [rows], or 1; 0 where not kept."""
    if GATED:
        gate = tl.load(gates + offsets, mask=keep, other=0.0).to(tl.float32)
        if LOGITS:
            gate = tl.where(keep, 1.0 / (1.0 + tl.exp(-gate)), 0.0)
    else:
        gate = tl.where(keep, 1.0, 0.0)
    return gate


@triton.jit
def deliver(
    out: tl.tensor,
    offsets: tl.tensor,
    keep: tl.tensor,
    rows: tl.tensor,
    ADD: tl.constexpr,
    DIM: tl.constexpr,
) -> None:
    """Store rows [N, ≥ DIM] at element offsets [N], or add them to what is there."""
    columns = tl.arange(0, rows.shape[1])
    place = out + offsets[:, None] + columns[None, :]
    inside = keep[:, None] & (columns < DIM)[None, :]
    if ADD:
        tl.debug_barrier()  # another thread of this program may have stored what is there
        rows += tl.load(place, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, rows, mask=inside)


@triton.jit
def page_offsets(
    table: tl.tensor,
    start: tl.tensor,
    limit: tl.tensor,
    kv_head: tl.tensor,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    KEYS: tl.constexpr,
) -> tl.tensor:
    """Rows (int64) in a cache [pages, kv_heads, PAGE, …] of tokens [start, start + KEYS) of a
    sequence; start is a multiple of KEYS, and what lies at `limit` or behind it is anywhere."""
    lanes = tl.arange(0, KEYS)
    if PAGE % KEYS == 0:
        page = tl.load(table + start // PAGE).to(tl.int64)
        rows = (page * KV_HEADS + kv_head) * PAGE + start % PAGE + lanes
    else:
        tokens = start + lanes
        page = tl.load(table + tokens // PAGE, mask=tokens < limit, other=0).to(tl.int64)
        rows = (page * KV_HEADS + kv_head) * PAGE + tokens % PAGE
    return rows
