"""The type in which sums and softmaxes are computed."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """x in float32; in float64 where it is that already, so that gradients can be checked."""
    return x if x.dtype is torch.float64 else x.float()
