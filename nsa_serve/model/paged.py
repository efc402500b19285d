"""Attention over the paged caches: what serves."""

from dataclasses import dataclass

from torch import Tensor

from nsa_kernels import dispatch
from nsa_kernels.cache import CacheLayout, LayerCache
from nsa_kernels.metadata import AttentionMetadata
from nsa_serve.config import ModelConfig
from nsa_serve.model.attention import Attention, NSABranches
from nsa_serve.model.gates import BranchGates
from nsa_serve.model.heads import Heads, Projected
from nsa_serve.model.rope import Rope, Rotation


@dataclass(frozen=True, slots=True)
class PagedContext:
    """Attention context of one step over all layers' caches."""

    caches: list[LayerCache]
    meta: AttentionMetadata
    rope: Rope

    def dense(self, layer: Attention, projected: Projected, rotate: Rotation) -> Tensor:
        """Write the step's keys and values, then attend to all: [T, H, Dv]."""
        cache, heads = self.caches[layer.index], layer.heads(projected, rotate)
        rows = self.meta.head_rows(layer.num_kv_heads)
        dispatch.write_tokens(cache.k, rows, heads.k)
        dispatch.write_tokens(cache.v, rows, heads.v)
        return dispatch.dense_attention(heads.q, cache, self.meta, layer.scale)

    def sparse(
        self,
        layer: Attention,
        nsa: NSABranches,
        projected: Projected,
        rotate: Rotation,
        gates: BranchGates | None,
    ) -> Tensor:
        """Write keys, values and the slots that complete, then the three branches, gated."""
        cache, heads = self.caches[layer.index], layer.heads(projected, rotate)
        self._write(cache, heads)
        if self.meta.completed is not None:
            dispatch.compress_slots(
                cache,
                self.meta.completed,
                nsa.spec.compress_block,
                nsa.spec.compress_stride,
                lambda windows, first: nsa.phi_k(windows, first, self.rope),
                nsa.phi_v,
            )
        queries = dispatch.Queries(heads.q, nsa.compressed_query(heads), layer.scale, nsa.memory)
        return nsa.weigh(gates, dispatch.sparse_attention(queries, cache, self.meta, nsa.spec))

    def _write(self, cache: LayerCache, heads: Heads) -> None:
        """Each distinct cache once."""
        written: set[int] = set()
        rows = self.meta.head_rows(cache.k.shape[1])
        for target, values in (
            (cache.k, heads.k),
            (cache.v, heads.v),
            (cache.k_window, heads.k_window),
            (cache.v_window, heads.v_window),
            (cache.phi_k, heads.phi_k),
            (cache.phi_v, heads.phi_v),
        ):
            if id(target) not in written:
                written.add(id(target))
                dispatch.write_tokens(target, rows, values)


def cache_layouts(config: ModelConfig, page_size: int) -> list[CacheLayout]:
    """The cache of each layer."""
    nsa = config.nsa
    layouts = []
    for kind in config.kinds:
        sparse = nsa if kind == "nsa" else None
        layouts.append(
            CacheLayout(
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                value_dim=config.value_dim,
                page_size=page_size,
                stride=None if sparse is None else sparse.compress_stride,
                independent_kv=sparse is not None and sparse.branch_kv == "independent",
                raw_phi_keys=sparse is not None and sparse.compressed_rope != "before",
                keys_only=sparse is not None and not sparse.uses[0],
            )
        )
    return layouts
