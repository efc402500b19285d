"""The gates that weigh the three branches, from a layer's input or its queries."""

import torch
from torch import Tensor, nn

from nsa_serve.config import NSAConfig


class Gates(nn.Module):
    """(compressed, selected, window) weights per query head: [T, H, 3] float32."""

    def __init__(
        self, nsa: NSAConfig, *, hidden_size: int, num_heads: int, kv_heads: int, head_dim: int
    ) -> None:
        super().__init__()
        self.kind = nsa.gate
        self.num_heads, self.kv_heads = num_heads, kv_heads
        self.from_query = nsa.gate_input == "query_mean"
        inputs = head_dim if self.from_query else hidden_size
        triples = {"head": num_heads, "group": kv_heads, "shared": 1}[nsa.gate_scope]
        outputs = 3 if self.from_query else 3 * triples
        self.hidden: nn.Linear | None = None
        if nsa.gate_hidden:
            self.hidden = nn.Linear(inputs, nsa.gate_hidden, bias=nsa.gate_bias)
            inputs = nsa.gate_hidden
        self.out = nn.Linear(inputs, outputs, bias=nsa.gate_bias)

    def forward(self, x: Tensor, q: Tensor) -> Tensor:
        """x [T, hidden] (the normed input), q [T, H, head_dim] not rotated → [T, H, 3]."""
        if self.from_query:
            x = q.unflatten(1, (self.kv_heads, -1)).mean(2)
        if self.hidden is not None:
            x = nn.functional.silu(self.hidden(x))
        logits = self.out(x).float().view(len(q), -1, 3)
        gates = logits.softmax(-1) if self.kind == "softmax" else logits.sigmoid()
        return gates.repeat_interleave(self.num_heads // gates.shape[1], 1)


def combine(gates: Tensor, branches: tuple[Tensor | None, Tensor | None, Tensor | None]) -> Tensor:
    """Σ gate · branch: gates [T or 1, H, 3], branches [T, H, Dv] or None for no weight."""
    total: Tensor | None = None
    for i, branch in enumerate(branches):
        if branch is not None:
            part = branch.float() * gates[..., i : i + 1]
            total = part if total is None else total + part
    assert total is not None
    return total


def fixed_gates(nsa: NSAConfig, device: torch.device) -> Tensor:
    """[1, 1, 3]"""
    return torch.tensor(nsa.fixed_gates, device=device).view(1, 1, 3)
