"""Attention over the selected blocks and the window, in splits.

A program has a split of the *list* of selected blocks or a split of the *window*. Those of the
window need nothing of the step's earlier launches and do not wait for them: they run while blocks
are being chosen. A block that both branches read is read twice, the second time from the L2 cache.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.decode.parts import (
    LOW,
    list_splits,
    load_queries,
    load_rows,
    must_choose,
    softmax_step,
    store_part,
    store_sums,
    window_begin,
    window_splits,
)


@triton.jit(
    do_not_specialize=["table_row", "max_window_splits", "max_parts", "list_part", "window_part"]
)
def attend_blocks(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    window_k_ptr: tl.tensor,
    window_v_ptr: tl.tensor,
    position_ptr: tl.tensor,
    table_ptr: tl.tensor,
    list_ptr: tl.tensor,
    count_ptr: tl.tensor,
    m_ptr: tl.tensor,
    z_ptr: tl.tensor,
    acc_ptr: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_page: tl.tensor,
    v_page: tl.tensor,
    window_k_page: tl.tensor,
    window_v_page: tl.tensor,
    table_row: tl.tensor,
    max_window_splits: tl.tensor,
    max_parts: tl.tensor,
    list_part: tl.tensor,
    window_part: tl.tensor,
    G: tl.constexpr,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    WINDOW: tl.constexpr,
    DENSE_LEN: tl.constexpr,
    SURE_BLOCKS: tl.constexpr,
    CAPACITY: tl.constexpr,
    LIST_SPLIT: tl.constexpr,
    WINDOW_SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    SELECTED: tl.constexpr,
    LISTED: tl.constexpr,
    WINDOWED: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """One split of one row and kv head; those of the window come first.

    k, v [pages, kv_heads, PAGE, dim]; list [B, kv_heads, CAPACITY] ascending and count
    [B, kv_heads], if LISTED, or else all blocks are selected. m, z [B, kv_heads, max_parts, G] and
    acc [..., G, DV], where the list's parts begin at list_part and the window's at window_part.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    if OVERLAP_LAUNCHES:
        gdc_launch_dependents()
        if not LISTED:
            # a launch that could end before those before it have ended would let the next one start
            gdc_wait()
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    position = tl.load(position_ptr + row)
    q = load_queries(q_ptr + row.to(tl.int64) * q_row + head * G * q_head, q_head, G, GP, D, DP)
    q = q.to(k_ptr.dtype.element_ty)
    table = table_ptr + row * table_row

    if split < max_window_splits:
        if WINDOWED:
            if (position < 0) | (split >= window_splits(position, BLOCK, WINDOW, WINDOW_SPLIT)):
                return
            begin = window_begin(position, BLOCK, WINDOW) + split * WINDOW_SPLIT
            end = tl.minimum(begin + WINDOW_SPLIT, position + 1)
            m, z, acc = attend_keys(
                q, window_k_ptr, window_v_ptr, table, None, 0, begin, end,
                tl.maximum(position - WINDOW, -1), position, head,
                scale, window_k_page, window_v_page,
                GP, D, DP, DV, DVP, PAGE, BLOCK, CAPACITY, WINDOW_SPLIT, TILE, WHOLE,
            )  # fmt: skip
            part = pair * max_parts + window_part + split
            store_part(m_ptr, z_ptr, acc_ptr, part, m, z, acc, G, GP, DV, DVP)
    elif SELECTED:
        if OVERLAP_LAUNCHES and LISTED:
            gdc_wait()
        split -= max_window_splits
        splits = list_splits(position, BLOCK, DENSE_LEN, SURE_BLOCKS, LISTED, CAPACITY, LIST_SPLIT)
        if (position < 0) | (split >= splits):
            return
        blocks = position // BLOCK + 1
        listed = position * 0
        if LISTED:
            listed = must_choose(position, BLOCK, DENSE_LEN, SURE_BLOCKS).to(tl.int32)
            count = tl.load(count_ptr + pair, mask=listed > 0, other=0)
            blocks = tl.where(listed > 0, count, blocks)
        part = pair * max_parts + list_part + split
        begin = split * LIST_SPLIT
        end = tl.minimum(begin + LIST_SPLIT, blocks * BLOCK)
        m, z, acc = attend_keys(
            q, k_ptr, v_ptr, table, list_ptr + pair * CAPACITY if LISTED else None, listed,
            begin, end, -1, position, head, scale, k_page, v_page,
            GP, D, DP, DV, DVP, PAGE, BLOCK, CAPACITY, LIST_SPLIT, TILE, WHOLE,
        )  # fmt: skip
        if begin < end:
            store_part(m_ptr, z_ptr, acc_ptr, part, m, z, acc, G, GP, DV, DVP)
        else:
            store_sums(m_ptr, z_ptr, part, m, z, G, GP)


@triton.jit
def attend_keys(
    q: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    table: tl.tensor,
    list_ptr: tl.tensor,
    listed: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    oldest: tl.tensor,
    position: tl.tensor,
    head: tl.tensor,
    scale: tl.tensor,
    k_page: tl.tensor,
    v_page: tl.tensor,
    GP: tl.constexpr,
    D: tl.constexpr,
    DP: tl.constexpr,
    DV: tl.constexpr,
    DVP: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK: tl.constexpr,
    CAPACITY: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
) -> tl.tensor:
    """Keys [begin, end) of the listed blocks, or of the row's where not `listed`, that lie in
    (oldest, position]: (m, z, acc)."""
    m = tl.full([GP], LOW, tl.float32)
    z = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DVP], tl.float32)
    if WHOLE:
        # all that is to be looked up, before the first key is read
        place = tl.arange(0, SPLIT // BLOCK)
        blocks = begin // BLOCK + place
        some = blocks * BLOCK < end
        if list_ptr is not None:
            limit = tl.where(listed > 0, CAPACITY, 0)
            of_list = tl.load(list_ptr + blocks, mask=blocks < limit, other=0)
            blocks = tl.where(listed > 0, of_list, blocks)
        pages = tl.load(table + blocks * BLOCK // PAGE, mask=some, other=0)
    for start in range(begin, end, TILE):
        key = start + tl.arange(0, TILE)
        if WHOLE:
            here = place == (start - begin) // BLOCK
            block = tl.sum(tl.where(here, blocks, 0), 0)
            page = tl.sum(tl.where(here, pages, 0), 0)
        else:
            block = key // BLOCK
            if list_ptr is not None:
                limit = tl.where(listed > 0, end, 0)
                of_list = tl.load(list_ptr + block, mask=key < limit, other=0)
                block = tl.where(listed > 0, of_list, block)
        token = block * BLOCK + key % BLOCK
        seen = (key < end) & (token <= position) & (token > oldest)
        if not WHOLE:
            page = tl.load(table + token // PAGE, mask=seen, other=0)
        in_page = head * PAGE + token % PAGE
        keys = load_rows(k_ptr, page, in_page, seen, k_page, D, DP)
        values = load_rows(v_ptr, page, in_page, seen, v_page, DV, DVP)
        s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        p, m, z, shrink = softmax_step(tl.where(seen[None, :], s, float("-inf")), m, z)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
    return m, z, acc
