"""A tile: a few neighbouring tokens of one sequence with the queries of one kv head, each of which
is a lane of a vector; and the memory that is needed to attend with it."""

from typing import NamedTuple

import numpy as np

from nsa_serve.model.compiled import planes
from nsa_serve.model.compiled.jit import Bytes, Floats, Indices, compiled
from nsa_serve.model.compiled.scores import KEYS

FEW = 4
"""Blocks that become planes before they are read: tiles that were stored just now load slowly."""


class Tile(NamedTuple):
    """A tile's queries and whatever is needed to attend with them."""

    group: int
    """Queries of a token."""
    positions: Indices
    """[tokens], ascending"""
    pages: Indices
    """[W] of the sequence"""
    head: int
    queries: Floats
    """[D, lanes]: token by token, query head by query head"""
    scale: np.float32
    """Of scores."""
    gates: Floats
    """[lanes, 3]"""
    out: Floats
    """[lanes, Dv]: receives the result"""
    block: int
    """`planes.BLOCK` if tokens are attended by AMX, else 1."""
    query_planes: Bytes
    k_planes: Bytes
    v_planes: Bytes
    """[blocks, bytes]: of the whole context, from `planes_at` on"""
    planes_at: int
    """-1 where each tile makes its own."""


class Scratch(NamedTuple):
    """Memory that every tile of a member uses again."""

    scores: Floats
    """[entries, lanes]"""
    shares: Floats
    """[lanes]"""
    branch: Floats
    """[lanes, Dv]"""
    runs: Indices
    """[runs, 3]: entries [start, stop), in one page, and whether a lane does not see all of them"""
    begins: Indices
    """[lanes] the first entry that a lane sees"""
    ends: Indices
    """[runs, lanes] where a run ends for a lane that sees only part of it, or none"""
    masses: Floats
    """[blocks]"""
    chosen: Bytes
    """[blocks, tokens]"""
    k_planes: Bytes
    v_planes: Bytes
    """[few, bytes]: of some blocks"""


@compiled
def make_scratch(
    num_lanes: int, head_dim: int, value_dim: int, entries: int, piece: int
) -> Scratch:
    """For contexts of so many entries; `piece` is the smallest length of a run."""
    pieces = entries // piece + 2
    return Scratch(
        scores=np.empty((entries + 2 * planes.BLOCK + KEYS, num_lanes), np.float32),
        shares=np.empty(num_lanes, np.float32),
        branch=np.empty((num_lanes, value_dim), np.float32),
        runs=np.empty((pieces, 3), np.int64),
        begins=np.empty(num_lanes, np.int64),
        ends=np.empty((pieces, num_lanes), np.int64),
        masses=np.empty(pieces, np.float32),
        chosen=np.empty((pieces, num_lanes), np.int8),
        k_planes=np.empty((FEW, planes.num_bytes(head_dim)), np.int8),
        v_planes=np.empty((FEW, planes.num_bytes(value_dim)), np.int8),
    )
