"""A decoder over paged caches whose attention is computed as on a GPU."""

import torch
from torch import Tensor

from nsa_kernels.dispatch import LayerKernels
from nsa_scheduler.output import ScheduledSequence
from nsa_serve.engine.gpu_inputs import BlockTables, Uploader
from nsa_serve.engine.gpu_steps import mixed_step
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.device import DeviceAttention, DeviceContext
from tests.support.paged import PagedModel

_MAX_POSITIONS = 512


class DevicePagedModel(PagedModel):
    """The caches start full of NaN: kernels never let in what was not written."""

    def __init__(
        self,
        decoder: Decoder,
        page_size: int,
        kernels: LayerKernels,
        *,
        poison: float = 1e4,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(decoder, page_size, device=device)
        for cache in self.caches:
            for tensor in cache.tensors:
                tensor.fill_(poison)
        self.layers = DeviceAttention(decoder, self.caches, kernels, _MAX_POSITIONS)
        self.tables = BlockTables(16, _MAX_POSITIONS // page_size, self.device)
        self.upload = Uploader(self.device)

    def _compute(self, items: list[ScheduledSequence]) -> tuple[Tensor, list[ScheduledSequence]]:
        step = mixed_step(
            items,
            self.tables,
            self.upload,
            page_size=self.page_size,
            rule=self.rule,
            lists_row_slots=self.layers.lists_row_slots,
        )
        context = DeviceContext(self.layers, step.attention)
        hidden = self.decoder(step.token_ids, step.attention.positions, context)
        return self.decoder.logits(hidden), step.items
