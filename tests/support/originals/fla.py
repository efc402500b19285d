"""A model of flash-linear-attention around fla's own naive reference of its attention.

fla-core carries the attention; the model around it is written here. The reference pools with a
Triton kernel and leaves the window to flash-attn, neither of which runs on a CPU: both are replaced
by what they are defined as.
"""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.parity import write_checkpoint
from tests.support.torch_llama import llama_logits, rotate_halves

HIDDEN, LAYERS, HEAD_DIM, INNER, VOCAB, EPS, THETA = 32, 2, 8, 48, 256, 1e-6, 500.0
NAMES = {
    "embedding": "model.embeddings.weight",
    "attn_norm": "model.layers.*.attn_norm.weight",
    "mlp_norm": "model.layers.*.mlp_norm.weight",
    "gate": "model.layers.*.mlp.gate_proj.weight",
    "up": "model.layers.*.mlp.up_proj.weight",
    "down": "model.layers.*.mlp.down_proj.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
SIZES: dict[str, dict[str, Any]] = {
    "small": {"num_heads": 16, "num_kv_heads": 1, "block_size": 8, "block_counts": 4},
    "two_groups": {"num_heads": 32, "num_kv_heads": 2, "block_size": 4, "block_counts": 6},
    "forced_only": {"num_heads": 16, "num_kv_heads": 1, "block_size": 16, "block_counts": 3},
    "biased": {
        "num_heads": 16,
        "num_kv_heads": 1,
        "block_size": 8,
        "block_counts": 5,
        "qkv_bias": True,
    },
}


def _mean_pooling(x: Tensor, size: int, cu_seqlens: None = None) -> Tensor:
    """[B, T, H, D] → [B, blocks, H, D], the last block of what there is."""
    return torch.stack([block.mean(1) for block in x.split(size, 1)], 1)


def _flash_attn(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, window_size: tuple[int, int]
) -> Tensor:
    """[B, T, H, D], with window_size[0] keys before the query's own."""
    assert causal
    t, group = q.shape[1], q.shape[2] // k.shape[2]
    near = torch.ones(t, t, dtype=torch.bool).tril().triu(-window_size[0])
    k, v = (x.repeat_interleave(group, 2).transpose(1, 2) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=near)
    return out.transpose(1, 2)


def make_config(sizes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "nsa",
        "architectures": ["NSAForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER,
        "window_size": 11,
        "rope_theta": THETA,
        "norm_eps": EPS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **sizes,
        **changes,
    }


def random_state(config: dict[str, Any]) -> dict[str, Tensor]:
    """A state dict under fla's names."""
    generator = torch.Generator().manual_seed(3)
    q, kv = config["num_heads"] * HEAD_DIM, config["num_kv_heads"] * HEAD_DIM

    def matrix(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

    state = {"model.embeddings.weight": matrix(VOCAB, HIDDEN) * HIDDEN**0.5}
    for i in range(LAYERS):
        attn, mlp = f"model.layers.{i}.attn.", f"model.layers.{i}.mlp."
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            state[f"{attn}{name}_proj.weight"] = 1.5 * matrix(rows, HIDDEN)
            if config.get("qkv_bias"):
                state[f"{attn}{name}_proj.bias"] = torch.randn(rows, generator=generator)
        state[f"{attn}g_proj.weight"] = matrix(3 * config["num_heads"], HIDDEN)
        state[f"{attn}o_proj.weight"] = matrix(HIDDEN, q)
        state[f"{mlp}gate_proj.weight"] = matrix(INNER, HIDDEN)
        state[f"{mlp}up_proj.weight"] = matrix(INNER, HIDDEN)
        state[f"{mlp}down_proj.weight"] = matrix(HIDDEN, INNER)
        for name in ("attn_norm", "mlp_norm"):
            state[f"model.layers.{i}.{name}.weight"] = 1.0 + 0.3 * matrix(HIDDEN) * HIDDEN**0.5
    state["model.norm.weight"] = torch.ones(HIDDEN)
    state["lm_head.weight"] = matrix(VOCAB, HIDDEN)
    return state


def reference() -> Any:
    """fla's `naive_nsa`, pooling and window in plain torch; skips the test without fla-core."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("triton")
        naive = pytest.importorskip("fla.ops.nsa.naive")
    naive.mean_pooling, naive.flash_attn_func = _mean_pooling, _flash_attn
    return naive.naive_nsa


def write_random(
    folder: Path, sizes: dict[str, Any], **changes: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Its configuration and its weights."""
    config = make_config(sizes, **changes)
    state = random_state(config)
    write_checkpoint(folder, config, state)
    return config, state


def original_logits(config: dict[str, Any], state: dict[str, Tensor], tokens: list[int]) -> Tensor:
    """[T, vocab] by fla's reference."""

    def attention(layer: int, x: Tensor) -> Tensor:
        def project(name: str) -> Tensor:
            stem = f"model.layers.{layer}.attn.{name}_proj."
            y = x @ state[stem + "weight"].T
            y = y + state[stem + "bias"] if stem + "bias" in state else y
            return y.unflatten(-1, (-1, 3 if name == "g" else HEAD_DIM))

        q, k = rotate_halves(project("q"), THETA), rotate_halves(project("k"), THETA)
        gates = project("g").sigmoid().unbind(-1)
        out = reference()(
            q[None],
            k[None],
            project("v")[None],
            *(gate[None] for gate in gates),
            block_counts=config["block_counts"],
            block_size=config["block_size"],
            window_size=config["window_size"],
        )
        return out[0].flatten(1) @ state[f"model.layers.{layer}.attn.o_proj.weight"].T

    return llama_logits(state, tokens, attention, eps=EPS, num_layers=LAYERS, names=NAMES)
