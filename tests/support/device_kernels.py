"""Plain torch in the place of device kernels: what surrounds them is tested without Triton."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nsa_kernels.batch import CompletedSlots, DecodeRows, PrefillChunks
from nsa_kernels.cache import LayerCache
from nsa_kernels.dense.backends import dense_backend
from nsa_kernels.dispatch import LayerKernels
from nsa_kernels.geometry import head_token_rows, scatter_tokens
from nsa_kernels.metadata import Chunk, RowGroup, SlotWork
from nsa_kernels.paged.chunks import sparse_chunk
from nsa_kernels.paged.queries import Branches, Queries
from nsa_kernels.paged.rows import chosen_blocks, sparse_rows
from nsa_kernels.spec import SparseSpec
from nsa_kernels.write.averages import Average, Averages, RowSlots
from nsa_kernels.write.reference import Compress, compress_slots
from nsa_kernels.write.rotate import HeadNorm, OwnBranches
from nsa_serve.model.gates import BranchGates, combine

Memory = tuple[Tensor, Tensor] | None


def torch_kernels() -> LayerKernels:
    """Stand-ins of the Triton kernels, made of the reference."""
    return LayerKernels(
        rotate_and_write=_rotate_and_write,
        complete_slots=_complete_slots,
        compress_learned=_compress_learned,
        sparse_decode=_sparse_decode,
        chosen_blocks=_chosen_blocks,
        sparse_prefill=_sparse_prefill,
        dense=dense_backend("sdpa", torch.device("cpu")),
    )


def _rotate_and_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor | None,
    token_rows: Tensor,
    cache: LayerCache,
    *,
    interleaved: bool = False,
    norm: HeadNorm | None = None,
    raw_queries: Tensor | None = None,
    own: OwnBranches | None = None,
    slots: RowSlots | None = None,
) -> Tensor:
    assert positions is not None
    angles = cos_sin[positions.clamp_min(0).long()][:, None]
    q, k = (_normed(x, norm, i) for i, x in enumerate((q, k)))
    if raw_queries is not None:
        raw_queries.copy_(q)
    writes = [(cache.k, _rotated(k, angles, interleaved)), (cache.v, v)]
    if own is not None:
        k_window, k_phi = (_normed(x, norm, 1) for x in (own.k_window, own.k_phi))
        writes += [
            (cache.k_window, _rotated(k_window, angles, interleaved)),
            (cache.v_window, own.v_window),
            (cache.phi_k, _rotated(k_phi, angles, interleaved) if own.rotate_phi else k_phi),
            (cache.phi_v, own.v_phi),
        ]
    elif cache.phi_k is not cache.k:
        writes.append((cache.phi_k, k))
    real = token_rows >= 0
    rows = head_token_rows(token_rows[real], cache.k.shape[1], cache.page_size)
    for target, values in writes:
        scatter_tokens(target, rows, values[real])
    if slots is not None:
        ends = slots.rows.positions + 1
        spec = slots.phi.spec
        slot = ends // spec.compress_stride - 1
        exists = (ends > 0) & (ends % spec.compress_stride == 0) & (slot >= spec.first_slot)
        items = torch.arange(len(ends), dtype=torch.int32)
        work = CompletedSlots(torch.where(exists, slot, -1), items, slots.rows.block_table)
        _complete_slots(cache, work, slots.phi)
    return _rotated(q, angles, interleaved)


def _normed(x: Tensor, norm: HeadNorm | None, which: int) -> Tensor:
    if norm is None:
        return x
    weight = norm.key if which else norm.query
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, norm.eps)


def _rotated(x: Tensor, angles: Tensor, interleaved: bool) -> Tensor:
    cos, sin = angles.chunk(2, -1)
    if interleaved:
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _complete_slots(cache: LayerCache, work: CompletedSlots, phi: Averages) -> None:
    def average(which: Average) -> Compress:
        def compress(windows: Tensor, first: Tensor) -> Tensor:
            if which.weights is None:
                out = windows.mean(-2)
            else:
                out = (windows * which.weights[:, :, None]).sum(-2)
            if which.bias is not None:
                out = out + which.bias
            if which.cos_sin is None:
                return out
            angles = which.cos_sin[first.abs().long()][:, None].clone()
            angles[first < 0, :, angles.shape[-1] // 2 :] *= -1
            return _rotated(out, angles, which.interleaved)

        return compress

    _compress_learned(cache, work, phi.spec, average(phi.keys), average(phi.values))


def _compress_learned(
    cache: LayerCache, work: CompletedSlots, spec: SparseSpec, keys: Compress, values: Compress
) -> None:
    real = work.slots >= 0
    if not bool(real.any()):
        return
    tables = work.block_table[work.rows[real].long()].long()
    listed = SlotWork(work.slots[real].long(), tables)
    compress_slots(cache, listed, spec.compress_block, spec.compress_stride, keys, values)


def _sparse_decode(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    rows: DecodeRows,
    spec: SparseSpec,
    scale: float,
    *,
    memory: Memory = None,
    gate_logits: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    out = _target(q, cache, out).zero_()
    weights = BranchGates(gates, gate_logits).weights.expand(len(q), -1, -1)
    for i, group in _groups(rows, cache):
        one = slice(i, i + 1)
        queries = Queries(q[one], q_compressed[one], scale, memory)
        out[one] = combine(weights[one], sparse_rows(queries, cache, group, spec))
    return out


def _chosen_blocks(
    q_compressed: Tensor,
    cache: LayerCache,
    rows: DecodeRows,
    spec: SparseSpec,
    scale: float,
    *,
    memory: Memory = None,
) -> list[list[list[int]]]:
    queries = Queries(q_compressed, q_compressed, scale, memory)
    return [
        chosen_blocks(queries.part(i, i + 1), cache, group, spec)[0]
        for i, group in _groups(rows, cache)
    ]


def _groups(rows: DecodeRows, cache: LayerCache) -> Iterator[tuple[int, RowGroup]]:
    """Each row that is no padding, alone."""
    for i, position in enumerate(rows.positions.tolist()):
        assert position < rows.max_context
        if position >= 0:
            one = slice(i, i + 1)
            pages = position // cache.page_size + 1
            table = rows.block_table[one, :pages].long()
            yield i, RowGroup(0, 1, rows.positions[one].long(), table, position)


def _sparse_prefill(
    q: Tensor,
    q_compressed: Tensor,
    gates: Tensor,
    cache: LayerCache,
    chunks: PrefillChunks,
    spec: SparseSpec,
    scale: float,
    *,
    memory: Memory = None,
    gate_logits: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    out = _target(q, cache, out)
    weights = BranchGates(gates, gate_logits).weights.expand(len(q), -1, -1)
    start = 0
    for i, (first, length) in enumerate(zip(chunks.first_positions, chunks.lengths, strict=True)):
        stop = start + length
        pages = (first + length - 1) // cache.page_size + 1
        chunk = Chunk(start, stop, first, chunks.block_table[i : i + 1, :pages].long())
        queries = Queries(q, q_compressed, scale, memory).part(start, stop)
        branches: Branches = sparse_chunk(queries, cache, chunk, spec)
        out[start:stop] = combine(weights[start:stop], branches)
        start = stop
    return out


def _target(q: Tensor, cache: LayerCache, out: Tensor | None) -> Tensor:
    return q.new_empty(*q.shape[:2], cache.v.shape[-1]) if out is None else out
