"""RMSNorm in the few operations that a CPU step can afford, and LayerNorm."""

import torch
from torch import Tensor, nn

from nsa_kernels.widen import widen
from nsa_serve.config import ModelConfig
from nsa_serve.model import fused


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, the mean square in float32.

    The same as torch.nn.RMSNorm, which on a CPU takes several times as long for a single token.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] → [..., dim]"""
        if fused.usable(x):
            return fused.rms_norm(x, self.weight, self.eps)
        wide = widen(x)
        square = wide.square().sum(-1, keepdim=True)
        scale = square.mul_(1.0 / x.shape[-1]).add_(self.eps).rsqrt_()
        return (wide * scale).to(x.dtype) * self.weight


Norm = RMSNorm | nn.LayerNorm
"""Over the last dimension, [..., dim] → [..., dim]."""


def make_norm(config: ModelConfig) -> Norm:
    """A fresh norm of a model's stream."""
    kind = RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.hidden_size, config.rms_norm_eps)
