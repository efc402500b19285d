"""A decoder's steps through the compiled loop."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.metadata import AttentionMetadata
from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.model import fused
from nsa_serve.model.compiled import loop, pack, planes
from nsa_serve.model.compiled.products import MAX_TERMS, TERMS, USES_AMX
from nsa_serve.model.compiled.state import Rows, Shared
from nsa_serve.model.compiled.team import Team
from nsa_serve.model.compiled.vectors import LANES
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.int8 import Int8Linear


def supports(decoder: Decoder) -> bool:
    """Whether the loop computes this model: an int8 one of a plain Llama's parts, whose NSA, if
    any, compresses rotated keys by their mean and ranks blocks by probability mass."""
    config = decoder.config
    nsa = config.nsa
    if config.qk_norm or config.hidden_act != "silu" or not isinstance(decoder.lm_head, Int8Linear):
        return False
    if nsa is not None and not (_supports_dialect(nsa) and len(set(config.kinds)) == 1):
        return False
    return LANES > 0 and _supports_sizes(config)


def _supports_sizes(config: ModelConfig) -> bool:
    lengths = config.hidden_size, config.intermediate_size, config.num_heads * config.value_dim
    return (
        all(length % TERMS == 0 and length <= MAX_TERMS for length in lengths)
        and config.head_dim % LANES == 0
        and config.value_dim % LANES == 0
        and config.num_heads // config.num_kv_heads <= LANES
    )


def _supports_dialect(nsa: NSAConfig) -> bool:
    gates = nsa.gate == "none" or (
        nsa.gate == "sigmoid" and nsa.gate_input == "hidden" and not nsa.gate_hidden
    )
    return (
        gates
        and nsa.compressor == "mean"
        and nsa.intra_block_positions == "none"
        and nsa.memory_slots == 0
        and nsa.padding == "none"
        and nsa.compressed_rope == "before"
        and nsa.importance == "prob_sum"
        and nsa.forced_counted
        and nsa.selection == "exact"
        and nsa.selection_floor == 0.0
        and nsa.branch_kv == "shared"
    )


def version() -> str:
    """Changes with every source that is compiled, and with the unit that multiplies."""
    digest = hashlib.sha256(bytes([USES_AMX]))
    for path in [*sorted(Path(__file__).parent.glob("*.py")), Path(fused.__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Steps:
    """Steps of a decoder that `supports` accepts, over its caches."""

    def __init__(self, decoder: Decoder, caches: list[LayerCache], num_threads: int) -> None:
        self._decoder = decoder
        self._team = Team(num_threads)
        self._sizes = pack.sizes_of(decoder, caches[0].k.shape[2])
        self._rule = pack.rule_of(decoder)
        self._weights, self._head = pack.weights_of(decoder), pack.head_of(decoder)
        self._caches = pack.caches_of(caches)
        self._counter = np.zeros(1, np.int64)
        self._tile = LANES // (self._sizes.num_heads // self._sizes.num_kv_heads)
        self._run, self._run_head = loop.make_step(version()), loop.make_head(version())

    @property
    def by_tiles(self) -> bool:
        """Whether tokens are attended by AMX."""
        return self._sizes.by_tiles

    def takes(self, meta: AttentionMetadata) -> bool:
        """Whether it computes such a step, and no slower than the decoder itself."""
        return USES_AMX or not meta.chunks

    def hidden(self, token_ids: Tensor, positions: Tensor, meta: AttentionMetadata) -> Tensor:
        """token_ids, positions [T] → hidden states [T, hidden], normed."""
        config, decoder = self._decoder.config, self._decoder
        count = len(token_ids)
        rotation = decoder.rope.at(positions, torch.float32)
        tiles, pages = _tiles(meta, self._tile)
        blocks, blocks_at = self._blocks(meta, len(pages))
        heads, dims = config.num_kv_heads, (config.head_dim, config.value_dim)
        k_planes, v_planes = (
            np.empty((heads, len(blocks), 4 * planes.BLOCK * dim), np.int8) for dim in dims
        )
        hidden = _empty(count, config.hidden_size)
        rows = Rows(
            positions=np.ascontiguousarray(positions.numpy()),
            tiles=tiles,
            blocks=blocks,
            blocks_at=blocks_at,
            in_order=int(bool(meta.chunks)),
            pages=pages,
            rotations=torch.cat([rotation.cos, rotation.sin], 1)
            .transpose(0, 1)
            .contiguous()
            .numpy(),
            x=decoder.model.embed_tokens(token_ids).float().numpy(),
            hidden=hidden,
        )
        shared = Shared(
            counter=self._counter,
            met=int(self._counter[0]),
            taken=np.zeros(3 * config.num_layers, np.int64),
            qkv=_empty(count, self._weights.qkv.scale_bias.shape[2]),
            attended=_empty(count, config.num_heads * config.value_dim),
            inner=_empty(count, config.intermediate_size),
            k_planes=k_planes,
            v_planes=v_planes,
        )
        self._team.run(
            self._run, self._sizes, self._rule, self._weights, self._caches, rows, shared
        )
        return torch.from_numpy(hidden)

    def _blocks(self, meta: AttentionMetadata, num_sequences: int) -> tuple[Any, Any]:
        """`Rows.blocks` and `Rows.blocks_at`: the contexts of chunks of more than a tile."""
        blocks: list[tuple[int, int, int]] = []
        at = np.full(num_sequences, -1, np.int64)
        for i, chunk in enumerate(meta.chunks, num_sequences - len(meta.chunks)):
            if self._sizes.by_tiles and chunk.num_queries > self._tile:
                at[i] = len(blocks)
                end = chunk.first_position + chunk.num_queries
                firsts = range(0, end, planes.BLOCK)
                blocks += [(i, first, min(planes.BLOCK, end - first)) for first in firsts]
        return np.array(blocks, np.int64).reshape(-1, 3), at

    def logits(self, hidden: Tensor, /) -> Tensor:
        """[N, hidden] → [N, vocab] float32"""
        head, nothing = self._head, _empty(0, 0)
        logits = _empty(len(hidden), head.scale_bias.shape[2])
        no_planes = np.empty((0, 0, 0), np.int8)
        met, taken = int(self._counter[0]), np.empty(0, np.int64)
        nothings = (nothing, nothing, nothing, no_planes, no_planes)
        shared = Shared(self._counter, met, taken, *nothings)
        given = np.ascontiguousarray(hidden.numpy())
        self._team.run(self._run_head, head, given, logits, shared)
        return torch.from_numpy(logits)[:, : self._decoder.config.vocab_size]


def _empty(*shape: int) -> Any:
    return np.empty(shape, np.float32)


def _tiles(meta: AttentionMetadata, size: int) -> tuple[Any, Any]:
    """`Rows.tiles` of at most `size` rows, and `Rows.pages`."""
    tables = [(group.start, group.block_table) for group in meta.groups]
    num_singles = meta.groups[-1].stop if meta.groups else 0
    tables += [(num_singles + i, chunk.block_table) for i, chunk in enumerate(meta.chunks)]
    width = max(table.shape[1] for _, table in tables)
    pages = np.zeros((num_singles + len(meta.chunks), width), np.int64)
    for start, table in tables:
        pages[start : start + len(table), : table.shape[1]] = table.numpy()
    tiles = [(row, 1, row) for row in range(num_singles)]
    for i, chunk in enumerate(meta.chunks, num_singles):
        firsts = range(chunk.start, chunk.stop, size)
        tiles += [(first, min(size, chunk.stop - first), i) for first in firsts]
    return np.array(tiles, np.int64), pages
