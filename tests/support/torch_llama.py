"""The parts of a Llama that originals share, in plain torch and in the type of their weights."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Attention = Callable[[int, Tensor], Tensor]
"""Of a layer: its number and its normed input [T, hidden] → [T, hidden]."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., dim]"""
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotate_halves(x: Tensor, theta: float) -> Tensor:
    """x [T, heads, dim] at positions 0 to T − 1: channel i turns with channel i + dim / 2."""
    t, _, dim = x.shape
    inverse = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    turns = torch.polar(
        torch.ones(t, dim // 2, dtype=torch.float64),
        torch.arange(t, dtype=torch.float64)[:, None] * inverse,
    )
    first, second = x.double().chunk(2, -1)
    turned = torch.complex(first, second) * turns[:, None]
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


def llama_logits(
    state: Mapping[str, Tensor],
    tokens: list[int],
    attention: Attention,
    *,
    eps: float,
    num_layers: int,
    names: Mapping[str, str],
) -> Tensor:
    """[T, vocab] of pre-norm layers with a SwiGLU; `names` gives a checkpoint's name, with `*` for
    the layer, of: embedding, attn_norm, mlp_norm, gate, up, down, norm, head."""

    def weight(part: str, layer: int = 0) -> Tensor:
        return state[names[part].replace("*", str(layer))]

    x = weight("embedding")[tokens]
    for i in range(num_layers):
        x = x + attention(i, rms_norm(x, weight("attn_norm", i), eps))
        y = rms_norm(x, weight("mlp_norm", i), eps)
        inner = torch.nn.functional.silu(y @ weight("gate", i).T) * (y @ weight("up", i).T)
        x = x + inner @ weight("down", i).T
    return rms_norm(x, weight("norm"), eps) @ weight("head").T
