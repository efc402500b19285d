"""φ: the l keys (or values) that a compressed slot reads become one.

Every compressor maps windows [S, kv_heads, l, dim] to [S, kv_heads, dim]. Those with parameters
hold one set per kv head, or one for all where `shared`.
"""

import math

import torch
from torch import Tensor, nn

from nsa_kernels.widen import widen
from nsa_serve.config import CompressorAct, CompressorKind
from nsa_serve.model.norm import RMSNorm


class Mean(nn.Module):
    """The mean over the window."""

    def forward(self, windows: Tensor) -> Tensor:
        """[S, kv_heads, l, dim] → [S, kv_heads, dim]"""
        return windows.mean(-2)


class Weighted(nn.Module):
    """A learned weight per place in the window."""

    def __init__(self, heads: int, block: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((heads, block), 1.0 / block))

    def forward(self, windows: Tensor) -> Tensor:
        """[S, kv_heads, l, dim] → [S, kv_heads, dim]"""
        return (windows * self.weight[:, :, None]).sum(-2)


class HeadLinear(nn.Module):
    """A linear map per head, [S, kv_heads, in] → [S, kv_heads, out]; one head's serves all."""

    def __init__(self, heads: int, inputs: int, outputs: int, *, bias: bool) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(heads, outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[S, kv_heads, in] → [S, kv_heads, out]"""
        weight = self.weight.expand(x.shape[1], -1, -1)
        out = torch.bmm(x.transpose(0, 1), weight).transpose(0, 1)
        return out if self.bias is None else out + self.bias


class Flat(nn.Module):
    """Linear maps over the flattened window (token, dim), an activation between them."""

    def __init__(self, *layers: HeadLinear, act: CompressorAct = "relu") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.act = nn.functional.relu if act == "relu" else nn.functional.gelu

    def forward(self, windows: Tensor) -> Tensor:
        """[S, kv_heads, l, dim] → [S, kv_heads, dim]"""
        x = windows.flatten(2)
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else self.act(x))
        return x


class AttentionPool(nn.Module):
    """Each channel is averaged over the window with a softmax of learned logits."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_logits = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.to_logits.weight)

    def forward(self, windows: Tensor) -> Tensor:
        """[S, kv_heads, l, dim] → [S, kv_heads, dim]"""
        weights = widen(self.to_logits(windows)).softmax(-2).to(windows.dtype)
        return (windows * weights).sum(-2)


class TransformerPool(nn.Module):
    """A pre-norm transformer layer over the window, then the mean."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, 1e-6)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = RMSNorm(dim, 1e-6)
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, windows: Tensor) -> Tensor:
        """[S, kv_heads, l, dim] → [S, kv_heads, dim]"""
        q, k, v = self.to_qkv(self.norm(windows)).chunk(3, -1)
        x = windows + self.to_out(nn.functional.scaled_dot_product_attention(q, k, v))
        x = x + self.down(nn.functional.gelu(self.up(self.mlp_norm(x))))
        return x.mean(-2)


def make_compressor(
    kind: CompressorKind,
    *,
    kv_heads: int,
    dim: int,
    block: int,
    hidden: int = 0,
    shared: bool = False,
    act: CompressorAct = "relu",
) -> nn.Module:
    """A fresh φ; `hidden` 0 stands for block · dim."""
    heads = 1 if shared else kv_heads
    width = hidden or block * dim
    match kind:
        case "mean":
            return Mean()
        case "weighted":
            return Weighted(heads, block)
        case "linear":
            return Flat(HeadLinear(heads, block * dim, dim, bias=False))
        case "conv":
            return Flat(HeadLinear(heads, block * dim, dim, bias=True))
        case "single_projection":
            return Flat(HeadLinear(1, block * dim, dim, bias=True))
        case "mlp":
            return Flat(
                HeadLinear(1, block * dim, width, bias=True),
                HeadLinear(1, width, dim, bias=True),
                act=act,
            )
        case "grouped_mlp":
            return Flat(
                HeadLinear(heads, block * dim, width, bias=True),
                HeadLinear(heads, width, dim, bias=True),
                act=act,
            )
        case "attention_pool":
            return AttentionPool(dim)
        case "transformer":
            return TransformerPool(dim, hidden or 4 * dim)
