"""What a step is reported as: outputs by sequence, with times, and token counters."""

from collections.abc import Iterable
from dataclasses import dataclass

from nsa_scheduler.output import EndReason, StepUpdate
from nsa_serve.engine.constraint import GRAMMAR_FAILED
from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.engine.runner import StepResult
from nsa_serve.outputs import FinishReason, RequestTimes

_FINISH_REASONS: dict[EndReason, FinishReason] = {
    EndReason.STOP: "stop",
    EndReason.LENGTH: "length",
    EndReason.ABORT: "abort",
    EndReason.ERROR: "error",
}


@dataclass(slots=True)
class _Progress:
    """What is remembered of a sequence beside the scheduler's state. Times since the epoch."""

    reported_stop_ids: frozenset[int]
    arrived: float
    first_scheduled: float = 0.0
    first_token: float = 0.0


class StepReporter:
    """Turns the scheduler's updates into outputs for the client."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        """Prompt tokens of sequences that have had their first token."""
        self.generation_tokens = 0
        self._progress: dict[int, _Progress] = {}

    def track(self, sequence_id: int, arrived: float, reported_stop_ids: frozenset[int]) -> None:
        """Expect a sequence; one that ends with one of `reported_stop_ids` names that token."""
        self._progress[sequence_id] = _Progress(reported_stop_ids, arrived)

    def forget(self, sequence_id: int) -> None:
        """Report nothing more of a sequence."""
        self._progress.pop(sequence_id, None)

    @property
    def arrivals(self) -> dict[int, float]:
        """When each expected sequence arrived."""
        return {sequence_id: each.arrived for sequence_id, each in self._progress.items()}

    def outputs(
        self, updates: Iterable[StepUpdate], result: StepResult, started: float, ended: float
    ) -> list[SequenceOutput]:
        """Outputs of one step that ran from `started` to `ended`, for those that have any."""
        outputs = []
        for update in updates:
            sequence_id = update.sequence.sequence_id
            progress = self._progress.get(sequence_id)
            if progress is None:
                continue
            if progress.first_scheduled == 0.0:
                progress.first_scheduled = started
            one_more = progress.first_token and update.end is None and not result.logprobs
            if one_more and update.new_token_ids:  # nearly always: worth a short way
                self.generation_tokens += len(update.new_token_ids)
                outputs.append(SequenceOutput(sequence_id, update.new_token_ids))
            elif update.new_token_ids or update.end or sequence_id in result.prompt_logprobs:
                outputs.append(self._output(update, progress, result, ended))
        return outputs

    def _output(
        self, update: StepUpdate, progress: _Progress, result: StepResult, now: float
    ) -> SequenceOutput:
        sequence = update.sequence
        sequence_id = sequence.sequence_id
        first = progress.first_token == 0.0 and bool(update.new_token_ids)
        if first:
            progress.first_token = now
            self.prompt_tokens += sequence.num_prompt_tokens
        self.generation_tokens += len(update.new_token_ids)
        logprobs = result.logprobs.get(sequence_id)
        error = result.failed.get(sequence_id)
        reported = update.stop_token_id in progress.reported_stop_ids
        return SequenceOutput(
            sequence_id,
            update.new_token_ids,
            None if update.end is None else _FINISH_REASONS[update.end],
            update.stop_token_id if reported else None,
            None if logprobs is None else [logprobs],
            result.prompt_logprobs.get(sequence_id),
            sequence.num_cached_tokens if first else 0,
            _times(progress, now) if first or update.end is not None else None,
            error,
            "structured_outputs" if error == GRAMMAR_FAILED else None,
        )


def _times(progress: _Progress, now: float) -> RequestTimes:
    return RequestTimes(
        arrived=progress.arrived,
        first_scheduled=progress.first_scheduled,
        first_token=progress.first_token,
        last_token=now if progress.first_token else 0.0,
    )
