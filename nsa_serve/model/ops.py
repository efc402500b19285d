"""The small operations between a layer's matrix products, each by whatever is fastest on its
device: torch everywhere, compiled loops on a CPU, Triton kernels on a GPU."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nsa_serve.model.norm import RMSNorm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def add_norm(residual: Tensor, delta: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """(residual + delta, its norm), both [T, hidden]. Without gradients the sum may take the place
    of `residual`, which nobody else may hold."""
    if delta is not None:
        residual = residual + delta
    return residual, norm(residual)


def act_mul(gate_up: Tensor, act: str) -> Tensor:
    """gate_up [T, 2 · inner], the gate first → act(gate) · up [T, inner]."""
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[act](gate) * up
