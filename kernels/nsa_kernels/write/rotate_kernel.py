"""The kernel of `rotate`: a program for some heads of one token, of queries, keys or values."""

import triton
import triton.language as tl

from nsa_kernels.write.averages import rotate_pairs
from nsa_kernels.write.slot_parts import key_slot, value_slot


@triton.jit(do_not_specialize=["num_rows"])
def write_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    k_window: tl.tensor,
    v_window: tl.tensor,
    k_phi: tl.tensor,
    v_phi: tl.tensor,
    q_stride: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    k_window_stride: tl.tensor,
    v_window_stride: tl.tensor,
    k_phi_stride: tl.tensor,
    v_phi_stride: tl.tensor,
    cos_sin: tl.tensor,
    positions: tl.tensor,
    token_rows: tl.tensor,
    q_weight: tl.tensor,
    k_weight: tl.tensor,
    eps: tl.tensor,
    out: tl.tensor,
    raw_queries: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    k_window_cache: tl.tensor,
    v_window_cache: tl.tensor,
    k_phi_cache: tl.tensor,
    v_phi_cache: tl.tensor,
    k_compressed: tl.tensor,
    v_compressed: tl.tensor,
    block_table: tl.tensor,
    table_stride: tl.tensor,
    row_positions: tl.tensor,
    num_rows: tl.tensor,
    k_phi_weights: tl.tensor,
    k_phi_bias: tl.tensor,
    slot_cos_sin: tl.tensor,
    v_phi_weights: tl.tensor,
    v_phi_bias: tl.tensor,
    POSITIONS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    KEEP_RAW: tl.constexpr,
    PHI_APART: tl.constexpr,
    OWN: tl.constexpr,
    ROTATE_PHI: tl.constexpr,
    H: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    V_HEADS: tl.constexpr,
    Q_JOBS: tl.constexpr,
    K_JOBS: tl.constexpr,
    V_JOBS: tl.constexpr,
    HALF_TILE: tl.constexpr,
    VALUE_TILE: tl.constexpr,
    PAGE: tl.constexpr,
    SLOTS: tl.constexpr,
    VALUE_SLOTS: tl.constexpr,
    FIRST_SLOT: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    K_WEIGHTED: tl.constexpr,
    K_BIASED: tl.constexpr,
    V_WEIGHTED: tl.constexpr,
    V_BIASED: tl.constexpr,
    ROTATE_SLOT: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    job = tl.program_id(1)
    place = tl.load(token_rows + token)
    slot = -1
    if SLOTS:
        end = tl.load(row_positions + token, mask=token < num_rows, other=-1).to(tl.int32) + 1
        slot = tl.where(end % STRIDE == 0, end // STRIDE - 1, -1)
    table = block_table + token * table_stride

    if job < Q_JOBS:
        heads = job * Q_HEADS + tl.arange(0, Q_HEADS)
        cos, sin = _rotation(cos_sin, positions, token, DIM // 2, HALF_TILE, POSITIONS)
        a, b, first, second, mask = _pair_tiles(
            q + token * q_stride, heads, H, q_weight, eps, DIM, HALF_TILE, INTERLEAVED, NORM
        )
        base = (token * H + heads)[:, None] * DIM
        if KEEP_RAW:
            _store_pairs(raw_queries + base, first, second, a, b, mask)
        a, b = rotate_pairs(a, b, cos, sin)
        _store_pairs(out + base, first, second, a, b, mask)
    elif place >= 0:
        kind = job - Q_JOBS
        branch = 0
        if OWN:
            branch = kind // (K_JOBS + V_JOBS)
            kind %= K_JOBS + V_JOBS
        completes = (slot >= FIRST_SLOT) & (branch == (2 if OWN else 0))
        if kind < K_JOBS:
            source = k + token * k_stride
            target = k_cache
            if OWN:
                if branch == 1:
                    source = k_window + token * k_window_stride
                    target = k_window_cache
                elif branch == 2:
                    source = k_phi + token * k_phi_stride
                    target = k_phi_cache
            cos, sin = _rotation(cos_sin, positions, token, DIM // 2, HALF_TILE, POSITIONS)
            _write_keys(
                source,
                target,
                k_phi_cache,
                k_compressed,
                table,
                k_weight,
                eps,
                cos,
                sin,
                k_phi_weights,
                k_phi_bias,
                slot_cos_sin,
                place,
                slot,
                completes,
                branch == 2,
                kind * K_HEADS + tl.arange(0, K_HEADS),
                KV_HEADS,
                DIM,
                HALF_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                INTERLEAVED,
                NORM,
                PHI_APART,
                OWN and not ROTATE_PHI,
                SLOTS,
                K_WEIGHTED,
                K_BIASED,
                ROTATE_SLOT,
            )
        else:
            source = v + token * v_stride
            target = v_cache
            if OWN:
                if branch == 1:
                    source = v_window + token * v_window_stride
                    target = v_window_cache
                elif branch == 2:
                    source = v_phi + token * v_phi_stride
                    target = v_phi_cache
            _write_values(
                source,
                target,
                v_phi_cache,
                v_compressed,
                table,
                v_phi_weights,
                v_phi_bias,
                place,
                slot,
                completes,
                (kind - K_JOBS) * V_HEADS + tl.arange(0, V_HEADS),
                KV_HEADS,
                VALUE_DIM,
                VALUE_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                VALUE_SLOTS,
                V_WEIGHTED,
                V_BIASED,
            )


@triton.jit
def _write_keys(
    source: tl.tensor,
    target: tl.tensor,
    phi_cache: tl.tensor,
    k_compressed: tl.tensor,
    table: tl.tensor,
    weight: tl.tensor,
    eps: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    phi_weights: tl.tensor,
    phi_bias: tl.tensor,
    slot_cos_sin: tl.tensor,
    place: tl.tensor,
    slot: tl.tensor,
    completes: tl.tensor,
    for_phi: tl.tensor,
    heads: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF_TILE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
    PHI_APART: tl.constexpr,
    PHI_RAW: tl.constexpr,
    SLOTS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
    ROTATE_SLOT: tl.constexpr,
) -> None:
    """Some heads' keys of one token, and the slot that it completes."""
    dtype = target.dtype.element_ty
    raw_a, raw_b, first, second, mask = _pair_tiles(
        source, heads, KV_HEADS, weight, eps, DIM, HALF_TILE, INTERLEAVED, NORM
    )
    base = ((place // PAGE * KV_HEADS + heads)[:, None] * PAGE + place % PAGE) * DIM
    a, b = rotate_pairs(raw_a, raw_b, cos, sin)
    if PHI_RAW:
        a = tl.where(for_phi, raw_a, a)
        b = tl.where(for_phi, raw_b, b)
    a = a.to(dtype)
    b = b.to(dtype)
    _store_pairs(target + base, first, second, a, b, mask)
    if PHI_APART:
        a = raw_a.to(dtype)
        b = raw_b.to(dtype)
        _store_pairs(phi_cache + base, first, second, a, b, mask)
    if SLOTS:  # noqa: SIM102 (a constant, decided at compile time)
        if completes:
            key_slot(
                phi_cache,
                k_compressed,
                table,
                phi_weights,
                phi_bias,
                slot_cos_sin,
                a,
                b,
                slot,
                heads,
                KV_HEADS,
                DIM,
                HALF_TILE,
                PAGE,
                BLOCK,
                STRIDE,
                True,
                WEIGHTED,
                BIASED,
                ROTATE_SLOT,
                INTERLEAVED,
            )


@triton.jit
def _write_values(
    source: tl.tensor,
    target: tl.tensor,
    phi_cache: tl.tensor,
    v_compressed: tl.tensor,
    table: tl.tensor,
    phi_weights: tl.tensor,
    phi_bias: tl.tensor,
    place: tl.tensor,
    slot: tl.tensor,
    completes: tl.tensor,
    heads: tl.tensor,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIDE: tl.constexpr,
    SLOTS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BIASED: tl.constexpr,
) -> None:
    """Some heads' values of one token, and the slot that it completes."""
    columns = tl.arange(0, TILE)[None, :]
    mask = (heads[:, None] < KV_HEADS) & (columns < DIM)
    base = ((place // PAGE * KV_HEADS + heads)[:, None] * PAGE + place % PAGE) * DIM
    value = tl.load(source + heads[:, None] * DIM + columns, mask=mask, other=0.0)
    value = value.to(target.dtype.element_ty)
    tl.store(target + base + columns, value, mask=mask)
    if SLOTS:  # noqa: SIM102
        if completes:
            value_slot(
                phi_cache,
                v_compressed,
                table,
                phi_weights,
                phi_bias,
                value,
                slot,
                heads,
                KV_HEADS,
                DIM,
                TILE,
                PAGE,
                BLOCK,
                STRIDE,
                True,
                WEIGHTED,
                BIASED,
            )


@triton.jit
def _rotation(
    cos_sin: tl.tensor,
    positions: tl.tensor,
    token: tl.tensor,
    HALF: tl.constexpr,
    TILE: tl.constexpr,
    POSITIONS: tl.constexpr,
) -> tl.tensor:
    """cos and sin [1, pairs] of a token; a padding token's are those of position 0."""
    row = token
    if POSITIONS:
        row = tl.maximum(tl.load(positions + token), 0).to(tl.int64)
    pairs = tl.arange(0, TILE)
    place = cos_sin + row * (2 * HALF) + pairs
    cos = tl.load(place, mask=pairs < HALF, other=0.0)
    sin = tl.load(place + HALF, mask=pairs < HALF, other=0.0)
    return cos[None, :], sin[None, :]


@triton.jit
def _pair_tiles(
    x: tl.tensor,
    heads: tl.tensor,
    NUM_HEADS: tl.constexpr,
    weight: tl.tensor,
    eps: tl.tensor,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NORM: tl.constexpr,
) -> tl.tensor:
    """Both places of every pair of some heads, [heads, pairs] float32, after the norm; their
    columns and the mask."""
    pairs = tl.arange(0, TILE)
    first = pairs * 2 if INTERLEAVED else pairs
    second = first + 1 if INTERLEAVED else first + DIM // 2
    inside = pairs < DIM // 2
    mask = (heads[:, None] < NUM_HEADS) & inside[None, :]
    a = tl.load(x + heads[:, None] * DIM + first[None, :], mask=mask, other=0.0)
    b = tl.load(x + heads[:, None] * DIM + second[None, :], mask=mask, other=0.0)
    dtype = a.dtype
    a = a.to(tl.float32)
    b = b.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1) * (1.0 / DIM) + eps)[:, None]
        weight_a = tl.load(weight + first, mask=inside, other=0.0).to(tl.float32)[None, :]
        weight_b = tl.load(weight + second, mask=inside, other=0.0).to(tl.float32)[None, :]
        # Rounded where torch rounds.
        a = ((a * scale).to(dtype).to(tl.float32) * weight_a).to(dtype).to(tl.float32)
        b = ((b * scale).to(dtype).to(tl.float32) * weight_b).to(dtype).to(tl.float32)
    return a, b, first, second, mask


@triton.jit
def _store_pairs(
    x: tl.tensor, first: tl.tensor, second: tl.tensor, a: tl.tensor, b: tl.tensor, mask: tl.tensor
) -> None:
    """Both places of every pair, at x [heads, 1]."""
    tl.store(x + first[None, :], a.to(x.dtype.element_ty), mask=mask)
    tl.store(x + second[None, :], b.to(x.dtype.element_ty), mask=mask)
