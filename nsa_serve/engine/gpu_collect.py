"""What steps on a GPU gave, as soon as it has arrived."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from nsa_scheduler.sequence import Sequence
from nsa_serve.engine.launched import Known, Launched, LaunchedChunks
from nsa_serve.engine.model_runner import NOT_A_NUMBER, prompt_logprobs
from nsa_serve.engine.runner import StepResult
from nsa_serve.engine.sampler import logprobs_of
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.device import DeviceAttention


@dataclass(frozen=True, slots=True)
class Collector:
    """Waits for what was launched and puts it into a step's result."""

    decoder: Decoder
    layers: DeviceAttention
    known: dict[int, Known]
    """Sequences that were added, by id; told of what was sampled."""

    def take_chunks(self, chunks: LaunchedChunks, result: StepResult) -> None:
        """What a step with chunks found out about its tokens, the samples apart."""
        finite = chunks.finite.take()
        start = 0
        for item in chunks.items:
            own = slice(start, start + item.num_tokens)
            start += item.num_tokens
            if not finite[own].all():
                self._fail(item.sequence, item.start, result)
                continue
            state = self.known[item.sequence.sequence_id].state
            logprobs = prompt_logprobs(self.decoder, item, chunks.hidden[own], state)
            if logprobs:
                result.prompt_logprobs[item.sequence.sequence_id] = logprobs
                state.num_prompt_logprobs += len(logprobs)

    def take_rows(self, launched: Launched, wanted: Iterable[int], result: StepResult) -> None:
        """The sampled tokens of the wanted rows."""
        if launched.ids is None:
            return
        ids = launched.ids.take().tolist()
        for i in wanted:
            row, token = launched.rows[i], ids[i]
            sequence_id = row.sequence.sequence_id
            if sequence_id in result.failed:
                continue
            if token < 0:
                self._fail(row.sequence, row.position, result)
                continue
            result.token_ids[sequence_id] = token
            known = self.known[sequence_id]
            known.position, known.token_id = row.position + 1, token
            num_top = known.state.params.logprobs
            if num_top is not None:
                assert launched.logits is not None
                logits = launched.logits[i : i + 1].float()
                result.logprobs[sequence_id] = logprobs_of(logits, [token], num_top)[0]

    def _fail(self, sequence: Sequence, position: int, result: StepResult) -> None:
        """End a sequence whose step was not finite; what it wrote from `position` on is erased."""
        known = self.known[sequence.sequence_id]
        result.failed[sequence.sequence_id] = known.state.failure or NOT_A_NUMBER
        caches = self.layers.caches
        pages = torch.tensor(
            sequence.pages[position // caches[0].page_size :], device=caches[0].k.device
        )
        for cache in caches:
            cache.erase(pages)
