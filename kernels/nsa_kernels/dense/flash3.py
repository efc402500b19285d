"""FlashAttention-3 over our pages, from a library that is not ours: for comparisons.

It comes as a shared object that registers operators with torch, under different names and with
arguments in different orders. What an argument means is told by its name, so a call is made from
the operator's own schema.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows, PrefillChunks
from nsa_kernels.dense.backends import BackendError

_NAMESPACES = ("_vllm_fa3_C", "flash_attn_3")
_INSTALLED = (("vllm.vllm_flash_attn", "_vllm_fa3_C*.so"), ("vllm_flash_attn", "_vllm_fa3_C*.so"),
              ("flash_attn_3", "_C*.so"))  # fmt: skip
_NEUTRAL: dict[str, Any] = {
    "window_size_left": -1,
    "window_size_right": -1,
    "attention_chunk": 0,
    "softcap": 0.0,
    "has_softcap": False,
    "is_rotary_interleaved": True,
    "num_splits": 0,
    "max_seqlen_k_new": 0,
    "sm_margin": 0,
    "cp_world_size": 1,
    "cp_rank": 0,
}
"""What its arguments are where nothing is asked of them; 0 splits lets it choose."""


@dataclass(frozen=True, slots=True)
class Flash3:
    """Its operators. The caches may lie in memory as ours do: it takes any strides."""

    forward: Callable[..., Any]
    metadata: Callable[..., Any] | None
    """Plans the splits of a decode step; the plan holds for all layers."""
    arguments: tuple[str, ...]
    """Of `forward`, those without a default."""
    metadata_arguments: tuple[str, ...] = ()

    def decode_step(
        self, q: Tensor, k: Tensor, v: Tensor, rows: DecodeRows, *, planned: bool
    ) -> dict[str, Any]:
        """What `attend` is given for single queries q [B, H, D], for every layer; `planned`
        computes the splits once, here, where the library can. Rows must not be padding."""
        values: dict[str, Any] = {
            "cu_seqlens_q": torch.arange(len(q) + 1, dtype=torch.int32, device=q.device),
            "seqused_k": rows.positions.to(torch.int32) + 1,
            "max_seqlen_q": 1,
            "max_seqlen_k": rows.max_context,
        }
        if planned and self.metadata is not None:
            asked = values | {
                "batch_size": len(q),
                "num_heads": q.shape[1],
                "num_heads_k": k.shape[1],
                "headdim": q.shape[2],
                "headdim_v": v.shape[3],
                "qkv_dtype": q.dtype,
                "page_size": k.shape[2],
                "is_causal": True,
            }
            values["scheduler_metadata"] = self.metadata(**filled(self.metadata_arguments, asked))
        return values | {"page_table": rows.block_table}

    def prefill_step(self, chunks: PrefillChunks) -> dict[str, Any]:
        """What `attend` is given for chunks."""
        ends = [f + n for f, n in zip(chunks.first_positions, chunks.lengths, strict=True)]
        starts = torch.tensor([0, *chunks.lengths]).cumsum(0)
        device = chunks.block_table.device
        return {
            "cu_seqlens_q": starts.to(device, torch.int32),
            "seqused_k": torch.tensor(ends, dtype=torch.int32, device=device),
            "max_seqlen_q": max(chunks.lengths),
            "max_seqlen_k": max(ends),
            "page_table": chunks.block_table,
        }

    def attend(self, q: Tensor, k: Tensor, v: Tensor, step: dict[str, Any], scale: float) -> Tensor:
        """Causal attention of queries [T, H, D] over caches [pages, kv_heads, P, dim]:
        [T, H, Dv]."""
        values = step | {
            "q": q,
            "k": k.transpose(1, 2),
            "v": v.transpose(1, 2),
            "softmax_scale": scale,
            "is_causal": True,
        }
        out: Tensor = self.forward(**filled(self.arguments, values))[0]
        return out


def filled(arguments: Iterable[str], values: dict[str, Any]) -> dict[str, Any]:
    """The values, and a neutral one for each other argument that must be given."""
    return {name: _NEUTRAL.get(name) for name in arguments} | {
        name: value for name, value in values.items() if value is not None
    }


def load(library: Path | None = None) -> Flash3:
    """FA3 from a shared object, or from a package that brings one.

    Raises BackendError, one line.
    """
    path = library or _installed()
    if path is None:
        raise BackendError("no package brings it; name a library")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise BackendError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from None
    for name in _NAMESPACES:
        namespace = getattr(torch.ops, name)
        if hasattr(namespace, "fwd"):
            return _from_namespace(namespace)
    raise BackendError(f"{path} registers no operator that is known")


def _from_namespace(namespace: Any) -> Flash3:
    metadata = getattr(namespace, "get_scheduler_metadata", None)
    return Flash3(
        forward=namespace.fwd,
        metadata=metadata,
        arguments=_required(namespace.fwd),
        metadata_arguments=() if metadata is None else _required(metadata),
    )


def _required(operator: Any) -> tuple[str, ...]:
    """Names of an operator's arguments that have no default."""
    arguments = operator.default._schema.arguments
    return tuple(argument.name for argument in arguments if not argument.has_default_value())


def _installed() -> Path | None:
    """The library of an installed package; the package itself is not imported."""
    for package, pattern in _INSTALLED:
        parent, _, child = package.partition(".")
        spec = importlib.util.find_spec(parent)
        for folder in (spec and spec.submodule_search_locations) or ():
            if found := sorted((Path(folder) / child).glob(pattern)):
                return found[0]
    return None
