"""The small operations between a layer's matrix products, each by whatever is fastest on its
device: torch everywhere, compiled loops on a CPU, Triton kernels on a GPU."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nsa_kernels.dispatch import has_kernels
from nsa_serve.model.norm import Norm, RMSNorm

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def add_norm(residual: Tensor, delta: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """(residual + delta, its norm), both [T, hidden]. Without gradients the sum may take the place
    of `residual`, which nobody else may hold."""
    if isinstance(norm, RMSNorm) and _use_kernels(residual):
        from nsa_kernels.fused import add_rms_norm

        return residual, add_rms_norm(residual, delta, norm.weight, norm.eps)
    if delta is not None:
        residual = residual + delta
    return residual, norm(residual)


def act_mul(gate_up: Tensor, act: Activation) -> Tensor:
    """gate_up [T, 2 · inner], the gate first → act(gate) · up [T, inner]."""
    if _use_kernels(gate_up):
        from nsa_kernels import fused

        return fused.act_mul(gate_up, act)
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[act](gate) * up


def _use_kernels(x: Tensor) -> bool:
    on_gpu = x.is_cuda or x.is_meta
    return on_gpu and not torch.is_grad_enabled() and has_kernels(x.device)
