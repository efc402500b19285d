"""Linear layers with int8 weights for CPUs, accurate enough to forget that they are.

Weights are rounded to int8 with one scale per output. Activations are split into two int8 planes
(x ≈ s · (254·high + low) / 32258, an error of at most s / 64516 with s the row's largest
magnitude), and both products are accumulated in int32: exact, in any order, so that a row's result
does not depend on the rows beside it. Few rows and many are computed in two ways, each of which
keeps to that; between them the last bit may differ.
"""

from functools import cached_property

import torch
from torch import Tensor, nn

from nsa_serve.model import fused
from nsa_serve.model.decoder import Decoder

_LEVELS, _LOW, _SMALLEST = float(fused.LEVELS), float(fused.LOW), float(fused.SMALLEST)
_WIDE = 16_384
"""Beyond this many outputs (a head over a large vocabulary) the packed matrix is always faster."""
_FEW_ROWS = 32
"""Up to this many rows the plain matrix is faster than the packed one, and both planes go through
it at once; beyond, one after the other, because the second product adds into the first."""


def supported() -> bool:
    """Whether this CPU multiplies int8 vectors; without, it would be slower than float32."""
    return torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()


class Int8Linear(nn.Module):
    """x [..., in] float32 → [..., out] float32 with int8 weights."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.float()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LEVELS
        rounded = (weight / scale[:, None]).round_().to(torch.int8)
        self.out_features, self.in_features = weight.shape
        self.plain = rounded.t()
        self.wide = self.out_features > _WIDE
        self.scale = scale / (_LEVELS * _LOW)
        self.zero_points = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = bias

    @cached_property
    def packed(self) -> Tensor:
        """The weights as oneDNN wants them; a model whose steps are compiled never asks."""
        packed: Tensor = torch.ops.onednn.qlinear_prepack(self.plain.t(), None)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]"""
        if x.ndim > 2:  # compressors and gates
            return self(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        planes, magnitude = split_planes(x)
        if len(x) > _FEW_ROWS:
            out = self._add_product(planes[0], self._product(planes[1])).mul_(magnitude)
        elif self.wide:
            high, low = self._product(planes.flatten(0, 1)).chunk(2)
            out = torch.add(low, high, alpha=_LOW).mul_(magnitude)
        else:
            products = torch._int_mm(planes.flatten(0, 1), self.plain)
            out = scaled_sum(products, self.scale, magnitude)
        return out if self.bias is None else out.add_(self.bias)

    def _product(self, plane: Tensor) -> Tensor:
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            plane, 1.0, 0, self.packed, self.scale, self.zero_points, None, 1.0, 0, torch.float32,
            "none", [], "",
        )  # fmt: skip
        return out

    def _add_product(self, high: Tensor, low_product: Tensor) -> Tensor:
        out: Tensor = torch.ops.onednn.qlinear_pointwise.binary(
            high, _LOW, 0, self.packed, self.scale, self.zero_points, low_product, None, 1.0, 0,
            torch.float32, 1.0, 0, "sum", 1.0, "none", [], "",
        )  # fmt: skip
        return out


def split_planes(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, in] float32 → (planes [2, T, in] int8: high, low; magnitude [T, 1])."""
    if fused.INSTALLED:
        return fused.split_planes(x)
    magnitude = x.abs().amax(-1, keepdim=True).clamp_min_(_SMALLEST)
    planes = torch.empty(2, *x.shape, dtype=torch.int8)
    first, second = planes.unbind()
    scaled = x * (_LEVELS / magnitude)
    high = scaled.round()
    first.copy_(high)
    second.copy_(scaled.sub_(high).mul_(_LOW).round_())
    return planes, magnitude


def scaled_sum(products: Tensor, scale: Tensor, magnitude: Tensor) -> Tensor:
    """products [2·T, out] int32, the high planes' first, scale [out], magnitude [T, 1]
    → [T, out] float32."""
    if fused.INSTALLED:
        return fused.scaled_sum(products, scale.numpy(), magnitude)
    high, low = products.float().chunk(2)
    return torch.add(low, high, alpha=_LOW).mul_(scale).mul_(magnitude)


def quantize(decoder: Decoder) -> Decoder:
    """Replace every linear layer, the head included, in place. What is not a matrix becomes
    float32; the embedding stays as it is stored."""
    for parent in list(decoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _quantized(child))
    embedding = decoder.model.embed_tokens.weight
    if decoder.lm_head is None:
        decoder.lm_head = Int8Linear(embedding.data, None)
    for parameter in decoder.parameters():
        if parameter is not embedding:
            parameter.data = parameter.data.float()
    return decoder


def _quantized(linear: nn.Linear) -> Int8Linear:
    bias = None if linear.bias is None else linear.bias.data.float()
    return Int8Linear(linear.weight.data, bias)


def num_bytes(linear: nn.Linear) -> int:
    """Bytes of what takes a linear layer's place: packed and plain, a scale and a zero point for
    each output, and the bias."""
    per_output = 8 if linear.bias is None else 12
    return 2 * linear.in_features * linear.out_features + per_output * linear.out_features
