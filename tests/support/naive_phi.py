"""Compressors written for one window, in float64."""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from nsa_serve.config import NSAConfig

Array = npt.NDArray[np.float64]
Weights = Mapping[str, Array]


def linear(x: Array, weights: Weights, name: str) -> Array:
    """x [..., in] through a linear layer stored [out, in]."""
    out = x @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def softmax(x: Array) -> Array:
    """Over the last dimension."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x [..., dim]"""
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def gelu(x: Array) -> Array:
    """The exact one."""
    erf = np.vectorize(math.erf)
    return np.asarray(x * 0.5 * (1.0 + erf(x / math.sqrt(2.0))))


def compress(nsa: NSAConfig, windows: Array, head: int, weights: Weights, prefix: str) -> Array:
    """windows [kv_heads, l, dim], the positions of the block added already → [dim] of a head."""
    kind, window = nsa.compressor, windows[head]
    if kind == "mean":
        return np.asarray(window.mean(0))
    if kind == "weighted":
        weight = weights[f"{prefix}.weight"]
        return np.asarray(sum(weight[_of(weight, head), i] * row for i, row in enumerate(window)))
    if kind == "attention_pool":
        logits = window @ weights[f"{prefix}.to_logits.weight"].T
        return np.asarray((softmax(logits.T).T * window).sum(0))
    if kind == "transformer":
        return _transformer(nsa, windows, weights, prefix)[head]
    x, layer = window.reshape(-1), 0
    while f"{prefix}.layers.{layer}.weight" in weights:
        if layer:
            x = gelu(x) if nsa.compressor_act == "gelu" else np.maximum(x, 0.0)
        matrix = weights[f"{prefix}.layers.{layer}.weight"]
        x = x @ matrix[_of(matrix, head)]
        bias = weights.get(f"{prefix}.layers.{layer}.bias")
        x = x if bias is None else x + bias[_of(bias, head)]
        layer += 1
    return x


def _of(parameter: Array, head: int) -> int:
    """A head's own part, or the one that all share."""
    return head if len(parameter) > 1 else 0


def _transformer(nsa: NSAConfig, windows: Array, weights: Weights, prefix: str) -> Array:
    """[kv_heads, l, dim] → [kv_heads, dim], what the last token became."""
    eps = float(np.finfo(np.float32).eps)
    x = np.concatenate(list(windows), -1)
    width = x.shape[1] // nsa.compressor_heads
    for i in range(nsa.compressor_layers):
        own = f"{prefix}.layers.{i}"
        y = rms_norm(x, weights[f"{own}.norm.weight"], eps)
        q, k, v = (linear(y, weights, f"{own}.{name}_proj") for name in "qkv")
        attended = np.zeros_like(x)
        for h in range(nsa.compressor_heads):
            part = slice(h * width, (h + 1) * width)
            probs = softmax(q[:, part] @ k[:, part].T / math.sqrt(width))
            attended[:, part] = probs @ v[:, part]
        x = x + linear(attended, weights, f"{own}.o_proj")
        y = rms_norm(x, weights[f"{own}.mlp_norm.weight"], eps)
        x = x + linear(gelu(linear(y, weights, f"{own}.up")), weights, f"{own}.down")
    return x[-1].reshape(len(windows), -1)
