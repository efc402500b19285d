"""Which implementation of a stage runs where. The reference runs everywhere."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from nsa_kernels.paged.reference import Queries, dense_attention, sparse_attention
from nsa_kernels.write.reference import Compress, compress_slots, write_tokens

if TYPE_CHECKING:
    from nsa_kernels.batch import CompletedSlots, DecodeRows, PrefillChunks
    from nsa_kernels.cache import LayerCache
    from nsa_kernels.dense import BackendName, DenseBackend
    from nsa_kernels.spec import SparseSpec
    from nsa_kernels.write.averages import Averages, RowSlots
    from nsa_kernels.write.rotate import HeadNorm, OwnBranches

__all__ = [
    "LayerKernels",
    "Queries",
    "compress_slots",
    "dense_attention",
    "has_kernels",
    "layer_kernels",
    "sparse_attention",
    "why_no_kernels",
    "write_tokens",
]

_CAPABILITY = (8, 0)
"""The least compute capability: bfloat16 products and asynchronous copies."""


@functools.cache
def why_no_kernels(device: torch.device) -> str | None:
    """One line that says why the Triton kernels cannot run on a device; None if they can. `meta`
    stands for a GPU that can: there it is found out what to compile."""
    if device.type not in ("cuda", "meta"):
        return f"device {device} is no GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type == "meta":
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (capability, _CAPABILITY))
        return f"the GPU has compute capability {have}, the kernels need {need}"
    return None


def has_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels can run on a device."""
    return why_no_kernels(device) is None


class RotateAndWrite(Protocol):
    """See `nsa_kernels.write.rotate`."""

    def __call__(
        self,
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
    ) -> Tensor: ...


class CompleteSlots(Protocol):
    """See `nsa_kernels.write.slots`."""

    def __call__(self, cache: LayerCache, work: CompletedSlots, phi: Averages) -> None: ...


class CompressLearned(Protocol):
    """See `nsa_kernels.write.windows`."""

    def __call__(
        self,
        cache: LayerCache,
        work: CompletedSlots,
        spec: SparseSpec,
        keys: Compress,
        values: Compress,
    ) -> None: ...


class SparseDecode(Protocol):
    """See `nsa_kernels.decode.layer`."""

    def __call__(
        self,
        q: Tensor,
        q_compressed: Tensor,
        gates: Tensor,
        cache: LayerCache,
        rows: DecodeRows,
        spec: SparseSpec,
        scale: float,
        *,
        memory: tuple[Tensor, Tensor] | None = None,
        gate_logits: bool = False,
        out: Tensor | None = None,
    ) -> Tensor: ...


class ChosenBlocks(Protocol):
    """See `nsa_kernels.decode.layer`."""

    def __call__(
        self,
        q_compressed: Tensor,
        cache: LayerCache,
        rows: DecodeRows,
        spec: SparseSpec,
        scale: float,
        *,
        memory: tuple[Tensor, Tensor] | None = None,
    ) -> list[list[list[int]]]: ...


class SparsePrefill(Protocol):
    """See `nsa_kernels.prefill.layer`."""

    def __call__(
        self,
        q: Tensor,
        q_compressed: Tensor,
        gates: Tensor,
        cache: LayerCache,
        chunks: PrefillChunks,
        spec: SparseSpec,
        scale: float,
        *,
        memory: tuple[Tensor, Tensor] | None = None,
        gate_logits: bool = False,
        out: Tensor | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class LayerKernels:
    """Everything that an attention layer launches on a device."""

    rotate_and_write: RotateAndWrite
    complete_slots: CompleteSlots
    compress_learned: CompressLearned
    sparse_decode: SparseDecode
    chosen_blocks: ChosenBlocks
    sparse_prefill: SparsePrefill
    dense: DenseBackend


def layer_kernels(device: torch.device, dense: BackendName = "auto") -> LayerKernels:
    """The Triton kernels; they are imported here, for triton need not be installed.

    Raises nsa_kernels.dense.BackendError if dense attention by `dense` cannot run on the device.
    """
    from nsa_kernels.dense import dense_backend

    def function(module: str, name: str) -> Any:
        return getattr(importlib.import_module(f"nsa_kernels.{module}"), name)

    return LayerKernels(
        rotate_and_write=function("write.rotate", "rotate_and_write"),
        complete_slots=function("write.slots", "complete_slots"),
        compress_learned=function("write.windows", "compress_learned"),
        sparse_decode=function("decode.layer", "sparse_decode"),
        chosen_blocks=function("decode.layer", "chosen_blocks"),
        sparse_prefill=function("prefill.layer", "sparse_prefill"),
        dense=dense_backend(dense, device),
    )
