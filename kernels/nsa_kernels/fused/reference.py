"""The fused operations in plain torch: what they are tested against."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def add_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """x += delta, in place; then x / rms(x) · weight, [T, hidden]."""
    if delta is not None:
        x.add_(delta)
    wide = x.float()
    scale = (wide.square().mean(-1, keepdim=True) + eps).rsqrt()
    return (wide * scale).to(x.dtype) * weight


def act_mul(gate_up: Tensor, act: Activation) -> Tensor:
    """[T, 2 · inner], the gate first → act(gate) · up [T, inner]."""
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[act](gate) * up
