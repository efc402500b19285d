"""The steps of a model with int8 weights as one compiled call, for CPUs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.metadata import AttentionMetadata
from nsa_serve.model import fused
from nsa_serve.model.decoder import Decoder


class CompiledSteps(Protocol):
    """Steps of a decoder over its caches."""

    def takes(self, meta: AttentionMetadata) -> bool:
        """Whether it computes such a step, and no slower than the decoder itself."""

    def hidden(self, token_ids: Tensor, positions: Tensor, meta: AttentionMetadata) -> Tensor:
        """token_ids, positions [T] → hidden states [T, hidden], normed."""

    def logits(self, hidden: Tensor, /) -> Tensor:
        """[N, hidden] → [N, vocab] float32"""


def compile_steps(
    decoder: Decoder, caches: list[LayerCache], num_threads: int
) -> CompiledSteps | None:
    """The steps over a decoder's caches, or None where they cannot be compiled: without numba, on a
    processor without wide vectors, for a model that the loop does not cover."""
    if not fused.INSTALLED:
        return None
    from nsa_serve.model.compiled.step import Steps, supports

    return Steps(decoder, caches, num_threads) if supports(decoder) else None


def telling_of_compilation(callback: Callable[[], None]) -> AbstractContextManager[None]:
    """Around the first steps: one call before something is compiled, if anything has to be."""
    if not fused.INSTALLED:
        return nullcontext()
    from nsa_serve.model.compiled.first_use import telling

    return telling(callback)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Around a compiled step: the threads that torch keeps would go on spinning for a while after
    each of its operations, on the cores that the step's own threads need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
