"""Random caches and chunks for the prefill kernels, and what the reference makes of them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nsa_kernels.batch import PrefillChunks
from nsa_kernels.cache import LayerCache
from nsa_kernels.geometry import num_pages_for
from nsa_kernels.metadata import AttentionMetadata, Chunk
from nsa_kernels.paged.queries import Queries
from nsa_kernels.paged.reference import dense_attention, sparse_attention
from nsa_kernels.spec import SparseSpec
from nsa_serve.config import NSAConfig

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def spec_of(nsa: NSAConfig) -> SparseSpec:
    """What the kernels are told of a dialect."""
    return SparseSpec(
        compress_block=nsa.compress_block,
        compress_stride=nsa.compress_stride,
        select_block=nsa.select_block,
        num_selected=nsa.num_selected,
        window=nsa.window,
        first_slot=nsa.first_slot,
        strict=nsa.visibility == "strict",
        importance=nsa.importance,
        init_blocks=nsa.init_blocks,
        local_blocks=nsa.local_blocks,
        forced_counted=nsa.forced_counted,
        half_merge=nsa.selection == "half_merge",
        selection_floor=nsa.selection_floor,
        dense_len=nsa.dense_len,
        uses=nsa.uses,
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a case; chunks are (first position, length), each of a sequence of its own."""

    spec: SparseSpec
    chunks: tuple[tuple[int, int], ...]
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    value_dim: int = 16
    page_size: int = 16
    memory: int = 0
    independent: bool = False
    raw_queries: bool = False
    dtype: torch.dtype = torch.float32
    sharpness: float = 2.0
    """Scale of the queries: how far logits are spread."""
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """Everything that `sparse_prefill` takes."""

    shape: Shape
    q: Tensor
    q_compressed: Tensor
    gates: Tensor
    cache: LayerCache
    chunks: PrefillChunks
    memory: tuple[Tensor, Tensor] | None
    scale: float
    written: dict[str, Tensor] = field(default_factory=dict)


def make_case(shape: Shape) -> Case:
    """Pages in a scattered order; whatever no chunk has written is NaN."""
    generator = torch.Generator().manual_seed(shape.seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(DEVICE, shape.dtype)

    spec, page = shape.spec, shape.page_size
    ends = [first + length for first, length in shape.chunks]
    needed = [num_pages_for(end, page) for end in ends]
    order = torch.randperm(sum(needed) + 3, generator=generator).tolist()
    width = max(needed) + 1
    table = torch.full((len(ends), width), 1 << 20, dtype=torch.int32)
    for row, count in enumerate(needed):
        table[row, :count] = torch.tensor([order.pop() for _ in range(count)])
    pages = sum(needed) + 3

    def paged(entries: int, dim: int, stride: int, first_slot: int = 0) -> Tensor:
        cache = torch.full((pages, shape.kv_heads, entries, dim), torch.nan, dtype=shape.dtype)
        for row, end in enumerate(ends):
            index = torch.arange(first_slot, max(end // stride, first_slot))
            rows = table[row].long()[index // entries]
            values = torch.randn(len(index), shape.kv_heads, dim, generator=generator)
            cache[rows, :, index % entries] = values.to(shape.dtype)
        return cache.to(DEVICE)

    k, v = paged(page, shape.head_dim, 1), paged(page, shape.value_dim, 1)
    own = shape.independent
    per_page = page // spec.compress_stride
    cache = LayerCache(
        page_size=page,
        k=k,
        v=v,
        k_window=paged(page, shape.head_dim, 1) if own else k,
        v_window=paged(page, shape.value_dim, 1) if own else v,
        phi_k=k,
        phi_v=v,
        k_compressed=paged(per_page, shape.head_dim, spec.compress_stride, spec.first_slot),
        v_compressed=paged(per_page, shape.value_dim, spec.compress_stride, spec.first_slot)
        if spec.uses[0]
        else None,
    )
    tokens = sum(length for _, length in shape.chunks)
    heads = shape.kv_heads * shape.group
    q = noise(tokens, heads, shape.head_dim) * shape.sharpness
    memory = None
    if shape.memory:
        memory = (
            noise(shape.kv_heads, shape.memory, shape.head_dim),
            noise(shape.kv_heads, shape.memory, shape.value_dim),
        )
    return Case(
        shape=shape,
        q=q,
        q_compressed=noise(tokens, heads, shape.head_dim) if shape.raw_queries else q,
        gates=torch.rand(tokens, heads, 3, generator=generator).to(DEVICE, shape.dtype),
        cache=cache,
        chunks=PrefillChunks(
            [first for first, _ in shape.chunks],
            [length for _, length in shape.chunks],
            table.to(DEVICE),
        ),
        memory=memory,
        scale=shape.head_dim**-0.5,
    )


def metadata(case: Case) -> AttentionMetadata:
    """The same chunks as the reference is told of them."""
    chunks, start = [], 0
    for row, (first, length) in enumerate(case.shape.chunks):
        count = num_pages_for(first + length, case.shape.page_size)
        table = case.chunks.block_table[row : row + 1, :count].long()
        chunks.append(Chunk(start, start + length, first, table))
        start += length
    return AttentionMetadata(torch.empty(0), case.shape.page_size, [], chunks, None)


def in_float64(case: Case) -> tuple[Queries, LayerCache]:
    """The case's numbers in float64, with zeros for what was never written."""

    def widened(x: Tensor) -> Tensor:
        return x.double().nan_to_num(0.0)

    memory = None if case.memory is None else (case.memory[0].double(), case.memory[1].double())
    queries = Queries(case.q.double(), case.q_compressed.double(), case.scale, memory)
    cache = case.cache
    return queries, LayerCache(
        page_size=cache.page_size,
        k=widened(cache.k),
        v=widened(cache.v),
        k_window=widened(cache.k_window),
        v_window=widened(cache.v_window),
        phi_k=cache.phi_k,
        phi_v=cache.phi_v,
        k_compressed=None if cache.k_compressed is None else widened(cache.k_compressed),
        v_compressed=None if cache.v_compressed is None else widened(cache.v_compressed),
    )


def expected(case: Case, gates: Tensor | None = None) -> Tensor:
    """The gated sum by the reference: [T, H, Dv] float64."""
    queries, cache = in_float64(case)
    branches = sparse_attention(queries, cache, metadata(case), case.shape.spec)
    gates = (case.gates if gates is None else gates).double()
    out = torch.zeros((), dtype=torch.float64, device=DEVICE)
    for weight, branch in zip(gates.unbind(-1), branches, strict=True):
        if branch is not None:
            out = out + weight[..., None] * branch
    return out


def expected_dense(case: Case) -> Tensor:
    """Causal attention by the reference: [T, H, Dv] float64."""
    queries, cache = in_float64(case)
    return dense_attention(queries.q, cache, metadata(case), case.scale)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """‖found − reference‖ / ‖reference‖"""
    return float((found.double() - reference).norm() / reference.norm())
