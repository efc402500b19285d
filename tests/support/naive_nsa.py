"""A decoder with Native Sparse Attention written from its definition, in float64 and numpy.

One query and one kv head at a time; shares no code with what it checks, only the names of the
weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nsa_serve.config import ModelConfig, NSAConfig
from tests.support.naive_phi import compress, gelu, linear, rms_norm, softmax
from tests.support.naive_rope import rotate
from tests.support.naive_select import (
    SlotMass,
    first_token,
    importance,
    select,
    slot_exists,
    slot_visible,
)

Array = npt.NDArray[np.float64]
Weights = dict[str, Array]


@dataclass(slots=True)
class Projected:
    """Keys and values [T, kv_heads, dim] of one branch; keys before and after rotation."""

    raw: Array
    keys: Array
    values: Array


class NaiveDecoder:
    """The weights of a decoder's state dict, computed naively."""

    def __init__(self, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
        self.config = config
        self.weights = {name: value.double().numpy() for name, value in state.items()}

    def logits(self, tokens: Sequence[int]) -> Array:
        """[T, vocab]"""
        config, weights = self.config, self.weights
        x = weights["model.embed_tokens.weight"][list(tokens)]
        if config.positions == "learned":
            x = x + weights["model.embed_positions.weight"][: len(tokens)]
        for i in range(config.num_layers):
            prefix = f"model.layers.{i}."
            layer = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
            normed = _norm(x, layer, "input_layernorm", config)
            own = "self_attn."
            attention = {n.removeprefix(own): w for n, w in layer.items() if n.startswith(own)}
            nsa = config.nsa if config.kinds[i] == "nsa" else None
            x = x + NaiveAttention(config, nsa, attention)(normed)
            x = x + _mlp(_norm(x, layer, "post_attention_layernorm", config), layer, config)
        x = _norm(x, weights, "model.norm", config)
        tied = config.tie_word_embeddings
        return x @ weights["model.embed_tokens.weight" if tied else "lm_head.weight"].T


class NaiveAttention:
    """One attention layer, NSA or (`nsa` None) dense."""

    def __init__(self, config: ModelConfig, nsa: NSAConfig | None, weights: Weights) -> None:
        self.config, self.nsa, self.weights = config, nsa, weights
        self.scale = 1.0 / math.sqrt(config.head_dim)

    def __call__(self, x: Array) -> Array:
        """x [T, hidden], normed → [T, hidden]"""
        config = self.config
        q_raw = self._heads(x, "q_proj", "q_norm", config.num_heads)
        q = self._rotated(q_raw)
        kv = self._kv(x, "k_proj", "v_proj")
        out = np.zeros((len(x), config.num_heads, config.value_dim))
        for head in range(config.num_kv_heads):
            queries = range(head * config.group, (head + 1) * config.group)
            if self.nsa is None:
                for t in range(len(x)):
                    for h in queries:
                        out[t, h] = self._attend(q[t, h], kv, head, range(t + 1))
            else:
                gates = [
                    [self._gates(x[t], q_raw[t, queries], h) for h in queries]
                    for t in range(len(x))
                ]
                branches = self._branches(x, q, q_raw, kv, head)
                for t in range(len(x)):
                    for g, h in enumerate(queries):
                        parts = branches[t][g]
                        out[t, h] = sum(gates[t][g][b] * parts[b] for b in range(3))
        return linear(out.reshape(len(x), -1), self.weights, "o_proj")

    def _branches(
        self, x: Array, q: Array, q_raw: Array, kv: Projected, head: int
    ) -> list[list[tuple[Array, Array, Array]]]:
        """(compressed, selected, window) for each position and query head of the group."""
        nsa, config = self.nsa, self.config
        assert nsa is not None
        own = nsa.branch_kv == "independent"
        window_kv = self._kv(x, "nsa.k_window", "nsa.v_window") if own else kv
        slots = self._slots(self._kv(x, "nsa.k_phi", "nsa.v_phi") if own else kv, head)
        queries = range(head * config.group, (head + 1) * config.group)
        met = q_raw if nsa.compressed_rope == "none" else q
        out = []
        for t in range(len(x)):
            seen = {s: pair for s, pair in slots.items() if slot_visible(nsa, s, t)}
            compressed = [self._compressed(met[t, h], seen, head) for h in queries]
            probs, logits = [c[1] for c in compressed], [c[2] for c in compressed]
            keys = self._selected_keys(probs, logits, t)
            recent = range(max(t - nsa.window + 1, 0), t + 1)
            out.append(
                [
                    (
                        compressed[g][0],
                        self._attend(q[t, h], kv, head, keys),
                        self._attend(q[t, h], window_kv, head, recent),
                    )
                    for g, h in enumerate(queries)
                ]
            )
        return out

    def _slots(self, phi: Projected, head: int) -> dict[int, tuple[Array, Array]]:
        """The slots of a kv head: compressed key and value."""
        nsa, config, weights = self.nsa, self.config, self.weights
        assert nsa is not None
        keys = phi.keys if nsa.compressed_rope == "before" else phi.raw
        slots = {}
        for s in range(len(keys) // nsa.compress_stride):
            if not slot_exists(nsa, s):
                continue
            first = first_token(nsa, s)
            tokens = range(first, first + nsa.compress_block)
            windows_k, windows_v = (
                np.stack([x[i] if i >= 0 else 0 * x[0] for i in tokens], 1)
                for x in (keys, phi.values)
            )
            if nsa.intra_block_positions != "none":
                windows_k = windows_k + weights["nsa.k_positions"]
            if nsa.intra_block_positions == "kv":
                windows_v = windows_v + weights["nsa.v_positions"]
            key = compress(nsa, windows_k, head, weights, "nsa.compress_k")
            if nsa.compressed_rope == "block_start" and config.positions == "rope":
                key = rotate(key, first, config)
            phi_v = "nsa.compress_k" if nsa.compressor_tied else "nsa.compress_v"
            slots[s] = key, compress(nsa, windows_v, head, weights, phi_v)
        return slots

    def _compressed(
        self, q: Array, seen: dict[int, tuple[Array, Array]], head: int
    ) -> tuple[Array, dict[int, float], dict[int, float]]:
        """One query: output, and what each slot got of it and its scaled logit."""
        nsa = self.nsa
        assert nsa is not None
        keys, values = [k for k, _ in seen.values()], [v for _, v in seen.values()]
        if nsa.memory_slots:
            keys = [*self.weights["nsa.k_memory"][head], *keys]
            values = [*self.weights["nsa.v_memory"][head], *values]
        if not keys:
            return np.zeros(self.config.value_dim), {}, {}
        logits = np.array([self.scale * float(q @ key) for key in keys])
        probs = softmax(logits)
        out = np.asarray(sum(p * v for p, v in zip(probs, values, strict=True)))
        m = nsa.memory_slots
        return (
            out,
            dict(zip(seen, probs[m:].tolist(), strict=True)),
            dict(zip(seen, logits[m:].tolist(), strict=True)),
        )

    def _selected_keys(self, probs: SlotMass, logits: SlotMass, t: int) -> list[int]:
        nsa = self.nsa
        assert nsa is not None
        blocks = range(t // nsa.select_block + 1)
        chosen = select(nsa, [importance(nsa, j, probs, logits, t) for j in blocks], t)
        return [key for key in range(t + 1) if key // nsa.select_block in chosen]

    def _attend(self, q: Array, kv: Projected, head: int, keys: Sequence[int]) -> Array:
        """Softmax attention of one query over the given keys; no key gives zeros."""
        if not keys:
            return np.zeros(self.config.value_dim)
        probs = softmax(kv.keys[list(keys), head] @ q * self.scale)
        return np.asarray(probs @ kv.values[list(keys), head])

    def _gates(self, x: Array, group_q: Array, head: int) -> Sequence[float]:
        """(compressed, selected, window) of one token and one query head."""
        nsa, config = self.nsa, self.config
        assert nsa is not None
        if nsa.gate == "none":
            return nsa.fixed_gates
        y = group_q.mean(0) if nsa.gate_input == "query_mean" else x
        if nsa.gate_hidden:
            y = linear(y, self.weights, "nsa.gates.hidden")
            y = y / (1.0 + np.exp(-y))
        if nsa.gate_input == "constant":
            logits = self.weights["nsa.gates.constant"].reshape(-1, 3)
        else:
            logits = linear(y, self.weights, "nsa.gates.out").reshape(-1, 3)
        row = {"head": head, "group": head // config.group, "shared": 0}[nsa.gate_scope]
        triple = logits[0 if nsa.gate_input == "query_mean" else row]
        gates = softmax(triple) if nsa.gate == "softmax" else 1.0 / (1.0 + np.exp(-triple))
        return [float(gate) for gate in gates]

    def _kv(self, x: Array, keys: str, values: str) -> Projected:
        heads = self.config.num_kv_heads
        raw = self._heads(x, keys, "k_norm", heads)
        v = linear(x, self.weights, values).reshape(len(x), heads, -1)
        return Projected(raw, self._rotated(raw), v)

    def _heads(self, x: Array, name: str, norm: str, heads: int) -> Array:
        y = linear(x, self.weights, name).reshape(len(x), heads, -1)
        if self.config.qk_norm:
            y = rms_norm(y, self.weights[f"{norm}.weight"], self.config.rms_norm_eps)
        return y

    def _rotated(self, x: Array) -> Array:
        if self.config.positions != "rope":
            return x
        return np.stack(
            [np.stack([rotate(row, t, self.config) for row in rows]) for t, rows in enumerate(x)]
        )


def _norm(x: Array, weights: Weights, name: str, config: ModelConfig) -> Array:
    weight, eps = weights[f"{name}.weight"], config.rms_norm_eps
    if config.norm == "rms":
        return rms_norm(x, weight, eps)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt(variance + eps) * weight + weights[f"{name}.bias"])


def _mlp(x: Array, weights: Weights, config: ModelConfig) -> Array:
    up = linear(x, weights, "mlp.up_proj")
    if config.mlp == "plain":
        return linear(_activation(up, config.hidden_act), weights, "mlp.down_proj")
    gate = linear(x, weights, "mlp.gate_proj")
    return linear(_activation(gate, config.hidden_act) * up, weights, "mlp.down_proj")


def _activation(x: Array, name: str) -> Array:
    if name == "relu":
        return np.maximum(x, 0.0)
    if name == "gelu":
        return gelu(x)
    if name == "gelu_tanh":
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
        return np.asarray(0.5 * x * (1.0 + np.tanh(inner)))
    return np.asarray(x / (1.0 + np.exp(-x)))
