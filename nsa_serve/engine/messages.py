"""What crosses the socket between a client and the core: msgpack, one union each way.

The core knows token ids only. A request with n continuations crosses as n sequences, which share
their prompt's pages through the prefix cache.
"""

from typing import Literal

import msgspec

from nsa_serve.outputs import FinishReason, RequestTimes, TokenLogprobs
from nsa_serve.params import SamplingParams


class AddSequence(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """Continue `prompt_token_ids`; `sequence_id` is unique in the life of a client."""

    sequence_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    """Lower runs first under the priority policy."""
    salt: bytes = b""
    """Prefix-cache pages are shared only between sequences of one salt."""
    arrived: float = 0.0


class AbortSequences(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """Forget these sequences, in whatever state they are; unknown ids are no error."""

    sequence_ids: list[int]


class ReportProgress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """Say with the next step's outputs how far every sequence is."""


class WatchSequence(msgspec.Struct, frozen=True, array_like=True, tag="watch"):
    """Say, once, with the sequence's next decode step which blocks its layers select."""

    sequence_id: int


ToCore = AddSequence | AbortSequences | ReportProgress | WatchSequence
"""To end the core, close the socket."""


class SequenceOutput(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What one step gave one sequence."""

    sequence_id: int
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """Set when a token of `stop_token_ids` ended it."""
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    """Of prompt tokens 1 and on, in pieces as prefill reaches them."""
    num_cached_tokens: int = 0
    times: RequestTimes | None = None
    """With the first and the last output."""
    error: str | None = None
    """Why it failed, where finish_reason is error."""
    field_at_fault: str | None = None
    """The request's field that made it fail, where it was the request's fault."""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Gauges of now, and counters since start."""

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    """Referenced pages over all pages, 0 to 1."""
    num_pages: int = 0
    num_steps: int = 0
    step_tokens: int = 0
    """Tokens computed by the last step."""
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    """Prompt tokens looked up."""
    prefix_cache_hits: int = 0
    """Prompt tokens found."""
    num_preemptions: int = 0
    compressed_tokens_read: int = 0
    """Keys that queries attended, over all layers, for one kv head; so are the next four."""
    selected_tokens_read: int = 0
    window_tokens_read: int = 0
    dense_tokens_read: int = 0
    context_tokens: int = 0
    """Keys that dense attention would have read."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="ready"):
    """The core is loaded and warmed."""

    model_name: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    num_pages: int
    page_size: int
    device: str
    dtype: str
    attention: str
    report: str
    """The table of what fits, for the log."""
    max_num_seqs: int
    """Sequences that run at once."""
    cache_bytes: int = 0
    compressed_cache_bytes: int = 0
    """Of these, what compressed keys and values take."""


SequenceStage = Literal["grammar", "waiting", "prefill", "decode"]


class SequenceProgress(msgspec.Struct, frozen=True, array_like=True):
    """How far a sequence is that has not ended."""

    sequence_id: int
    stage: SequenceStage
    """Where its grammar is being compiled it is not queued yet. Prefill and decode tell only how
    many tokens it is behind; the engine has no phases."""
    arrived: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_computed_tokens: int
    num_output_tokens: int
    num_pages: int
    num_preemptions: int


class LayerSelection(msgspec.Struct, frozen=True, array_like=True):
    """What one layer selected for one query."""

    selected_block_ids: list[list[int]] | None
    """Of each kv head, ascending. None: the layer has no selected branch."""
    gates: list[list[float]] | None
    """Weights of (compressed, selected, window), of each kv head the mean over its query heads.
    None: a dense layer, which reads everything."""


class Selection(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What every layer selected for the query at `position` of a sequence."""

    sequence_id: int
    position: int = 0
    select_block: int = 0
    num_selected: int = 0
    init_blocks: int = 0
    local_blocks: int = 0
    window: int = 0
    layers: list[LayerSelection] = []
    unavailable: str | None = None
    """Why there is nothing to tell."""


class StepOutputs(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, tag="step"):
    """All that one step gave, and the engine's figures after it."""

    outputs: list[SequenceOutput]
    stats: EngineStats
    selections: list[Selection] | None = None
    """Of the sequences that were watched."""
    progress: list[SequenceProgress] | None = None
    """Of all sequences, where a client asked."""


class CoreFailed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The core cannot go on (or not start); one line says why."""

    message: str
    kind: str = ""
    """Name of the error's class, where it is one of ours."""


FromCore = Ready | StepOutputs | CoreFailed
