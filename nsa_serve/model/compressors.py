"""φ: the l keys (or values) that a compressed slot reads become one.

Every compressor maps windows [S, kv_heads, l, dim] to [S, kv_heads, dim]. Those with parameters
hold one set per kv head, or one for all where `shared`; the transformer joins the heads.
"""

import math

import torch
from torch import Tensor, nn

from nsa_kernels.widen import widen
from nsa_serve.config import CompressorAct, CompressorKind
from nsa_serve.model.norm import RMSNorm
from nsa_serve.model.shaped import Float

_FLOAT32_EPS = 2.0**-23

Windows = Float[Tensor, "slots kv_heads block dim"]
Compressed = Float[Tensor, "slots kv_heads dim"]


class Mean(nn.Module):
    """The mean over the window."""

    def forward(self, windows: Windows) -> Compressed:
        """The slots of the windows."""
        return windows.mean(-2)


class Weighted(nn.Module):
    """A learned weight per place in the window."""

    def __init__(self, heads: int, block: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((heads, block), 1.0 / block))

    def forward(self, windows: Windows) -> Compressed:
        """The slots of the windows."""
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

    def forward(self, windows: Windows) -> Compressed:
        """The slots of the windows."""
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

    def forward(self, windows: Windows) -> Compressed:
        """The slots of the windows."""
        weights = widen(self.to_logits(windows)).softmax(-2).to(windows.dtype)
        return (windows * weights).sum(-2)


class TransformerPool(nn.Module):
    """Pre-norm transformer layers over the window, whose tokens are all kv heads joined; of the
    last token what they made."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, heads, hidden) for _ in range(layers))

    def forward(self, windows: Windows) -> Compressed:
        """The slots of the windows."""
        x = windows.transpose(1, 2).flatten(2)
        for layer in self.layers:
            x = layer(x)
        return x[:, -1].unflatten(-1, (windows.shape[1], -1))


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): no mask, no positions."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width, _FLOAT32_EPS)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.mlp_norm = RMSNorm(width, _FLOAT32_EPS)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[S, l, width] → [S, l, width]"""
        normed = self.norm(x)
        q, k, v = (
            project(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o_proj(attended.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.mlp_norm(x))))


def make_compressor(
    kind: CompressorKind,
    *,
    kv_heads: int,
    dim: int,
    block: int,
    hidden: int = 0,
    shared: bool = False,
    act: CompressorAct = "relu",
    layers: int = 1,
    attention_heads: int = 1,
) -> nn.Module:
    """A fresh φ; `hidden` 0 stands for block · dim, in a transformer for four times its width."""
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
            joined = kv_heads * dim
            return TransformerPool(joined, layers, attention_heads, hidden or 4 * joined)
