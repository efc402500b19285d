"""The tensors of one layer's prefill."""

from dataclasses import dataclass

from torch import Tensor

from nsa_kernels.cache import LayerCache
from nsa_kernels.prefill.sizes import LayerSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillWork:
    """Arguments of `sparse_prefill`, checked, with the sizes that follow from their shapes."""

    q: Tensor
    q_compressed: Tensor
    gates: Tensor
    out: Tensor
    cache: LayerCache
    scale: float
    memory: tuple[Tensor, Tensor] | None
    gate_logits: bool
    sizes: LayerSizes

    @property
    def gate_strides(self) -> tuple[int, int, int]:
        """Of token (0 where all share one), head and branch."""
        token, head, branch = self.gates.stride()
        return 0 if self.gates.shape[0] == 1 else token, head, branch
