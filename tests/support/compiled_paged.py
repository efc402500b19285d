"""An int8 decoder over paged caches whose steps are the compiled loop's."""

from torch import Tensor

from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_serve.engine.inputs import build_inputs
from nsa_serve.model.compiled.step import Steps
from nsa_serve.model.decoder import Decoder
from tests.support.paged import PagedModel


class CompiledPagedModel(PagedModel):
    """The caches start full of NaN: the loop never lets in what was not written."""

    def __init__(self, decoder: Decoder, page_size: int, num_threads: int = 2) -> None:
        super().__init__(decoder, page_size)
        for cache in self.caches:
            for tensor in cache.tensors:
                tensor.fill_(float("nan"))
        self.steps = Steps(decoder, self.caches, num_threads)

    def _compute(self, items: list[ScheduledSequence]) -> tuple[Tensor, list[ScheduledSequence]]:
        inputs = build_inputs(ScheduledBatch(items), self.page_size, self.rule, self.device)
        hidden = self.steps.hidden(inputs.token_ids, inputs.positions, inputs.meta)
        return self.steps.logits(hidden), inputs.items
