"""The gates that weigh the three branches, from a layer's input or its queries."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nsa_kernels.paged.queries import Branches
from nsa_kernels.widen import widen
from nsa_serve.config import NSAConfig


@dataclass(frozen=True, slots=True)
class BranchGates:
    """Weights of (compressed, selected, window) for every query head, or their logits."""

    values: Tensor
    """[T, H, 3]"""
    logits: bool
    """Whether the values are still to go through a sigmoid."""

    @property
    def weights(self) -> Tensor:
        """[T, H, 3] float32"""
        values = widen(self.values)
        return values.sigmoid() if self.logits else values


class Gates(nn.Module):
    """Gates per query head, kv head or token."""

    def __init__(
        self, nsa: NSAConfig, *, hidden_size: int, num_heads: int, kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.kind = nsa.gate
        self.num_heads, self.kv_heads = num_heads, kv_heads
        self.from_query = nsa.gate_input == "query_mean"
        triples = {"head": num_heads, "group": kv_heads, "shared": 1}[nsa.gate_scope]
        self.constant: nn.Parameter | None = None
        self.hidden: nn.Linear | None = None
        self.out: nn.Linear | None = None
        if nsa.gate_input == "constant":
            self.constant = nn.Parameter(torch.zeros(3 * triples))
            return
        inputs = head_dim if self.from_query else hidden_size
        if nsa.gate_hidden:
            self.hidden = nn.Linear(inputs, nsa.gate_hidden, bias=nsa.gate_bias)
            inputs = nsa.gate_hidden
        outputs = 3 if self.from_query else 3 * triples
        self.out = nn.Linear(inputs, outputs, bias=nsa.gate_bias)

    @property
    def projection(self) -> nn.Linear | None:
        """The linear map from the layer's input to the logits, where there is nothing else."""
        return None if self.from_query or self.hidden is not None else self.out

    def forward(self, x: Tensor) -> BranchGates:
        """x: the normed input [T, hidden], or the raw queries [T, H, head_dim] `from_query`."""
        if self.out is None:
            assert self.constant is not None
            return self.of(self.constant.expand(len(x), -1))
        if self.from_query:
            x = x.unflatten(1, (self.kv_heads, -1)).mean(2)
        if self.hidden is not None:
            x = nn.functional.silu(self.hidden(x))
        return self.of(self.out(x))

    def of(self, logits: Tensor) -> BranchGates:
        """Gates of logits [T, …] in as many triples as there are."""
        logits = logits.view(len(logits), -1, 3)
        triples = logits.shape[1]
        values = logits if self.kind == "sigmoid" else widen(logits).softmax(-1)
        if triples == 1:
            values = values.expand(-1, self.num_heads, -1)
        elif triples != self.num_heads:
            values = values.repeat_interleave(self.num_heads // triples, 1)
        return BranchGates(values, logits=self.kind == "sigmoid")


def combine(gates: Tensor, branches: Branches) -> Tensor:
    """Σ gate · branch: gates [T or 1, H or 1, 3], branches [T, H, Dv] or None for no weight."""
    total: Tensor | None = None
    for i, branch in enumerate(branches):
        if branch is not None:
            part = widen(branch) * gates[..., i : i + 1]
            total = part if total is None else total + part
    assert total is not None
    return total


def fixed_gates(nsa: NSAConfig, device: torch.device) -> Tensor:
    """[1, 1, 3]"""
    return torch.tensor(nsa.fixed_gates, device=device).view(1, 1, 3)
