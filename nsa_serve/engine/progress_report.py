"""How far each sequence is, for those who look."""

from collections.abc import Mapping

from nsa_scheduler import Scheduler
from nsa_scheduler.sequence import Sequence, SequenceState
from nsa_serve.engine.messages import SequenceProgress, SequenceStage


def progress_of(arrivals: Mapping[int, float], scheduler: Scheduler) -> list[SequenceProgress]:
    """Of the sequences that arrived and have not ended, in the order of `arrivals`."""
    found = ((scheduler.find(sequence_id), at) for sequence_id, at in arrivals.items())
    return [_progress(sequence, at) for sequence, at in found if sequence is not None]


def _progress(sequence: Sequence, arrived: float) -> SequenceProgress:
    return SequenceProgress(
        sequence.sequence_id,
        _stage(sequence),
        arrived,
        sequence.num_prompt_tokens,
        sequence.num_cached_tokens,
        sequence.num_computed,
        sequence.num_output_tokens,
        len(sequence.pages),
        sequence.num_preemptions,
    )


def _stage(sequence: Sequence) -> SequenceStage:
    if sequence.state is not SequenceState.RUNNING:
        return "waiting"
    return "decode" if sequence.num_output_tokens and sequence.num_behind == 1 else "prefill"
