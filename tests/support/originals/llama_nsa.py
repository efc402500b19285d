"""A `llama-nsa` model (NSA-1B) written from its definition, in float64.

Mean pooling of rotated keys, the better half of the blocks so far and the better half of the new.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.by_hand import (
    Array,
    Branches,
    Choose,
    State,
    exact_top,
    frequencies,
    heads_of,
    mean_slots,
    overlap_mass,
    randoms,
    rms_norm,
    rotate_halves,
    sigmoid,
    silu,
    to_torch,
    windows,
)
from tests.support.parity import write_checkpoint

CONFIG: dict[str, Any] = {
    "model_type": "llama-nsa",
    "architectures": ["LlamaNSAForCausalLM"],
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "block_size": 16,
    "block_counts": 16,
    "window_size": 40,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def half_merge(n: int) -> Choose:
    """For a query in block c ≥ n the top n / 2 of blocks [0, n·⌊c / n⌋) and the top n / 2 of blocks
    [n·⌊c / n⌋, c], its own among them; below that the top n."""

    def choose(scores: Sequence[float], t: int) -> set[int]:
        current = len(scores) - 1
        border = n * (current // n)
        if border == 0:
            return exact_top(n, 0, 1)(scores, t)
        old = sorted(range(border), key=lambda j: (-scores[j], j))[: n // 2]
        new = sorted(range(border, current), key=lambda j: (-scores[j], j))[: n // 2 - 1]
        return {*old, *new, current}

    return choose


def random_state(config: dict[str, Any]) -> State:
    """A state dict under the checkpoint's names; the head is the embedding."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}self_attn.q_proj.weight": (q, hidden),
            f"{layer}self_attn.k_proj.weight": (kv, hidden),
            f"{layer}self_attn.v_proj.weight": (kv, hidden),
            f"{layer}self_attn.o_proj.weight": (hidden, q),
            f"{layer}self_attn.g_proj.weight": (3 * config["num_attention_heads"], hidden),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}mlp.gate_proj.weight": (inner, hidden),
            f"{layer}mlp.up_proj.weight": (inner, hidden),
            f"{layer}mlp.down_proj.weight": (hidden, inner),
        }
    return randoms(shapes)


def original_logits(config: dict[str, Any], state: State, tokens: list[int]) -> Array:
    """[T, vocab]"""
    eps = config["rms_norm_eps"]
    x = state["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        stem = f"model.layers.{i}."
        layer = {n.removeprefix(stem): w for n, w in state.items() if n.startswith(stem)}
        x = x + _attention(config, layer, rms_norm(x, layer["input_layernorm.weight"], eps))
        y = rms_norm(x, layer["post_attention_layernorm.weight"], eps)
        inner = silu(y @ layer["mlp.gate_proj.weight"].T) * (y @ layer["mlp.up_proj.weight"].T)
        x = x + inner @ layer["mlp.down_proj.weight"].T
    x = rms_norm(x, state["model.norm.weight"], eps)
    return np.asarray(x @ state["model.embed_tokens.weight"].T)


def _attention(config: dict[str, Any], layer: State, x: Array) -> Array:
    block, n, dim = config["block_size"], config["block_counts"], config["head_dim"]
    inverse, positions = frequencies(dim, config["rope_theta"]), range(len(x))
    q, k, v = (heads_of(x, layer[f"self_attn.{name}_proj.weight"], dim) for name in "qkv")
    q, k = rotate_halves(q, positions, inverse), rotate_halves(k, positions, inverse)
    slots = windows(len(x), block, block)
    branches = Branches(
        q=q,
        k=k,
        v=v,
        k_window=k,
        v_window=v,
        slot_k=mean_slots(k, slots),
        slot_v=mean_slots(v, slots),
        slots=slots,
        window=config["window_size"],
        select_block=block,
        score=overlap_mass(slots, block, block),
        choose=half_merge(n) if n == block else exact_top(n, 0, 1),
    ).outputs()
    gates = sigmoid((x @ layer["self_attn.g_proj.weight"].T).reshape(len(x), -1, 3))
    out = np.einsum("bthd,thb->thd", branches, gates).reshape(len(x), -1)
    return np.asarray(out @ layer["self_attn.o_proj.weight"].T)


def write_random(folder: Path, **changes: Any) -> tuple[dict[str, Any], State]:
    """Its configuration and its weights."""
    config = CONFIG | changes
    state = random_state(config)
    write_checkpoint(folder, config, to_torch(state))
    return config, state
