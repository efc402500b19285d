"""What the core loop asks of whatever computes tokens: the model, or a stand-in without one."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from nsa_kernels.spec import SparseSpec
from nsa_scheduler.output import ScheduledBatch
from nsa_serve.config import DEFAULT_NUM_BATCHED_TOKENS, DEFAULT_NUM_SEQS
from nsa_serve.engine.constraint import Constraint
from nsa_serve.engine.messages import Selection
from nsa_serve.outputs import TokenLogprobs
from nsa_serve.params import SamplingParams


@dataclass(slots=True)
class StepResult:
    """Sampled tokens of one step, by sequence id."""

    token_ids: dict[int, int]
    """One for each scheduled sequence that caught up, the failed ones excepted."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    """Sequences that cannot go on (a row of NaN, say), and a fixed text that says why."""
    selections: tuple[Selection, ...] = ()
    """Of sequences that were watched."""


@dataclass(slots=True, frozen=True)
class RunnerInfo:
    """What a runner is, once loaded."""

    model_name: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    num_pages: int
    page_size: int
    device: str
    dtype: str
    attention: str
    cache_key: bytes
    """Differs between models (and dialects) whose pages must not be shared."""
    report: str
    """The table of what fits."""
    max_num_seqs: int = DEFAULT_NUM_SEQS
    """Sequences that may run at once."""
    max_num_batched_tokens: int = DEFAULT_NUM_BATCHED_TOKENS
    """Tokens that a step may have."""
    num_lookahead_tokens: int = 0
    """Tokens beyond a sequence's own that its pages should hold, for a step that runs ahead."""
    sparse: SparseSpec | None = None
    """What NSA layers read."""
    num_nsa_layers: int = 0
    num_dense_layers: int = 0
    cache_bytes: int = 0
    """Of all pages, whatever they hold."""
    compressed_cache_bytes: int = 0
    """Of these, what compressed keys and values take."""


class Runner(Protocol):
    """Computes steps over pages that it owns. Not thread-safe; one core loop drives it."""

    @property
    def info(self) -> RunnerInfo: ...

    def add(
        self,
        sequence_id: int,
        params: SamplingParams,
        prompt_token_ids: list[int],
        constraint: Constraint | None = None,
    ) -> None:
        """Make a sequence known before it is first scheduled; it samples what `constraint`
        allows, and fails where that allows nothing."""

    def remove(self, sequence_id: int) -> None:
        """Forget a sequence; unknown ids are no error."""

    def execute(self, batch: ScheduledBatch) -> StepResult:
        """Run one step. An exception means that nothing of the step may be kept."""


@runtime_checkable
class Watchable(Protocol):
    """A runner that can say which blocks its layers select."""

    def watch(self, sequence_id: int) -> None:
        """Add to the result of the sequence's next decode step, once, what its layers select.
        Its tokens do not change by that."""
