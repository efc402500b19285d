"""The gated activation of an MLP."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from nsa_kernels.fused.reference import Activation

TILE = 1024
"""Outputs of one program."""
WARPS = 4


def act_mul(gate_up: Tensor, act: Activation) -> Tensor:
    """gate_up [T, 2 · inner], the gate first, rows of any stride → act(gate) · up [T, inner]."""
    num_tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1
    out = torch.empty((num_tokens, inner), dtype=gate_up.dtype, device=gate_up.device)
    if num_tokens == 0:
        return out
    _act_mul_kernel[(num_tokens, triton.cdiv(inner, TILE))](
        gate_up,
        out,
        gate_up.stride(0),
        INNER=inner,
        ACT=act,
        TILE=min(TILE, triton.next_power_of_2(inner)),
        num_warps=WARPS,
    )
    return out


@triton.jit
def _act_mul_kernel(
    gate_up: tl.tensor,
    out: tl.tensor,
    stride: tl.tensor,
    INNER: tl.constexpr,
    ACT: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    mask = columns < INNER
    row = gate_up + token * stride + columns
    x = tl.load(row, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(row + INNER, mask=mask, other=0.0).to(tl.float32)
    if ACT == "silu":
        y = x / (1.0 + tl.exp(-x))
    elif ACT == "gelu":
        y = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACT == "gelu_tanh":
        # (1 + tanh(z)) / 2 is the logistic function of 2z.
        z = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        y = x / (1.0 + tl.exp(-z))
    else:
        y = tl.where(x < 0.0, 0.0, x)  # a NaN stays one
    y = y.to(out.dtype.element_ty).to(tl.float32)  # rounded where torch rounds
    tl.store(out + token * INNER + columns, (y * up).to(out.dtype.element_ty), mask=mask)
