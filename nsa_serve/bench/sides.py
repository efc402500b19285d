"""What is measured side by side: NSA, and dense attention by every library that is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from nsa_kernels.dense import (
    BackendError,
    DenseBackend,
    dense_backend,
    dense_backends,
    flash3,
    sdpa,
)
from nsa_kernels.dense.pages import gathered
from nsa_serve.bench import definition
from nsa_serve.bench.cases import DecodeCase, PrefillCase
from nsa_serve.errors import ConfigError

Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Nsa:
    """The kernels under test; both have the arguments of `definition`'s functions."""

    name: str
    decode: Callable[..., Tensor]
    prefill: Callable[..., Tensor]

    def decode_calls(self, case: DecodeCase, spec: Any) -> list[Run]:
        """One call for each set of pages."""
        q, cache, scale = case.q, case.pool.cache, case.pool.heads.scale
        return [
            partial(self.decode, q, q, case.gates, cache, rows, spec, scale) for rows in case.rows
        ]

    def prefill_call(self, case: PrefillCase, q: Tensor, spec: Any) -> Run:
        """The prompt with queries q."""
        cache, scale = case.pool.cache, case.pool.heads.scale
        return partial(self.prefill, q, q, case.gates, cache, case.chunks, spec, scale)


def load_nsa(device: torch.device) -> Nsa:
    """The Triton kernels on a GPU, or in Triton's interpreter; else plain torch.

    Raises ConfigError if a GPU cannot run them: times of plain torch would mislead there.
    """
    reason = dense_backends(device)["triton"]
    if not reason:
        from nsa_kernels.decode.layer import sparse_decode
        from nsa_kernels.prefill.layer import sparse_prefill

        return Nsa("triton", sparse_decode, sparse_prefill)
    if device.type == "cuda":
        raise ConfigError(f"bench kernels: {reason}")
    return Nsa("reference", definition.sparse_decode, definition.sparse_prefill)


class Dense(Protocol):
    """One library."""

    def decode_ways(self, case: DecodeCase) -> list[Sequence[Run]]:
        """Ways to call it, each with one call for each set of pages; the fastest counts."""

    def prefill_call(self, case: PrefillCase) -> Run:
        """The whole prompt."""


@dataclass(frozen=True, slots=True)
class Paged:
    """A backend over our pages."""

    backend: DenseBackend

    def decode_ways(self, case: DecodeCase) -> list[Sequence[Run]]:
        """The one there is."""
        cache, scale = case.pool.cache, case.pool.heads.scale
        decode = self.backend.decode
        return [[partial(decode, case.q, cache.k, cache.v, rows, scale) for rows in case.rows]]

    def prefill_call(self, case: PrefillCase) -> Run:
        """The whole prompt."""
        cache, scale = case.pool.cache, case.pool.heads.scale
        return partial(self.backend.prefill, case.q, cache.k, cache.v, case.chunks, scale)


@dataclass(frozen=True, slots=True)
class Contiguous:
    """torch over keys and values that lie side by side already: gathering them, which an engine
    with pages would have to do, is not counted."""

    def decode_ways(self, case: DecodeCase) -> list[Sequence[Run]]:
        """Every query of a group is a row, so that its keys are read once."""
        cache, heads = case.pool.cache, case.pool.heads
        group = heads.num_heads // heads.num_kv_heads
        q = case.q.unflatten(1, (heads.num_kv_heads, group))

        def attend(k: Tensor, v: Tensor) -> Tensor:
            out = F.scaled_dot_product_attention(q, k, v, scale=heads.scale)
            return out.flatten(1, 2)

        calls = []
        for rows in case.rows:
            k, v = (gathered(x, rows.block_table)[:, :, : case.context] for x in (cache.k, cache.v))
            calls.append(partial(attend, k, v))
        return [calls]

    def prefill_call(self, case: PrefillCase) -> Run:
        """The whole prompt."""
        cache = case.pool.cache
        k, v = (
            gathered(x, case.chunks.block_table)[0, :, : case.tokens] for x in (cache.k, cache.v)
        )
        return partial(sdpa.causal, case.q, k, v, case.pool.heads.scale)


@dataclass(frozen=True, slots=True)
class Flash3:
    """FlashAttention-3 over our pages, its splits planned in every call or once per step."""

    library: flash3.Flash3

    def decode_ways(self, case: DecodeCase) -> list[Sequence[Run]]:
        """With a plan made before, as an engine would for all its layers, and without."""
        cache, scale = case.pool.cache, case.pool.heads.scale
        ways: list[Sequence[Run]] = []
        for planned in {False, self.library.metadata is not None}:
            calls = []
            for rows in case.rows:
                step = self.library.decode_step(case.q, cache.k, cache.v, rows, planned=planned)
                calls.append(partial(self.library.attend, case.q, cache.k, cache.v, step, scale))
            ways.append(calls)
        return ways

    def prefill_call(self, case: PrefillCase) -> Run:
        """The whole prompt."""
        cache, scale = case.pool.cache, case.pool.heads.scale
        step = self.library.prefill_step(case.chunks)
        return partial(self.library.attend, case.q, cache.k, cache.v, step, scale)


def dense_sides(
    device: torch.device, fa3_library: Path | None
) -> tuple[dict[str, Dense], dict[str, str]]:
    """What can be measured here, and why the rest cannot."""
    sides: dict[str, Dense] = {}
    missing: dict[str, str] = {}
    try:
        if device.type == "cuda":
            sides["fa3"] = Flash3(flash3.load(fa3_library))
        else:
            missing["fa3"] = "it needs a GPU"
    except BackendError as error:
        missing["fa3"] = str(error)
    for name, reason in dense_backends(device).items():
        if name == "sdpa":
            sides[name] = Contiguous()
        elif reason:
            missing[name] = reason
        else:
            sides[name] = Paged(dense_backend(name, device))  # type: ignore[arg-type]
    return sides, missing
