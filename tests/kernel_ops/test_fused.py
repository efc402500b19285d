"""The fused operations against their torch definitions, and these against the model's own."""

import pytest
import torch
from torch import Tensor

from nsa_kernels.fused import act_mul, add_rms_norm, reference
from nsa_kernels.fused.reference import ACTIVATIONS, Activation
from nsa_serve.model import ops
from nsa_serve.model.norm import RMSNorm
from tests.support.written import DEVICE, TRUNCATES, random

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def close(found: Tensor, expected: Tensor, roundings: int = 2, either_way: int = 1) -> None:
    """Apart by rounding: one unit in the last place for each rounding that may fall either way,
    as float32 sums differ, or one for each rounding that is a cut."""
    unit = torch.finfo(expected.dtype).eps
    units = 8.0 if expected.dtype == torch.float32 else 1.01 * either_way
    if TRUNCATES and expected.dtype == torch.bfloat16:
        units = 1.01 * roundings
    torch.testing.assert_close(found, expected, rtol=units * unit, atol=1e-5)


def same_sum(found: Tensor, expected: Tensor) -> None:
    """Bit for bit, where the sum is rounded and not cut."""
    if TRUNCATES and expected.dtype == torch.bfloat16:
        close(found, expected, 1)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [1, 48, 576, 2048])
@pytest.mark.parametrize("add", [False, True])
def test_norm_adds_in_place_and_norms_what_was_stored(
    dtype: torch.dtype, hidden: int, add: bool
) -> None:
    wide = random(3, hidden + 5, seed=hidden, dtype=dtype)
    delta = random(3, hidden * 2, seed=1, dtype=dtype)[:, ::2].contiguous() if add else None
    weight = random(hidden, seed=2, dtype=dtype)
    x, expected_x = wide[:, :hidden].clone(), wide[:, :hidden].clone()
    expected = reference.add_rms_norm(expected_x, delta, weight, 1e-5)
    assert x.stride(0) == hidden
    close(add_rms_norm(x, delta, weight, 1e-5), expected, 4)
    same_sum(x, expected_x)
    view = wide[:, :hidden]
    close(add_rms_norm(view, delta, weight, 1e-5), expected, 4)
    same_sum(view, expected_x)
    untouched = random(3, hidden + 5, seed=hidden, dtype=dtype)[:, hidden:]
    assert torch.equal(wide[:, hidden:], untouched)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_the_model_is_the_same(dtype: torch.dtype) -> None:
    norm = RMSNorm(96, 1e-6).to(DEVICE, dtype)
    norm.weight.data = random(96, seed=0, dtype=dtype)
    x, delta = random(4, 96, seed=1, dtype=dtype) * 3, random(4, 96, seed=2, dtype=dtype)
    with torch.inference_mode():
        residual, normed = ops.add_norm(x.clone(), delta, norm)
    close(add_rms_norm(x, delta, norm.weight.detach(), 1e-6), normed, 4)
    same_sum(x, residual)


def test_norm_of_a_zero_row_is_zero_and_a_nan_stays_in_its_row() -> None:
    x = torch.zeros(3, 40, device=DEVICE)
    x[1, 7] = torch.nan
    out = add_rms_norm(x, None, torch.ones(40, device=DEVICE), 1e-5)
    assert not bool(out[[0, 2]].any())
    assert bool(out[1].isnan().all())


@pytest.mark.filterwarnings("ignore:overflow encountered")  # exp(200) is what it should be
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("inner", [5, 1024, 1500])
def test_gated_activations(dtype: torch.dtype, act: Activation, inner: int) -> None:
    gate_up = random(2, 2 * inner + 3, seed=inner, dtype=dtype)[:, : 2 * inner] * 4
    gate_up[0, :5] = torch.tensor([-200.0, 200.0, 0.0, -20.0, 9.0])
    expected = reference.act_mul(gate_up, act)
    found = act_mul(gate_up, act)
    close(found, expected, either_way=2)  # the activation, and its product
    close(found, ops.act_mul(gate_up.clone(), act), either_way=2)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_a_gate_that_is_nan_gives_nan(act: Activation) -> None:
    gate_up = torch.ones(1, 8, device=DEVICE)
    gate_up[0, 1] = torch.nan
    assert act_mul(gate_up, act).isnan().tolist() == [[False, True, False, False]]


def test_rows_do_not_depend_on_each_other_and_none_is_fine() -> None:
    x = random(5, 96, seed=3, dtype=torch.bfloat16)
    weight = random(96, seed=4, dtype=torch.bfloat16)
    together = add_rms_norm(x.clone(), None, weight, 1e-5)
    assert torch.equal(add_rms_norm(x[3:4].clone(), None, weight, 1e-5), together[3:4])
    assert act_mul(x[:0], "silu").shape == (0, 48)
    assert add_rms_norm(x[:0], None, weight, 1e-5).shape == (0, 96)
