"""A step that a GPU computes while the host goes on: what was launched, and what it gives."""

from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from nsa_scheduler.output import ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.engine.sampler import SamplingState


class Download:
    """A tensor on its way from the device, in pinned memory."""

    def __init__(self, tensor: Tensor) -> None:
        on_gpu = tensor.is_cuda
        if tensor.is_meta:  # nothing was computed, and nothing is wrong with it
            self._copy = torch.ones(tensor.shape, dtype=tensor.dtype)
        else:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            self._copy.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event() if on_gpu else None
        if self._done is not None:
            self._done.record()

    def take(self) -> NDArray[Any]:
        """Wait for it."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy.numpy()


@dataclass(slots=True)
class Known:
    """A sequence that was added."""

    state: SamplingState
    may_run_ahead: bool
    """Whether the number of its last token is all that the next one's sampling must know."""
    position: int = -1
    """Of the token sampled last."""
    token_id: int = -1

    def is_of(self, item: ScheduledSequence) -> bool:
        """Whether an item computes the token sampled last."""
        return (
            item.start == self.position and item.sequence.token_ids[self.position] == self.token_id
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One token's computation: at `position`, in these pages."""

    sequence: Sequence
    position: int
    pages: list[int]

    @classmethod
    def last_of(cls, item: ScheduledSequence) -> "Row":
        """The last token that an item computes."""
        return cls(item.sequence, item.end - 1, item.sequence.pages)

    def is_all_of(self, item: ScheduledSequence) -> bool:
        """Whether it is just what an item asks for, in the pages that its sequence has now."""
        return (
            item.sequence is self.sequence
            and item.num_tokens == 1
            and item.start == self.position
            and item.sequence.pages is self.pages
        )


@dataclass(frozen=True, slots=True)
class LaunchedChunks:
    """What a step with chunks gives beside samples."""

    items: list[ScheduledSequence]
    """In the order of their tokens."""
    hidden: Tensor
    """[T, hidden]"""
    finite: Download
    """[T] bool"""


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that runs or ran."""

    rows: list[Row] = field(default_factory=list)
    """Those that are sampled."""
    ids: Download | None = None
    """[rows] int64, −1 where the logits are not finite."""
    logits: Tensor | None = None
    """[rows, vocab]; the next step of single queries may overwrite them."""
    chunks: LaunchedChunks | None = None
