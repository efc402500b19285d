"""Which backends of dense attention there are, which can be used, and how one is had."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows, PrefillChunks
from nsa_kernels.dispatch import why_no_kernels

BackendName = Literal["auto", "triton", "xformers", "sdpa"]


class BackendError(Exception):
    """A backend cannot be used here; the text says why, in one line."""


class Decode(Protocol):
    """Single queries over all keys of their sequences."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, rows: DecodeRows, scale: float) -> Tensor:
        """q [B, H, D], k [pages, kv_heads, P, D], v [pages, kv_heads, P, Dv] → [B, H, Dv]; rows of
        position −1 give zeros."""


class Prefill(Protocol):
    """Chunks of queries, each over all keys up to itself."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        chunks: PrefillChunks,
        scale: float,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """q [T, H, D] of all chunks, one after the other → [T, H, Dv]."""


@dataclass(frozen=True, slots=True)
class DenseBackend:
    """Dense attention by one library."""

    name: str
    decode: Decode
    prefill: Prefill


def dense_backends(device: torch.device) -> dict[str, str]:
    """Each backend's name, and why it cannot be used on `device`: empty if it can."""
    reasons = {}
    for name, load in _LOADERS.items():
        try:
            load(device)
            reasons[name] = ""
        except BackendError as error:
            reasons[name] = str(error)
    return reasons


def dense_backend(name: BackendName, device: torch.device) -> DenseBackend:
    """The backend of that name. `auto` takes our own kernels where they run, else torch's.

    Raises BackendError.
    """
    if name != "auto":
        return _LOADERS[name](device)
    try:
        return _triton(device)
    except BackendError:
        return _sdpa(device)


def dense_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: DecodeRows,
    scale: float,
    *,
    backend: BackendName = "auto",
) -> Tensor:
    """`Decode` by a backend that is looked up at every call; keep a `DenseBackend` to do it
    once."""
    return dense_backend(backend, q.device).decode(q, k, v, rows, scale)


def dense_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    chunks: PrefillChunks,
    scale: float,
    *,
    out: Tensor | None = None,
    backend: BackendName = "auto",
) -> Tensor:
    """`Prefill` by a backend that is looked up at every call."""
    return dense_backend(backend, q.device).prefill(q, k, v, chunks, scale, out=out)


def _triton(device: torch.device) -> DenseBackend:
    reason = why_no_kernels(device)
    if reason is not None and not (device.type == "cpu" and _interpreted()):
        raise BackendError(reason)
    from nsa_kernels.decode.dense import dense_decode
    from nsa_kernels.prefill.dense import dense_prefill

    return DenseBackend("triton", dense_decode, dense_prefill)


def _interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, for tests."""
    if importlib.util.find_spec("triton") is None:
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def _xformers(device: torch.device) -> DenseBackend:
    from nsa_kernels.dense import xformers_ops

    if device.type != "cuda":
        raise BackendError(f"its operators need a GPU, not the device {device}")
    operators = xformers_ops.load()
    return DenseBackend("xformers", operators.decode, operators.prefill)


def _sdpa(_: torch.device) -> DenseBackend:
    from nsa_kernels.dense import sdpa

    return DenseBackend("sdpa", sdpa.decode, sdpa.prefill)


_LOADERS: dict[str, Callable[[torch.device], DenseBackend]] = {
    "triton": _triton,
    "xformers": _xformers,
    "sdpa": _sdpa,
}
