"""Random queries and caches for one attention layer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows, PrefillChunks
from nsa_kernels.cache import CacheLayout, LayerCache
from nsa_kernels.geometry import num_pages_for
from nsa_serve.bench.shapes import PAGE_SIZE, PAPER, HeadShape

_NEIGHBOURS = 16
"""Positions over which a query turns into an independent one where neighbours are alike."""
_MAX_TABLES = 32


@dataclass(frozen=True, slots=True)
class Pool:
    """A layer's caches, all of it random numbers, in pages that cases draw from."""

    heads: HeadShape
    cache: LayerCache

    @classmethod
    def make(
        cls, heads: HeadShape, num_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> "Pool":
        """Room for so many tokens in whole pages."""
        cache = LayerCache.allocate(layout_of(heads), num_tokens // PAGE_SIZE + 1, dtype, device)
        for tensor in cache.tensors:
            tensor.normal_()
        return cls(heads, cache)

    @property
    def device(self) -> torch.device:
        """Of everything."""
        return self.cache.k.device

    def tables(self, count: int, batch: int, tokens: int) -> list[Tensor]:
        """`count` tables [batch, W] of random pages."""
        width, num_pages = num_pages_for(tokens, PAGE_SIZE), len(self.cache.k)
        return [
            torch.randperm(num_pages, device=self.device)[: batch * width]
            .view(batch, width)
            .to(torch.int32)
            for _ in range(count)
        ]

    def random(self, *shape: int) -> Tensor:
        """Normal numbers in the cache's type."""
        return torch.randn(shape, device=self.device, dtype=self.cache.k.dtype)


def in_pages(tokens: int) -> int:
    """Tokens of the pages that a sequence fills, the last one whole."""
    return num_pages_for(tokens, PAGE_SIZE) * PAGE_SIZE


def layout_of(heads: HeadShape) -> CacheLayout:
    """The cache of one layer."""
    return CacheLayout(
        num_kv_heads=heads.num_kv_heads,
        head_dim=heads.head_dim,
        value_dim=heads.value_dim,
        page_size=PAGE_SIZE,
        stride=PAPER.compress_stride,
    )


def bytes_per_token(heads: HeadShape, dtype: torch.dtype) -> float:
    """Of one layer's caches."""
    return sum(layout_of(heads).elements_per_token.values()) * dtype.itemsize


@dataclass(frozen=True, slots=True)
class DecodeCase:
    """A decode step of one layer, over one set of pages after the other."""

    pool: Pool
    q: Tensor
    """[B, H, D]"""
    gates: Tensor
    """[B, H, 3]"""
    rows: list[DecodeRows]
    """The same step over other pages."""

    @property
    def context(self) -> int:
        """Tokens of each sequence."""
        return self.rows[0].max_context


def decode_case(pool: Pool, batch: int, context: int, num_tables: int) -> DecodeCase:
    """All sequences have `context` tokens; the query is the newest."""
    heads = pool.heads
    positions = torch.full((batch,), context - 1, dtype=torch.int32, device=pool.device)
    return DecodeCase(
        pool=pool,
        q=pool.random(batch, heads.num_heads, heads.head_dim),
        gates=pool.random(batch, heads.num_heads, 3).sigmoid(),
        rows=[
            DecodeRows(positions, table, context)
            for table in pool.tables(num_tables, batch, context)
        ],
    )


def num_cold_tables(bytes_read: int, l2_bytes: int) -> int:
    """How many sets of pages one must read in turn so that none is left in the L2 cache."""
    return max(1, min(_MAX_TABLES, math.ceil(2 * l2_bytes / max(bytes_read, 1))))


@dataclass(frozen=True, slots=True)
class PrefillCase:
    """A whole prompt as one chunk of one layer."""

    pool: Pool
    q: Tensor
    """[T, H, D], independent"""
    alike: Tensor
    """[T, H, D], neighbours alike"""
    gates: Tensor
    """[T, H, 3]"""
    chunks: PrefillChunks

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return self.chunks.num_queries


def prefill_case(pool: Pool, tokens: int) -> PrefillCase:
    """A prompt of `tokens` tokens."""
    heads = pool.heads
    (table,) = pool.tables(1, 1, tokens)
    return PrefillCase(
        pool=pool,
        q=pool.random(tokens, heads.num_heads, heads.head_dim),
        alike=alike_neighbours(pool, tokens),
        gates=pool.random(tokens, heads.num_heads, 3).sigmoid(),
        chunks=PrefillChunks([0], [tokens], table),
    )


def alike_neighbours(pool: Pool, tokens: int) -> Tensor:
    """Queries [T, H, D] that turn slowly from one random direction into the next."""
    heads = pool.heads
    turns = pool.random(-(-tokens // _NEIGHBOURS) + 1, heads.num_heads, heads.head_dim)
    angle = torch.arange(_NEIGHBOURS, device=pool.device) * (math.pi / 2 / _NEIGHBOURS)
    near, far = (x.to(turns.dtype)[:, None, None] for x in (angle.cos(), angle.sin()))
    return (turns[:-1, None] * near + turns[1:, None] * far).flatten(0, 1)[:tokens]
