"""Attention in a step: the (tile, kv head) pairs that a member of the team works on."""

import numpy as np

from nsa_serve.model.compiled import planes
from nsa_serve.model.compiled.arrays import array_at
from nsa_serve.model.compiled.attention import attend_sparsely, attend_to_all, complete_slot
from nsa_serve.model.compiled.barrier import take, wait_for_all
from nsa_serve.model.compiled.jit import Bytes, Floats, compiled
from nsa_serve.model.compiled.rows import rotate, sigmoid
from nsa_serve.model.compiled.state import Caches, Rows, Shared, Sizes, SparseRule
from nsa_serve.model.compiled.tile import Scratch, Tile, make_scratch
from nsa_serve.model.compiled.vectors import LANES

_ZERO = np.float32(0.0)


@compiled
def scratch_for(sizes: Sizes, rule: SparseRule, caches: Caches, rows: Rows) -> Scratch:
    """Memory for the longest context of the step."""
    entries = 0
    for row in range(len(rows.positions)):
        entries = max(entries, rows.positions[row] + 1)
    piece = min(caches.k.shape[2], rule.select_block)
    return make_scratch(LANES, sizes.head_dim, sizes.value_dim, entries, piece)


@compiled
def attend(
    member: int, team: int, layer: int, sizes: Sizes, rule: SparseRule, caches: Caches, rows: Rows,
    shared: Shared, scratch: Scratch, met: int,
) -> int:  # fmt: skip
    """A member's part of the (tile, kv head) pairs: write keys and values, complete slots, attend.
    Returns the counter that the last barrier waited for."""
    addresses = caches.addresses[layer]
    k, v = array_at(addresses[0], caches.k), array_at(addresses[1], caches.v)
    k_slots = array_at(addresses[2], caches.k_slots)
    v_slots = array_at(addresses[3], caches.v_slots)
    kv_heads = sizes.num_kv_heads
    num_pairs = len(rows.tiles) * kv_heads
    for pair in range(member, num_pairs, team):
        write(pair // kv_heads, pair % kv_heads, sizes, rows, shared.qkv, k, v)
    if rows.in_order:
        met += team
        wait_for_all(shared.counter, met)
    if sizes.sparse:
        for pair in range(member, num_pairs, team):
            compress(pair // kv_heads, pair % kv_heads, rule, rows, k, v, k_slots, v_slots)
    for block in range(member, len(rows.blocks), team):
        put_planes(block, kv_heads, rows, k, v, shared)
    if rows.in_order:
        met += team
        wait_for_all(shared.counter, met)
    queries = np.zeros((sizes.head_dim, LANES), np.float32)
    query_planes = np.empty(planes.num_bytes(sizes.head_dim) // 2, np.int8)
    gates = np.empty((LANES, 3), np.float32)
    out = np.empty((LANES, sizes.value_dim), np.float32)
    pair = take(shared.taken, 3 * layer + 1) if rows.in_order else member
    while pair < num_pairs:
        index, head = pair // kv_heads, pair % kv_heads
        tile = make_tile(index, head, sizes, rows, shared, queries, query_planes, gates, out)
        tile.out[:] = _ZERO
        if sizes.sparse:
            attend_sparsely(rule, tile, k, v, k_slots, v_slots, scratch)
        else:
            attend_to_all(tile, k, v, 0, 1, scratch)
        put_back(tile, rows.tiles[index, 0], sizes, shared.attended)
        pair = take(shared.taken, 3 * layer + 1) if rows.in_order else pair + team
    met += team
    wait_for_all(shared.counter, met)
    return met


@compiled
def write(
    index: int, head: int, sizes: Sizes, rows: Rows, qkv: Floats, k: Floats, v: Floats
) -> None:
    """The keys, rotated, and values of a tile's tokens into their places."""
    dim, value_dim = sizes.head_dim, sizes.value_dim
    keys_at = sizes.num_heads * dim + head * dim
    values_at = (sizes.num_heads + sizes.num_kv_heads) * dim + head * value_dim
    first, count, pages = (
        rows.tiles[index, 0],
        rows.tiles[index, 1],
        rows.pages[rows.tiles[index, 2]],
    )
    for row in range(first, first + count):
        position = rows.positions[row]
        page, place = pages[position // k.shape[2]], position % k.shape[2]
        key = qkv[row, keys_at : keys_at + dim]
        rotate(
            key,
            rows.rotations[0, row],
            rows.rotations[1, row],
            sizes.interleaved,
            k[page, head, place],
        )
        value, target = qkv[row, values_at : values_at + value_dim], v[page, head, place]
        for c in range(value_dim):
            target[c] = value[c]


@compiled
def compress(
    index: int, head: int, rule: SparseRule, rows: Rows, k: Floats, v: Floats, k_slots: Floats,
    v_slots: Floats,
) -> None:  # fmt: skip
    """The slots that complete at a tile's tokens."""
    first, count, pages = (
        rows.tiles[index, 0],
        rows.tiles[index, 1],
        rows.pages[rows.tiles[index, 2]],
    )
    for row in range(first, first + count):
        position = rows.positions[row]
        slot, rest = position // rule.compress_stride, (position + 1) % rule.compress_stride
        if rest == 0 and slot >= rule.first_slot:
            complete_slot(k, k_slots, head, pages, position, rule)
            if rule.use_compressed:
                complete_slot(v, v_slots, head, pages, position, rule)


@compiled
def put_planes(block: int, kv_heads: int, rows: Rows, k: Floats, v: Floats, shared: Shared) -> None:
    """A block's keys and values of all heads as planes."""
    sequence, first, count = rows.blocks[block]
    page, place = rows.pages[sequence, first // k.shape[2]], first % k.shape[2]
    for head in range(kv_heads):
        planes.put_keys(k[page, head], place, count, shared.k_planes[head], block)
        planes.put_values(v[page, head], place, count, shared.v_planes[head], block)


@compiled
def make_tile(
    index: int, head: int, sizes: Sizes, rows: Rows, shared: Shared, queries: Floats,
    query_planes: Bytes, gates: Floats, out: Floats,
) -> Tile:  # fmt: skip
    """A tile's queries, rotated, and gates, in memory given."""
    qkv, sequence = shared.qkv, rows.tiles[index, 2]
    dim, group = sizes.head_dim, sizes.num_heads // sizes.num_kv_heads
    gates_at = (sizes.num_heads + sizes.num_kv_heads) * dim + sizes.num_kv_heads * sizes.value_dim
    first, count = rows.tiles[index, 0], rows.tiles[index, 1]
    for lane in range(group * count):
        row, query_head = first + lane // group, head * group + lane % group
        query = qkv[row, query_head * dim : (query_head + 1) * dim]
        rotate(
            query,
            rows.rotations[0, row],
            rows.rotations[1, row],
            sizes.interleaved,
            queries[:, lane],
        )
        triple = query_head * sizes.num_gates // sizes.num_heads
        for i in range(3):
            gates[lane, i] = sizes.gates[i]
            if sizes.num_gates:
                gates[lane, i] = sigmoid(qkv[row, gates_at + triple * 3 + i])
    if sizes.by_tiles:
        planes.put_queries(queries, query_planes)
    return Tile(
        group=group,
        positions=rows.positions[first : first + count],
        pages=rows.pages[sequence],
        head=head,
        queries=queries,
        scale=np.float32(sizes.scale),
        gates=gates,
        out=out[: group * count],
        block=planes.BLOCK if sizes.by_tiles else 1,
        query_planes=query_planes,
        k_planes=shared.k_planes[head],
        v_planes=shared.v_planes[head],
        planes_at=rows.blocks_at[sequence],
    )


@compiled
def put_back(tile: Tile, first: int, sizes: Sizes, attended: Floats) -> None:
    """A tile's results to where its rows are."""
    group, value_dim = tile.group, sizes.value_dim
    for lane in range(tile.out.shape[0]):
        at = (tile.head * group + lane % group) * value_dim
        line, out = attended[first + lane // group, at : at + value_dim], tile.out[lane]
        for c in range(value_dim):
            line[c] = out[c]
