"""Rotary embedding written as complex numbers, frequencies from their published formulas."""

import math

import numpy as np
import numpy.typing as npt

from nsa_serve.config import ModelConfig, RopeScaling

Array = npt.NDArray[np.float64]


def frequency(pair: int, head_dim: int, theta: float, scaling: RopeScaling | None) -> float:
    """Angle per position of a pair of channels."""
    plain = 1.0 / theta ** (2 * pair / head_dim)
    if scaling is None:
        return plain
    stretched = plain / scaling.factor
    if scaling.rope_type == "linear":
        return stretched
    if scaling.rope_type == "llama3":
        return _llama3(plain, stretched, scaling)
    return _yarn(pair, plain, stretched, head_dim, theta, scaling)


def _llama3(plain: float, stretched: float, scaling: RopeScaling) -> float:
    """By wavelength, as Llama 3.1 was published."""
    length = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / plain
    if wavelength < length / scaling.high_freq_factor:
        return plain
    if wavelength > length / scaling.low_freq_factor:
        return stretched
    smooth = (length / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - smooth) * stretched + smooth * plain


def _yarn(
    pair: int, plain: float, stretched: float, head_dim: int, theta: float, scaling: RopeScaling
) -> float:
    """By the pair's place between the one that turns beta_fast times and beta_slow times."""

    def correction(turns: float) -> float:
        length = scaling.original_max_position_embeddings
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(correction(scaling.beta_fast)), 0)
    high = min(math.ceil(correction(scaling.beta_slow)), head_dim - 1)
    if low == high:
        keeps = 1.0 if pair <= low else 0.0
    else:
        keeps = 1.0 - min(max((pair - low) / (high - low), 0.0), 1.0)
    return stretched * (1 - keeps) + plain * keeps


def amplitude(scaling: RopeScaling | None) -> float:
    """What cos and sin are multiplied by."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        log = math.log(scaling.factor)
        return (0.1 * scaling.mscale * log + 1) / (0.1 * scaling.mscale_all_dim * log + 1)
    return 0.1 * math.log(scaling.factor) + 1


def rotate(x: Array, position: int, config: ModelConfig) -> Array:
    """x [head_dim] at a position: each pair of channels is one complex number."""
    dim = config.head_dim
    out = np.empty(dim)
    for pair in range(dim // 2):
        if config.rope_interleaved:
            first, second = 2 * pair, 2 * pair + 1
        else:
            first, second = pair, pair + dim // 2
        angle = position * frequency(pair, dim, config.rope_theta, config.rope_scaling)
        turned = complex(x[first], x[second]) * complex(math.cos(angle), math.sin(angle))
        turned *= amplitude(config.rope_scaling)
        out[first], out[second] = turned.real, turned.imag
    return out
