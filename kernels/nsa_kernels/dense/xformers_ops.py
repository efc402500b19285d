"""Dense attention by xformers.

Its wheel on PyPI is built for CUDA 12. Beside a torch for CUDA 13 its library loads once
`libcudart.so.12` is in the process with global symbols; the package nvidia-cuda-runtime-cu12 brings
that file. Without it xformers imports, with a warning, but has no operator of its own.
"""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows, PrefillChunks
from nsa_kernels.dense import sdpa
from nsa_kernels.dense.backends import BackendError
from nsa_kernels.dense.pages import as_head_pages, gathered, head_page_table
from nsa_kernels.geometry import num_pages_for

_SPLIT_K_DIMS = (16, 32, 64, 128, 256, 512)
_SPLIT_K_TOKENS = 64
"""Pages that its decoding operator reads must be multiples of this."""
_CUDART = "nvidia/cuda_runtime/lib/libcudart.so.12"


@dataclass(frozen=True, slots=True)
class XformersOps:
    """Its operators as a backend."""

    fmha: Any
    """The module xformers.ops.fmha."""

    def decode(self, q: Tensor, k: Tensor, v: Tensor, rows: DecodeRows, scale: float) -> Tensor:
        """`Decode` over pages by the split-k operator; where that does not support the shape, by
        torch over gathered keys."""
        if not reads_pages(k, v):
            return sdpa.decode(q, k, v, rows, scale)
        n, num_heads, dim = q.shape
        heads, page_size = k.shape[1:3]
        group = num_heads // heads
        width = num_pages_for(rows.max_context, page_size)
        padding = rows.positions[:, None] < 0  # they read the first key of the first page
        table = head_page_table(rows.block_table[:, :width].masked_fill(padding, 0), heads)
        lengths = (rows.positions + 1).clamp_min(1).repeat_interleave(heads)
        out = self.fmha.memory_efficient_attention_forward(
            q.reshape(1, n * heads, 1, group, dim),
            as_head_pages(k).view(1, -1, 1, 1, dim).expand(-1, -1, -1, group, -1),
            as_head_pages(v).view(1, -1, 1, 1, dim).expand(-1, -1, -1, group, -1),
            attn_bias=self._lengths(lengths, table, page_size),
            scale=scale,
            op=self.fmha.triton_splitk.FwOp,
        )
        out = out.view(n, num_heads, dim)
        return out.masked_fill_(padding[:, None], 0.0)

    def prefill(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        chunks: PrefillChunks,
        scale: float,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """`Prefill` over gathered keys, one chunk after the other, by the operator that xformers
        prefers."""
        if out is None:
            out = q.new_empty(*q.shape[:2], v.shape[-1])
        heads, page_size = k.shape[1:3]
        start = 0
        for row, (first, length) in enumerate(
            zip(chunks.first_positions, chunks.lengths, strict=True)
        ):
            num_keys = first + length
            pages = chunks.block_table[row : row + 1, : num_pages_for(num_keys, page_size)]
            group = q.shape[1] // heads
            keys, values = (
                gathered(cache, pages)[:, :, :num_keys]
                .transpose(1, 2)[:, :, :, None]
                .expand(-1, -1, -1, group, -1)
                for cache in (k, v)
            )
            part = slice(start, start + length)
            result = self.fmha.memory_efficient_attention_forward(
                q[part].reshape(1, length, heads, group, -1),
                keys,
                values,
                attn_bias=self.fmha.attn_bias.LowerTriangularFromBottomRightMask(),
                scale=scale,
            )
            out[part] = result.view(length, q.shape[1], -1)
            start += length
        return out

    def _lengths(self, lengths: Tensor, table: Tensor, page_size: int) -> Any:
        """The bias that says which keys count. Its lengths stay on the device, where a CUDA graph
        finds them; what it keeps of them on the host only bounds the grid."""
        n, width = table.shape
        padded = width * page_size
        bias = self.fmha.attn_bias.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
            q_seqlen=[1] * n,
            kv_seqlen=[padded] * n,
            block_tables=table.to(torch.int32),
            page_size=page_size,
            device=torch.device("cpu"),
        )
        bias.k_seqinfo.seqlen = lengths.to(torch.int32)
        bias.q_seqinfo.seqstart = torch.arange(n + 1, dtype=torch.int32, device=table.device)
        return bias


def reads_pages(k: Tensor, v: Tensor) -> bool:
    """Whether the split-k operator supports caches of this shape."""
    dims = k.shape[-1], v.shape[-1]
    return dims[0] == dims[1] and dims[0] in _SPLIT_K_DIMS and k.shape[2] % _SPLIT_K_TOKENS == 0


def load() -> XformersOps:
    """Import xformers so that its operators are there. Raises BackendError, one line."""
    if importlib.util.find_spec("xformers") is None:
        raise BackendError("not installed; optional, the extra `dense` brings it")
    preload_cudart()
    if reason := missing_operators():
        raise BackendError(reason)
    return XformersOps(importlib.import_module("xformers.ops.fmha"))


def missing_operators() -> str:
    """Why xformers, which is installed, has no operators; empty if it has them."""
    logging.getLogger("xformers").setLevel(logging.ERROR)  # what it would warn of is returned
    version = importlib.metadata.version("xformers")
    try:
        library = importlib.import_module("xformers._cpp_lib")
    except Exception as error:  # whatever a build for another torch raises
        return f"{version} cannot be imported: {_one_line(error)}"
    failure = library._cpp_library_load_exception
    if failure is None:
        return ""
    return f"{version} without operators: {_one_line(failure.__cause__ or failure)}"


def preload_cudart() -> bool:
    """Load CUDA 12's runtime for xformers' library, if its package is installed; whether it was."""
    for folder in _site_folders():
        if (path := folder / _CUDART).is_file():
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def _site_folders() -> list[Path]:
    """Where packages lie that share the namespace `nvidia`."""
    spec = importlib.util.find_spec("nvidia")
    locations = [] if spec is None else spec.submodule_search_locations or []
    return [Path(location).parent for location in locations]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
