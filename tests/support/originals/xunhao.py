"""Models of XunhaoLai's library and of FSA written from their definition, in float64.

φ over raw keys with one learned vector per place added, the result rotated at the position of its
first token; keys rotated for the other branches; one key more than `window_size` in the window.
"""

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.by_hand import (
    Array,
    Branches,
    State,
    exact_top,
    frequencies,
    heads_of,
    llama3,
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

EPS = 1e-6
ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIG: dict[str, Any] = {
    "vocab_size": 256,
    "max_position_embeddings": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 5000.0,
    "rope_scaling": ROPE,
    "compress_type": "linear",
    "kernel_size": 16,
    "kernel_stride": 8,
    "block_size": 16,
    "topk": 4,
    "init_blocks": 1,
    "local_blocks": 2,
    "window_size": 21,
}


def random_state(config: dict[str, Any], *, one_gate: bool) -> State:
    """A state dict under the library's names."""
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv, block = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "kernel_size")
    )
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.weight": (config["vocab_size"], hidden),
        "norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"layers.{i}."
        shapes |= {
            f"{layer}attn_norm.weight": (hidden,),
            f"{layer}nsa.proj_q.weight": (heads * dim, hidden),
            f"{layer}nsa.proj_k.weight": (kv * dim, hidden),
            f"{layer}nsa.proj_v.weight": (kv * dim, hidden),
            f"{layer}nsa.proj_o.weight": (hidden, heads * dim),
            f"{layer}nsa.intra_block_pe": (kv, block, dim),
            f"{layer}nsa.gate.0.weight": (3 if one_gate else 3 * heads, hidden),
            f"{layer}ffn_norm.weight": (hidden,),
            f"{layer}ffn.gate_proj.weight": (inner, hidden),
            f"{layer}ffn.up_proj.weight": (inner, hidden),
            f"{layer}ffn.down_proj.weight": (hidden, inner),
        }
        phi = {"avgpool": None, "weightedpool": (kv, block), "linear": (kv, block * dim, dim)}
        if (shape := phi[config["compress_type"]]) is not None:
            shapes |= {f"{layer}nsa.compress_{name}": shape for name in ("key", "value")}
    return randoms(shapes)


def original_logits(config: dict[str, Any], state: State, tokens: list[int]) -> Array:
    """[T, vocab]"""
    x = state["embedding.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        stem = f"layers.{i}."
        layer = {n.removeprefix(stem): w for n, w in state.items() if n.startswith(stem)}
        x = x + _attention(config, layer, rms_norm(x, layer["attn_norm.weight"], EPS))
        y = rms_norm(x, layer["ffn_norm.weight"], EPS)
        inner = silu(y @ layer["ffn.gate_proj.weight"].T) * (y @ layer["ffn.up_proj.weight"].T)
        x = x + inner @ layer["ffn.down_proj.weight"].T
    return np.asarray(rms_norm(x, state["norm.weight"], EPS) @ state["lm_head.weight"].T)


def _attention(config: dict[str, Any], layer: State, x: Array) -> Array:
    dim, block, stride = config["head_dim"], config["kernel_size"], config["kernel_stride"]
    inverse = frequencies(dim, config["rope_theta"])
    if config["rope_scaling"]:
        inverse = llama3(inverse, 8.0, 1.0, 4.0, ROPE["original_max_position_embeddings"])
    positions = range(len(x))
    q, k, v = (heads_of(x, layer[f"nsa.proj_{name}.weight"], dim) for name in "qkv")
    slots = windows(len(x), block, stride)
    slot_k = _compress(k, slots, layer.get("nsa.compress_key"), layer["nsa.intra_block_pe"])
    slot_v = _compress(v, slots, layer.get("nsa.compress_value"), None)
    rotated = rotate_halves(k, positions, inverse)
    branches = Branches(
        q=rotate_halves(q, positions, inverse),
        k=rotated,
        v=v,
        k_window=rotated,
        v_window=v,
        slot_k=rotate_halves(slot_k, [tokens[0] for tokens in slots], inverse),
        slot_v=slot_v,
        slots=slots,
        window=config["window_size"] + 1,
        select_block=config["block_size"],
        score=overlap_mass(slots, stride, config["block_size"]),
        choose=exact_top(config["topk"], config["init_blocks"], config["local_blocks"]),
    ).outputs()
    gates = sigmoid(x @ layer["nsa.gate.0.weight"].T).reshape(len(x), -1, 3)
    gates = np.broadcast_to(gates, (len(x), q.shape[1], 3))
    out = np.einsum("bthd,thb->thd", branches, gates).reshape(len(x), -1)
    return np.asarray(out @ layer["nsa.proj_o.weight"].T)


def _compress(x: Array, slots: list[range], weight: Array | None, places: Array | None) -> Array:
    """x [T, kv_heads, dim] → [S, kv_heads, dim]; weight [kv_heads, l], or [kv_heads, l · dim, dim]
    with rows in the order (token, channel), or None for the mean; places [kv_heads, l, dim]."""
    out = np.zeros((len(slots), *x.shape[1:]))
    for s, tokens in enumerate(slots):
        for head in range(x.shape[1]):
            window = x[list(tokens), head]
            window = window if places is None else window + places[head]
            if weight is None:
                out[s, head] = window.mean(0)
            elif weight.ndim == 2:
                out[s, head] = weight[head] @ window
            else:
                out[s, head] = window.reshape(-1) @ weight[head]
    return out


def write_random(
    folder: Path, *, one_gate: bool = False, **changes: Any
) -> tuple[dict[str, Any], State]:
    """Its configuration and its weights."""
    config = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    state = random_state(config, one_gate=one_gate)
    write_checkpoint(folder, config, to_torch(state))
    return config, state
