"""What the layers select for one query on a GPU: a look at a sequence that decodes.

The query's step is computed once more, by itself, by the kernels that serve it; the ids are those
that its selected branch reads. What the look writes lies in one page of each cache, which is put
back: the step itself, which may have run already, leaves other bits there if it ran in a larger
batch, and no token may depend on whether somebody looks.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from nsa_kernels.batch import DecodeRows
from nsa_kernels.cache import LayerCache
from nsa_kernels.dispatch import LayerKernels
from nsa_kernels.spec import SparseSpec
from nsa_serve.engine.gpu_steps import MixedStep
from nsa_serve.engine.messages import LayerSelection, Selection
from nsa_serve.engine.selection import IS_DENSE, as_selection, mean_gates
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.device import DeviceAttention, DeviceContext
from nsa_serve.model.gates import BranchGates


@dataclass(frozen=True, slots=True)
class RecordingKernels:
    """Decode kernels that note what each layer of one single query selects."""

    kernels: LayerKernels
    layers: list[LayerSelection] = field(default_factory=list)

    @property
    def recording(self) -> LayerKernels:
        """These in the place of those."""
        dense = replace(self.kernels.dense, decode=self._dense)
        return replace(self.kernels, sparse_decode=self._sparse, dense=dense)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, rows: DecodeRows, scale: float) -> Tensor:
        self.layers.append(LayerSelection(None, None))
        return self.kernels.dense.decode(q, k, v, rows, scale)

    def _sparse(
        self,
        q: Tensor,
        q_compressed: Tensor,
        gates: Tensor,
        cache: LayerCache,
        rows: DecodeRows,
        spec: SparseSpec,
        scale: float,
        **options: Any,
    ) -> Tensor:
        chosen: list[list[int]] | None = None
        if spec.uses[1]:
            memory = options.get("memory")
            found = self.kernels.chosen_blocks(
                q_compressed, cache, rows, spec, scale, memory=memory
            )
            (chosen,) = found
        weights = BranchGates(gates, options.get("gate_logits", False)).weights
        means = mean_gates(weights, q.shape[1], cache.k.shape[1])
        self.layers.append(LayerSelection(chosen, means))
        return self.kernels.sparse_decode(
            q, q_compressed, gates, cache, rows, spec, scale, **options
        )


def device_selection_of(decoder: Decoder, layers: DeviceAttention, step: MixedStep) -> Selection:
    """What the layers select for the one single query of a step."""
    (item,) = step.items
    nsa = decoder.config.nsa
    if nsa is None:
        return Selection(item.sequence.sequence_id, unavailable=IS_DENSE)
    recorder = RecordingKernels(layers.kernels)
    watched = copy.copy(layers)
    watched.kernels = recorder.recording
    context = DeviceContext(watched, step.attention)
    page = item.sequence.pages[item.start // layers.caches[0].page_size]
    with _put_back(layers.caches, page):
        decoder(step.token_ids, step.attention.positions, context)
    return as_selection(item, nsa, recorder.layers)


@contextmanager
def _put_back(caches: list[LayerCache], page: int) -> Iterator[None]:
    """Leave a page as it was, after whatever is written there inside."""
    before = [(tensor, tensor[page].clone()) for cache in caches for tensor in cache.tensors]
    try:
        yield
    finally:
        for tensor, content in before:
            tensor[page] = content
