"""A model of nsa-vibe written from its definition, in float64.

A K/V projection for each branch, keys rotated pairwise before they are averaged, and gates by a
small MLP over the mean query of a group, with a softmax over the branches.
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
    mean_slots,
    overlap_mass,
    randoms,
    rms_norm,
    rotate_pairs,
    silu,
    softmax,
    to_torch,
    windows,
)
from tests.support.parity import write_checkpoint

EPS, THETA = 1e-6, 10_000.0
MODEL = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_groups": 2, "d_k": 8, "d_v": 8}
NSA = {"l": 8, "d": 4, "l_sel": 8, "n_sel": 4, "w": 13}
VOCAB = 256
SOURCES = ("W_K_sel", "W_V_sel", "W_K_win", "W_V_win", "W_K_cmp", "W_V_cmp")


def random_state(model: dict[str, int]) -> State:
    """A state dict under the training code's names."""
    dim, d_k, d_v, groups = (model[name] for name in ("dim", "d_k", "d_v", "n_kv_groups"))
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (VOCAB, dim),
        "norm_f.weight": (dim,),
        "lm_head.weight": (VOCAB, dim),
    }
    for i in range(model["n_layers"]):
        attn = f"blocks.{i}.attn."
        shapes |= {
            f"blocks.{i}.norm1.weight": (dim,),
            f"{attn}W_Q.weight": (model["n_heads"] * d_k, dim),
            f"{attn}out.weight": (dim, model["n_heads"] * d_v),
            f"{attn}gate.fc1.weight": (d_k // 2, d_k),
            f"{attn}gate.fc1.bias": (d_k // 2,),
            f"{attn}gate.fc2.weight": (3, d_k // 2),
            f"{attn}gate.fc2.bias": (3,),
            f"blocks.{i}.norm2.weight": (dim,),
            f"blocks.{i}.mlp.fc1.weight": (4 * dim, dim),
            f"blocks.{i}.mlp.fc2.weight": (dim, 4 * dim),
        }
        for name in SOURCES:
            width = d_v if "_V_" in name else d_k
            shapes[f"{attn}{name}.weight"] = (groups * width, dim)
    return randoms(shapes)


def original_logits(model: dict[str, int], state: State, tokens: list[int]) -> Array:
    """[T, vocab]"""
    x = state["embed.weight"][tokens]
    for i in range(model["n_layers"]):
        stem = f"blocks.{i}."
        layer = {n.removeprefix(stem): w for n, w in state.items() if n.startswith(stem)}
        x = x + _attention(model, layer, rms_norm(x, layer["norm1.weight"], EPS))
        y = rms_norm(x, layer["norm2.weight"], EPS)
        x = x + silu(y @ layer["mlp.fc1.weight"].T) @ layer["mlp.fc2.weight"].T
    return np.asarray(rms_norm(x, state["norm_f.weight"], EPS) @ state["lm_head.weight"].T)


def _attention(model: dict[str, int], layer: State, x: Array) -> Array:
    d_k, d_v, positions = model["d_k"], model["d_v"], range(len(x))
    inverse = frequencies(d_k, THETA)
    raw_q = heads_of(x, layer["attn.W_Q.weight"], d_k)
    k, v, k_window, v_window, k_slot, v_slot = (
        heads_of(x, layer[f"attn.{name}.weight"], d_v if "_V_" in name else d_k) for name in SOURCES
    )
    k, k_window, k_slot = (rotate_pairs(y, positions, inverse) for y in (k, k_window, k_slot))
    slots = windows(len(x), NSA["l"], NSA["d"])
    branches = Branches(
        q=rotate_pairs(raw_q, positions, inverse),
        k=k,
        v=v,
        k_window=k_window,
        v_window=v_window,
        slot_k=mean_slots(k_slot, slots),
        slot_v=mean_slots(v_slot, slots),
        slots=slots,
        window=NSA["w"],
        select_block=NSA["l_sel"],
        score=overlap_mass(slots, NSA["d"], NSA["l_sel"]),
        choose=exact_top(NSA["n_sel"], 1, 2),
    ).outputs()
    groups, group = model["n_kv_groups"], model["n_heads"] // model["n_kv_groups"]
    mean = raw_q.reshape(len(x), groups, group, d_k).mean(2)
    inner = silu(mean @ layer["attn.gate.fc1.weight"].T + layer["attn.gate.fc1.bias"])
    gates = softmax(inner @ layer["attn.gate.fc2.weight"].T + layer["attn.gate.fc2.bias"])
    out = np.einsum("bthd,thb->thd", branches, gates.repeat(group, 1)).reshape(len(x), -1)
    return np.asarray(out @ layer["attn.out.weight"].T)


def write_random(folder: Path, *, nested: bool = True, **changes: Any) -> tuple[Any, State]:
    """The sizes and the weights, without a tokenizer."""
    model = MODEL | changes
    state = random_state(model)
    config = {"model": model, "nsa": NSA} if nested else {"model_type": "nsa", **model, **NSA}
    write_checkpoint(folder, config, to_torch(state))
    (folder / "tokenizer.json").unlink()
    return model, state
