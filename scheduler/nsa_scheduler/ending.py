"""When a sampled token ends its sequence."""

from nsa_scheduler.output import EndReason
from nsa_scheduler.sequence import Sequence


def end_reason(sequence: Sequence, max_sequence_len: int) -> EndReason | None:
    """Why the last of the sequence's tokens, just sampled, ends it; None if it does not."""
    token_ids = sequence.token_ids
    num_tokens = len(token_ids)
    num_output_tokens = num_tokens - sequence.num_prompt_tokens
    if token_ids[-1] in sequence.stop_token_ids and num_output_tokens >= sequence.min_output_tokens:
        return EndReason.STOP
    if num_output_tokens >= sequence.max_output_tokens or num_tokens >= max_sequence_len:
        return EndReason.LENGTH
    return None
