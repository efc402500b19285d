"""What the layers select for one query: a look at the attention of a sequence that decodes.

The query's step is computed once more in plain torch, before it is computed as always. So neither
the tokens of the sequence nor those beside it can depend on whether somebody looks: what the look
writes into the caches, the step then writes again at the same places.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nsa_kernels import dispatch
from nsa_kernels.cache import LayerCache
from nsa_kernels.paged.rows import chosen_blocks
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_serve.config import NSAConfig
from nsa_serve.engine.inputs import SlotRule, build_inputs
from nsa_serve.engine.messages import LayerSelection, Selection
from nsa_serve.model.attention import Attention, NSABranches
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.gates import BranchGates, fixed_gates
from nsa_serve.model.heads import Projected
from nsa_serve.model.paged import PagedContext
from nsa_serve.model.rope import Rotation

IS_DENSE = "the model's attention is dense"


@dataclass(frozen=True, slots=True)
class RecordingContext:
    """An attention context of one single query that notes what each layer selects."""

    paged: PagedContext
    layers: list[LayerSelection] = field(default_factory=list)

    def dense(self, layer: Attention, projected: Projected, rotate: Rotation) -> Tensor:
        """As `PagedContext` does."""
        self.layers.append(LayerSelection(None, None))
        return self.paged.dense(layer, projected, rotate)

    def sparse(
        self,
        layer: Attention,
        nsa: NSABranches,
        projected: Projected,
        rotate: Rotation,
        gates: BranchGates | None,
    ) -> Tensor:
        """As `PagedContext` does."""
        out = self.paged.sparse(layer, nsa, projected, rotate, gates)
        chosen: list[list[int]] | None = None
        if nsa.spec.uses[1]:
            heads = layer.heads(projected, rotate)
            queries = dispatch.Queries(
                heads.q, nsa.compressed_query(heads), layer.scale, nsa.memory
            )
            cache, (group,) = self.paged.caches[layer.index], self.paged.meta.groups
            (chosen,) = chosen_blocks(queries, cache, group, nsa.spec)
        weights = fixed_gates(nsa.nsa, out.device) if gates is None else gates.weights
        means = mean_gates(weights, layer.num_heads, layer.num_kv_heads)
        self.layers.append(LayerSelection(chosen, means))
        return out


@torch.inference_mode()
def selection_of(
    decoder: Decoder, caches: list[LayerCache], item: ScheduledSequence, rule: SlotRule | None
) -> Selection:
    """What the layers select for a decode step's item, which is computed after this call."""
    if decoder.config.nsa is None:
        return Selection(item.sequence.sequence_id, unavailable=IS_DENSE)
    batch = ScheduledBatch([item])
    inputs = build_inputs(batch, caches[0].page_size, rule, caches[0].k.device)
    context = RecordingContext(PagedContext(caches, inputs.meta, decoder.rope))
    decoder(inputs.token_ids, inputs.positions, context)
    return as_selection(item, decoder.config.nsa, context.layers)


def mean_gates(weights: Tensor, num_heads: int, num_kv_heads: int) -> list[list[float]]:
    """[kv_heads][3]: the means over each kv head's queries of one token's gates [1, H or 1, 3]."""
    by_head = weights[0].expand(num_heads, 3).unflatten(0, (num_kv_heads, -1))
    return by_head.mean(1).tolist()


def as_selection(
    item: ScheduledSequence, nsa: NSAConfig, layers: list[LayerSelection]
) -> Selection:
    """What the layers select, with what a reader must know to draw it."""
    return Selection(
        item.sequence.sequence_id,
        position=item.start,
        select_block=nsa.select_block,
        num_selected=nsa.num_selected,
        init_blocks=nsa.init_blocks,
        local_blocks=nsa.local_blocks,
        window=nsa.window,
        layers=layers,
    )
