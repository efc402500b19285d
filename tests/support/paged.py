"""A decoder over paged caches, driven step by step without a scheduler."""

from collections.abc import Sequence as SequenceOf
from itertools import count

import torch
from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.geometry import num_pages_for
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.engine.inputs import SlotRule, build_inputs
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.definition import WholeSequence
from nsa_serve.model.paged import PagedContext, cache_layouts


def whole(decoder: Decoder, tokens: SequenceOf[int]) -> Tensor:
    """Logits [T, vocab] by the definition."""
    ids = torch.tensor(tokens)
    hidden = decoder(ids, torch.arange(len(ids)), WholeSequence(decoder.rope))
    return decoder.logits(hidden)


class PagedModel:
    """Pages are given out in a scattered order and start full of large numbers, so that reading
    what was never written shows."""

    def __init__(
        self,
        decoder: Decoder,
        page_size: int,
        num_pages: int = 64,
        device: torch.device | None = None,
    ) -> None:
        self.decoder, self.page_size = decoder, page_size
        self.device = device or torch.device("cpu")
        self.caches = [
            LayerCache.allocate(layout, num_pages, torch.float32, self.device)
            for layout in cache_layouts(decoder.config, page_size)
        ]
        for cache in self.caches:
            for tensor in cache.tensors:
                tensor.fill_(1e4)
        order = torch.randperm(num_pages, generator=torch.Generator().manual_seed(1))
        self.free: list[int] = order.tolist()
        self._ids = count()
        nsa = decoder.config.nsa
        self.rule = None if nsa is None else SlotRule(nsa.compress_stride, nsa.first_slot)

    def sequence(self, tokens: SequenceOf[int], prefix_of: Sequence | None = None) -> Sequence:
        """A sequence not yet computed, or one that shares another's full pages."""
        sequence = Sequence(
            sequence_id=next(self._ids),
            token_ids=list(tokens),
            num_prompt_tokens=len(tokens),
            max_output_tokens=1,
        )
        if prefix_of is not None:
            shared = min(prefix_of.num_computed, len(tokens) - 1) // self.page_size
            sequence.pages = prefix_of.pages[:shared]
            sequence.num_computed = shared * self.page_size
        return sequence

    def step(self, work: SequenceOf[tuple[Sequence, int]]) -> list[Tensor]:
        """Compute the next n tokens of each sequence: their logits [n, vocab], in order."""
        items = []
        for sequence, num_tokens in work:
            end = sequence.num_computed + num_tokens
            while len(sequence.pages) < num_pages_for(end, self.page_size):
                sequence.pages.append(self.free.pop())
            items.append(ScheduledSequence(sequence, sequence.num_computed, num_tokens))
        logits, order = self._compute(items)
        places, start = {}, 0
        for item in order:
            item.sequence.num_computed = item.end
            places[id(item)] = slice(start, start + item.num_tokens)
            start += item.num_tokens
        return [logits[places[id(item)]] for item in items]

    def _compute(self, items: list[ScheduledSequence]) -> tuple[Tensor, list[ScheduledSequence]]:
        """Logits of all tokens, and the order in which the items' are."""
        inputs = build_inputs(ScheduledBatch(items), self.page_size, self.rule, self.device)
        context = PagedContext(self.caches, inputs.meta, self.decoder.rope)
        hidden = self.decoder(inputs.token_ids, inputs.positions, context)
        return self.decoder.logits(hidden), inputs.items

    def run(self, tokens: SequenceOf[int], chunks: SequenceOf[int]) -> Tensor:
        """Logits of a sequence computed in the given chunks, the last cut to what is left."""
        sequence = self.sequence(tokens)
        out = []
        for chunk in chunks:
            num_tokens = min(chunk, len(tokens) - sequence.num_computed)
            if num_tokens > 0:
                out += self.step([(sequence, num_tokens)])
        return torch.cat(out)
