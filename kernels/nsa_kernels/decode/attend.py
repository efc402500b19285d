"""Attention over the selected blocks and the window, in splits of one list of blocks.

The list of a row is its selected blocks that end before the window, then every block of the
window, ascending. Both branches have a softmax of their own, over the same keys where a block is in
both, so where they share K/V a block is read once.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nsa_kernels.decode.parts import (
    LOW,
    load_queries,
    load_rows,
    must_choose,
    softmax_step,
    store_part,
    store_values,
)


@triton.jit
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
    splits_ptr: tl.tensor,
    selected_m_ptr: tl.tensor,
    selected_l_ptr: tl.tensor,
    selected_acc_ptr: tl.tensor,
    window_m_ptr: tl.tensor,
    window_l_ptr: tl.tensor,
    window_acc_ptr: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_page: tl.tensor,
    v_page: tl.tensor,
    window_k_page: tl.tensor,
    window_v_page: tl.tensor,
    table_row: tl.tensor,
    selected_splits: tl.tensor,
    window_splits: tl.tensor,
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
    CAPACITY_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    SELECTED: tl.constexpr,
    LISTED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SHARED: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """One split of SPLIT keys of one row and kv head.

    k, v [pages, kv_heads, PAGE, dim]; list [B, kv_heads, CAPACITY] ascending, count [B, kv_heads];
    m, l [B, kv_heads, splits, G] and acc [..., G, DV] of each branch, splits [B, kv_heads, 2] how
    many of them count. Where K/V are not shared, the window's splits come after the selected ones.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    if OVERLAP_LAUNCHES:
        gdc_wait()
        gdc_launch_dependents()
    position = tl.load(position_ptr + row)
    if position < 0:
        return
    q = load_queries(q_ptr + row.to(tl.int64) * q_row + head * G * q_head, q_head, G, GP, D, DP).to(
        k_ptr.dtype.element_ty
    )
    table = table_ptr + row * table_row
    if SHARED:
        attend_split(
            q, k_ptr, v_ptr, table, list_ptr, count_ptr, splits_ptr,
            selected_m_ptr, selected_l_ptr, selected_acc_ptr,
            window_m_ptr, window_l_ptr, window_acc_ptr,
            scale, k_page, v_page, selected_splits, window_splits,
            position, pair, head, split,
            G, GP, D, DP, DV, DVP, PAGE, BLOCK, WINDOW, DENSE_LEN, SURE_BLOCKS,
            CAPACITY, CAPACITY_PADDED, SPLIT, TILE, SELECTED, LISTED, WINDOWED,
        )  # fmt: skip
    else:
        if split < selected_splits:
            attend_split(
                q, k_ptr, v_ptr, table, list_ptr, count_ptr, splits_ptr,
                selected_m_ptr, selected_l_ptr, selected_acc_ptr,
                window_m_ptr, window_l_ptr, window_acc_ptr,
                scale, k_page, v_page, selected_splits, window_splits,
                position, pair, head, split,
                G, GP, D, DP, DV, DVP, PAGE, BLOCK, WINDOW, DENSE_LEN, SURE_BLOCKS,
                CAPACITY, CAPACITY_PADDED, SPLIT, TILE, True, LISTED, False,
            )  # fmt: skip
        else:
            attend_split(
                q, window_k_ptr, window_v_ptr, table, list_ptr, count_ptr, splits_ptr,
                selected_m_ptr, selected_l_ptr, selected_acc_ptr,
                window_m_ptr, window_l_ptr, window_acc_ptr,
                scale, window_k_page, window_v_page, selected_splits, window_splits,
                position, pair, head, split - selected_splits,
                G, GP, D, DP, DV, DVP, PAGE, BLOCK, WINDOW, DENSE_LEN, SURE_BLOCKS,
                CAPACITY, CAPACITY_PADDED, SPLIT, TILE, False, False, True,
            )  # fmt: skip


@triton.jit
def attend_split(
    q: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    table: tl.tensor,
    list_ptr: tl.tensor,
    count_ptr: tl.tensor,
    splits_ptr: tl.tensor,
    selected_m_ptr: tl.tensor,
    selected_l_ptr: tl.tensor,
    selected_acc_ptr: tl.tensor,
    window_m_ptr: tl.tensor,
    window_l_ptr: tl.tensor,
    window_acc_ptr: tl.tensor,
    scale: tl.tensor,
    k_page: tl.tensor,
    v_page: tl.tensor,
    selected_splits: tl.tensor,
    window_splits: tl.tensor,
    position: tl.tensor,
    pair: tl.tensor,
    head: tl.tensor,
    split: tl.tensor,
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
    CAPACITY_PADDED: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    SELECTED: tl.constexpr,
    LISTED: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> None:
    """One split of the list of the selected branch, of the window, or of both."""
    current = position // BLOCK
    # the list: `before` blocks that only the selected branch reads, then all from `first` on
    first = current + 1
    if WINDOWED:
        first = tl.maximum(position - WINDOW + 1, 0) // BLOCK
    before = first * 0
    chooses = must_choose(position, BLOCK, DENSE_LEN, SURE_BLOCKS)
    if SELECTED and not LISTED:
        before = first
    if LISTED:
        lists = list_ptr + pair * CAPACITY
        lane = tl.arange(0, CAPACITY_PADDED)
        count = tl.load(count_ptr + pair, mask=chooses, other=0)
        chosen = tl.load(lists + lane, mask=lane < count, other=-1)
        inside = (chosen >= 0) & (chosen < first)
        before = tl.where(chooses, tl.sum(inside.to(tl.int32), 0), first)
        list_end = tl.where(chooses, before, 0)
        takes_all = tl.where(chooses, 0, 1)
    num_keys = (before + current + 1 - first) * BLOCK
    if split == 0:
        splits = tl.cdiv(num_keys, SPLIT)
        if SELECTED:
            tl.store(splits_ptr + pair * 2, splits)
        if WINDOWED:
            tl.store(splits_ptr + pair * 2 + 1, splits)
    begin = split * SPLIT
    if begin < num_keys:
        end = tl.minimum(begin + SPLIT, num_keys)
        selected_m = tl.full([GP], LOW, tl.float32)
        selected_l = tl.zeros([GP], tl.float32)
        selected_acc = tl.zeros([GP, DVP], tl.float32)
        window_m = tl.full([GP], LOW, tl.float32)
        window_l = tl.zeros([GP], tl.float32)
        window_acc = tl.zeros([GP, DVP], tl.float32)
        for start in range(begin, end, TILE):
            key = start + tl.arange(0, TILE)
            entry = key // BLOCK
            listed = entry < before
            block = first + entry - before
            if LISTED:
                from_list = entry < list_end
                listed_block = tl.load(lists + entry, mask=from_list, other=0)
                block = tl.where(from_list, listed_block, block)
            token = block * BLOCK + key % BLOCK
            seen = (key < end) & (token <= position)
            chosen_keys = seen
            near = seen & (token > position - WINDOW)
            if LISTED and WINDOWED:
                again = tl.max((chosen[None, :] == block[:, None]).to(tl.int32), 1)
                chosen_keys = seen & (listed | (again + takes_all > 0))
                seen = chosen_keys | near
            elif WINDOWED and not SELECTED:
                seen = near
            page = tl.load(table + token // PAGE, mask=seen, other=0)
            in_page = head * PAGE + token % PAGE
            keys = load_rows(k_ptr, page, in_page, seen, k_page, D, DP)
            values = load_rows(v_ptr, page, in_page, seen, v_page, DV, DVP)
            s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
            if SELECTED:
                masked = tl.where(chosen_keys[None, :], s, float("-inf"))
                p, selected_m, selected_l, shrink = softmax_step(masked, selected_m, selected_l)
                selected_acc = tl.dot(
                    p.to(values.dtype),
                    values,
                    selected_acc * shrink[:, None],
                    input_precision="ieee",
                )
            if WINDOWED:
                if start + TILE > before * BLOCK:
                    masked = tl.where(near[None, :], s, float("-inf"))
                    p, window_m, window_l, shrink = softmax_step(masked, window_m, window_l)
                    window_acc = tl.dot(
                        p.to(values.dtype),
                        values,
                        window_acc * shrink[:, None],
                        input_precision="ieee",
                    )
        if SELECTED:
            part = pair * selected_splits + split
            store_part(selected_m_ptr, selected_l_ptr, part, selected_m, selected_l, G, GP)
            store_values(selected_acc_ptr, part, selected_acc, G, GP, DV, DVP)
        if WINDOWED:
            part = pair * window_splits + split
            store_part(window_m_ptr, window_l_ptr, part, window_m, window_l, G, GP)
            if end > before * BLOCK:
                store_values(window_acc_ptr, part, window_acc, G, GP, DV, DVP)
