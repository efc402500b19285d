"""Rotary position embedding: plain, linear, llama3 and YaRN frequencies; halves or pairs.

Where a model has other positions, or none, every angle is zero.
"""

import math
from functools import cached_property

import torch
from torch import Tensor

from nsa_serve.config import ModelConfig, RopeScaling


class Rotation:
    """The rotation of some positions by `rope`, in the type of the heads. Its tables are made when
    they are first used: kernels that rotate bring their own."""

    def __init__(self, rope: "Rope", positions: Tensor, dtype: torch.dtype) -> None:
        self._rope, self._positions, self._dtype = rope, positions, dtype
        self.interleaved = rope.interleaved

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate x [T, heads, head_dim]."""
        if self._rope.is_identity:
            return x
        if self.interleaved:
            swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            first, second = x.chunk(2, -1)
            swapped = torch.cat([second, first], -1)
        return torch.addcmul(x * self.cos, swapped, self.sin)

    @cached_property
    def cos(self) -> Tensor:
        """[T, 1, head_dim]"""
        cos, _ = self._angles
        return self._spread(cos, cos)

    @cached_property
    def sin(self) -> Tensor:
        """[T, 1, head_dim]; carries the signs, so that one multiply-add with the swapped input
        rotates it."""
        _, sin = self._angles
        return self._spread(-sin, sin)

    @cached_property
    def _angles(self) -> tuple[Tensor, Tensor]:
        return self._rope.angles(self._positions)

    def _spread(self, first: Tensor, second: Tensor) -> Tensor:
        """Values of each pair's two places, where these lie in a head."""
        if self.interleaved:
            full = torch.stack([first, second], -1).flatten(-2)
        else:
            full = torch.cat([first, second], -1)
        return full[:, None].to(self._dtype)


class Rope:
    """Rotations at any position of a model."""

    def __init__(self, config: ModelConfig, device: torch.device | None = None) -> None:
        inverse, self.scale = inverse_frequencies(
            config.head_dim,
            config.rope_theta,
            config.rope_scaling,
        )
        self.interleaved = config.rope_interleaved
        self.is_identity = config.positions != "rope"
        self.inverse = (inverse * 0.0 if self.is_identity else inverse).to(device)

    def at(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Rotation:
        """Rotation at positions [T] of heads of `dtype`."""
        return Rotation(self, positions, dtype)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cos and sin of each pair at positions [T]: [T, head_dim / 2] float32."""
        if self.inverse.device != positions.device:
            self.inverse = self.inverse.to(positions.device)
        angles = positions[:, None].to(torch.float64) * self.inverse
        return (angles.cos() * self.scale).float(), (angles.sin() * self.scale).float()


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None
) -> tuple[Tensor, float]:
    """Angle per position of each pair [head_dim / 2] float64, and the factor on cos and sin; on the
    CPU, wherever else a model is being built."""
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    inverse = theta**-exponent
    if scaling is None:
        return inverse, 1.0
    if scaling.rope_type == "linear":
        return inverse / scaling.factor, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(inverse, scaling), 1.0
    return _yarn(inverse, head_dim, theta, scaling), _yarn_attention_factor(scaling)


def _llama3(inverse: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: long waves are stretched, short ones kept, those between blended."""
    turns = scaling.original_max_position_embeddings * inverse / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return inverse * (keep + (1.0 - keep) / scaling.factor)


def _yarn(inverse: Tensor, head_dim: int, theta: float, scaling: RopeScaling) -> Tensor:
    """YaRN (arXiv 2309.00071), section 3.2, with the bounds rounded outward."""

    def pair_turning(turns: float) -> float:
        length = scaling.original_max_position_embeddings
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), head_dim - 1)
    width = max(high - low, 0.001)
    places = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
    stretch = ((places - low) / width).clamp(0.0, 1.0)
    return inverse * (1.0 - stretch) + inverse / scaling.factor * stretch


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def factor(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0 if scaling.factor > 1.0 else 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return factor(scaling.mscale) / factor(scaling.mscale_all_dim)
    return factor(1.0)
