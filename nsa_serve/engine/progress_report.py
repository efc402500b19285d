"""How far each sequence is, for those who look."""

from collections.abc import Iterable, Mapping

from nsa_scheduler import Scheduler
from nsa_scheduler.sequence import Sequence, SequenceState
from nsa_serve.engine.messages import AddSequence, SequenceProgress, SequenceStage


def progress_of(
    arrivals: Mapping[int, float], scheduler: Scheduler, compiling: Iterable[AddSequence]
) -> list[SequenceProgress]:
    """Of the sequences that were queued and have not ended, in the order of `arrivals`; then of
    those whose grammars are being compiled."""
    found = ((scheduler.find(sequence_id), at) for sequence_id, at in arrivals.items())
    queued = [_progress(sequence, at) for sequence, at in found if sequence is not None]
    return queued + [_without_grammar(message) for message in compiling]


def _without_grammar(message: AddSequence) -> SequenceProgress:
    num_prompt_tokens = len(message.prompt_token_ids)
    return SequenceProgress(
        message.sequence_id, "grammar", message.arrived, num_prompt_tokens, 0, 0, 0, 0, 0
    )


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
