"""Attention over the selected blocks and the window, in splits.

A program has a part of the *list*, the blocks that only the selected branch reads, or a part of the
*window*. Where both branches share K/V, the list ends before the window, and the programs of the
window compute both branches: each has a softmax of its own, over keys that are read once.
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


@triton.jit(do_not_specialize=["table_row", "max_window_splits", "max_selected_splits"])
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
    selected_m_ptr: tl.tensor,
    selected_z_ptr: tl.tensor,
    selected_acc_ptr: tl.tensor,
    window_m_ptr: tl.tensor,
    window_z_ptr: tl.tensor,
    window_acc_ptr: tl.tensor,
    scale: tl.tensor,
    q_row: tl.tensor,
    q_head: tl.tensor,
    k_page: tl.tensor,
    v_page: tl.tensor,
    window_k_page: tl.tensor,
    window_v_page: tl.tensor,
    table_row: tl.tensor,
    max_window_splits: tl.tensor,
    max_selected_splits: tl.tensor,
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
    WHOLE: tl.constexpr,
    SELECTED: tl.constexpr,
    LISTED: tl.constexpr,
    WINDOWED: tl.constexpr,
    SHARED: tl.constexpr,
    OVERLAP_LAUNCHES: tl.constexpr,
) -> None:
    """One split of SPLIT keys of one row and kv head; the window's come first.

    k, v [pages, kv_heads, PAGE, dim]; list [B, kv_heads, CAPACITY] ascending and count
    [B, kv_heads], if LISTED, or else all blocks are selected; SHARED: both branches, same K/V.
    m, z [B, kv_heads, splits, G] and acc [..., G, DV] of each branch; acc stays unwritten where
    nothing was read and z is 0.
    """
    row = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    pair = (row * tl.num_programs(1) + head).to(tl.int64)
    position = tl.load(position_ptr + row)
    q = load_queries(q_ptr + row.to(tl.int64) * q_row + head * G * q_head, q_head, G, GP, D, DP)
    q = q.to(k_ptr.dtype.element_ty)
    table = table_ptr + row * table_row
    if OVERLAP_LAUNCHES:
        gdc_wait()
        gdc_launch_dependents()
    if position < 0:
        return

    current = position // BLOCK
    window_begin = current + 1
    if WINDOWED:
        window_begin = tl.maximum(position - WINDOW + 1, 0) // BLOCK
    takes_all = position * 0 + 1
    chosen = takes_all
    if LISTED:
        takes_all = tl.where(must_choose(position, BLOCK, DENSE_LEN, SURE_BLOCKS), 0, 1)
        lane = tl.arange(0, CAPACITY_PADDED)
        count = tl.load(count_ptr + pair)
        chosen = tl.load(list_ptr + pair * CAPACITY + lane, mask=lane < CAPACITY, other=0)
        chosen = tl.where(lane < tl.where(takes_all > 0, 0, count), chosen, -1)

    if split >= max_window_splits:
        if SELECTED:
            list_end = current + 1
            if SHARED:
                list_end = window_begin
            length = list_end
            if LISTED:
                inside = (chosen >= 0) & (chosen < list_end)
                length = tl.where(takes_all > 0, list_end, tl.sum(inside.to(tl.int32), 0))
            begin = (split - max_window_splits) * SPLIT
            end = tl.minimum(begin + SPLIT, length * BLOCK)
            m, z, acc = attend_list(
                q, k_ptr, v_ptr, table, list_ptr + pair * CAPACITY if LISTED else None, chosen,
                takes_all, begin, end, position, head, scale, k_page, v_page,
                GP, D, DP, DV, DVP, PAGE, BLOCK, SPLIT, TILE, WHOLE, LISTED,
            )  # fmt: skip
            part = pair * max_selected_splits + split - (0 if SHARED else max_window_splits)
            store_part(selected_m_ptr, selected_z_ptr, part, m, z, G, GP)
            if begin < end:
                store_values(selected_acc_ptr, part, acc, G, GP, DV, DVP)
    elif WINDOWED:
        begin = window_begin * BLOCK + split * SPLIT
        end = tl.minimum(begin + SPLIT, position + 1)
        m, z, acc, selected_m, selected_z, selected_acc, wanted = attend_window(
            q, window_k_ptr, window_v_ptr, table, chosen, takes_all, begin, end, position, head,
            scale, window_k_page, window_v_page,
            GP, D, DP, DV, DVP, PAGE, BLOCK, WINDOW, SPLIT, TILE, WHOLE, LISTED, SHARED,
        )  # fmt: skip
        part = pair * max_window_splits + split
        store_part(window_m_ptr, window_z_ptr, part, m, z, G, GP)
        if begin < end:
            store_values(window_acc_ptr, part, acc, G, GP, DV, DVP)
        if SHARED:
            part = pair * max_selected_splits + split
            store_part(selected_m_ptr, selected_z_ptr, part, selected_m, selected_z, G, GP)
            if wanted > 0:
                store_values(selected_acc_ptr, part, selected_acc, G, GP, DV, DVP)


@triton.jit
def attend_list(
    q: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    table: tl.tensor,
    list_ptr: tl.tensor,
    chosen: tl.tensor,
    takes_all: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
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
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    LISTED: tl.constexpr,
) -> tl.tensor:
    """Keys [begin, end) of the listed blocks: (m, z, acc)."""
    m = tl.full([GP], LOW, tl.float32)
    z = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DVP], tl.float32)
    if WHOLE:
        # all that is to be looked up, before the first key is read
        place = tl.arange(0, SPLIT // BLOCK)
        entry = begin // BLOCK + place
        blocks = entry
        if LISTED:
            lane = tl.arange(0, chosen.shape[0])
            listed = tl.where(lane[None, :] == entry[:, None], chosen[None, :], 0)
            blocks = tl.where(takes_all > 0, entry, tl.sum(listed, 1))
        pages = tl.load(table + blocks * BLOCK // PAGE, mask=entry * BLOCK < end, other=0)
    for start in range(begin, end, TILE):
        key = start + tl.arange(0, TILE)
        if WHOLE:
            here = place == (start - begin) // BLOCK
            block = tl.sum(tl.where(here, blocks, 0), 0)
            page = tl.sum(tl.where(here, pages, 0), 0)
            token = block * BLOCK + key % BLOCK
            seen = (key < end) & (token <= position)
        else:
            block = key // BLOCK
            if LISTED:
                list_end = tl.where(takes_all > 0, 0, end)
                listed = tl.load(list_ptr + block, mask=key < list_end, other=0)
                block = tl.where(takes_all > 0, block, listed)
            token = block * BLOCK + key % BLOCK
            seen = (key < end) & (token <= position)
            page = tl.load(table + token // PAGE, mask=seen, other=0)
        in_page = head * PAGE + token % PAGE
        keys = load_rows(k_ptr, page, in_page, seen, k_page, D, DP)
        values = load_rows(v_ptr, page, in_page, seen, v_page, DV, DVP)
        s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        p, m, z, shrink = softmax_step(tl.where(seen[None, :], s, float("-inf")), m, z)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
    return m, z, acc


@triton.jit
def attend_window(
    q: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    table: tl.tensor,
    chosen: tl.tensor,
    takes_all: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
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
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    LISTED: tl.constexpr,
    SHARED: tl.constexpr,
) -> tl.tensor:
    """Tokens [begin, end) of the window's blocks, of which the selected branch may want some:
    (m, z, acc) of the window, (m, z, acc) of the selected branch, whether it wants any."""
    m = tl.full([GP], LOW, tl.float32)
    z = tl.zeros([GP], tl.float32)
    acc = tl.zeros([GP, DVP], tl.float32)
    selected_m = tl.full([GP], LOW, tl.float32)
    selected_z = tl.zeros([GP], tl.float32)
    selected_acc = tl.zeros([GP, DVP], tl.float32)
    any_wanted = tl.where(begin < end, 1, 0)
    if WHOLE:
        place = tl.arange(0, SPLIT // BLOCK)
        blocks = begin // BLOCK + place
        some = blocks * BLOCK < end
        pages = tl.load(table + blocks * BLOCK // PAGE, mask=some, other=0)
        wanted = takes_all + tl.zeros_like(blocks)
        if SHARED and LISTED:
            again = tl.sum((chosen[None, :] == blocks[:, None]).to(tl.int32), 1)
            wanted = tl.where(some, wanted + again, 0)
            any_wanted = tl.sum(wanted, 0)
    for start in range(begin, end, TILE):
        token = start + tl.arange(0, TILE)
        seen = token < end
        near = seen & (token > position - WINDOW)
        wants = any_wanted
        if WHOLE:
            here = place == (start - begin) // BLOCK
            page = tl.sum(tl.where(here, pages, 0), 0)
            if SHARED:
                wants = tl.sum(tl.where(here, wanted, 0), 0)
                # what neither branch reads is not loaded
                oldest = tl.where(wants > 0, 0, position - WINDOW + 1)
                read = seen & (token >= oldest)
            else:
                read = near
            chosen_keys = seen
        else:
            chosen_keys = seen
            if SHARED and LISTED:
                again = tl.sum((chosen[None, :] == (token // BLOCK)[:, None]).to(tl.int32), 1)
                chosen_keys = seen & (again + takes_all > 0)
            read = near
            if SHARED:
                read = near | chosen_keys
            page = tl.load(table + token // PAGE, mask=read, other=0)
        in_page = head * PAGE + token % PAGE
        keys = load_rows(k_ptr, page, in_page, read, k_page, D, DP)
        values = load_rows(v_ptr, page, in_page, read, v_page, DV, DVP)
        s = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        p, m, z, shrink = softmax_step(tl.where(near[None, :], s, float("-inf")), m, z)
        acc = acc * shrink[:, None]
        acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
        if SHARED and wants > 0:
            masked = tl.where(chosen_keys[None, :], s, float("-inf"))
            p, selected_m, selected_z, shrink = softmax_step(masked, selected_m, selected_z)
            selected_acc = selected_acc * shrink[:, None]
            selected_acc = tl.dot(p.to(values.dtype), values, selected_acc, input_precision="ieee")
    return m, z, acc, selected_m, selected_z, selected_acc, any_wanted
