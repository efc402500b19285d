"""Models of families that publish no checkpoint, under our names, written by hand in float64.

The paper: keys, values and what φ reads are projected apart for each branch; a vector for each
place is added before an MLP makes a slot of its tokens; sigmoid gates of an MLP for each head.
InfLLM-v2: means of rotated keys rank the blocks by the largest probability of a slot that overlaps
them, a query reads the chosen and its nearest blocks under one softmax, and all below `dense_len`.
devin and edifice: LayerNorm, a plain GELU MLP, three gates for a token by a softmax; the one has
learned positions and one MLP with GELU that compresses keys and values, the other means, gates that
are constant, and no positions. Both with the causal definition.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tests.support.by_hand import (
    Array,
    Branches,
    Choose,
    Score,
    State,
    exact_top,
    frequencies,
    gelu,
    heads_of,
    layer_norm,
    mean_slots,
    overlap_mass,
    rms_norm,
    rotate_halves,
    sigmoid,
    silu,
    softmax,
    windows,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Lengths in tokens, n in blocks."""

    num_layers: int
    head_dim: int
    eps: float
    l: int  # noqa: E741
    d: int
    select: int
    n: int
    window: int


def linear(x: Array, layer: State, name: str) -> Array:
    """x [T, in] through a layer [out, in] and its bias, if it has one."""
    out = x @ layer[f"{name}.weight"].T
    return np.asarray(out + layer[f"{name}.bias"] if f"{name}.bias" in layer else out)


def _layers(
    sizes: Sizes,
    state: State,
    x: Array,
    norm: Callable[[Array, State, str], Array],
    attention: Callable[[State, Array], Array],
    mlp: Callable[[Array, State], Array],
) -> Array:
    for i in range(sizes.num_layers):
        stem = f"model.layers.{i}."
        layer = {n.removeprefix(stem): w for n, w in state.items() if n.startswith(stem)}
        x = x + attention(layer, norm(x, layer, "input_layernorm"))
        x = x + mlp(norm(x, layer, "post_attention_layernorm"), layer)
    return norm(x, state, "model.norm") @ state["lm_head.weight"].T


def _compress(
    x: Array,
    slots: Sequence[range],
    places: Array,
    layer: State,
    name: str,
    between: Callable[[Array], Array],
) -> Array:
    """x [T, kv_heads, dim] → [S, kv_heads, dim] by two linear maps that all heads share, over
    windows with the vectors of the places [kv_heads, l, dim] added."""
    (w1, b1), (w2, b2) = (
        (layer[f"{name}.layers.{i}.weight"][0], layer[f"{name}.layers.{i}.bias"][0]) for i in (0, 1)
    )
    out = np.zeros((len(slots), *x.shape[1:]))
    for s, tokens in enumerate(slots):
        for head in range(x.shape[1]):
            window = x[list(tokens), head] + places[head]
            out[s, head] = between(window.reshape(-1) @ w1 + b1) @ w2 + b2
    return out


def paper(sizes: Sizes, state: State, tokens: list[int], *, theta: float, v_dim: int) -> Array:
    """[T, vocab]"""
    inverse, nsa = frequencies(sizes.head_dim, theta), "self_attn.nsa"

    def relu(x: Array) -> Array:
        return np.asarray(np.maximum(x, 0.0))

    def norm(x: Array, layer: State, name: str) -> Array:
        return rms_norm(x, layer[f"{name}.weight"], sizes.eps)

    def attention(layer: State, x: Array) -> Array:
        def project(name: str) -> Array:
            value = name.endswith(("v_proj", "v_window", "v_phi"))
            heads = heads_of(x, layer[f"{name}.weight"], v_dim if value else sizes.head_dim)
            return heads if value else rotate_halves(heads, range(len(x)), inverse)

        slots = windows(len(x), sizes.l, sizes.d)
        slot_k, slot_v = (
            _compress(
                project(f"{nsa}.{which}_phi"),
                slots,
                layer[f"{nsa}.{which}_positions"],
                layer,
                f"{nsa}.compress_{which}",
                relu,
            )
            for which in "kv"
        )
        outputs = Branches(
            q=project("self_attn.q_proj"),
            k=project("self_attn.k_proj"),
            v=project("self_attn.v_proj"),
            k_window=project(f"{nsa}.k_window"),
            v_window=project(f"{nsa}.v_window"),
            slot_k=slot_k,
            slot_v=slot_v,
            slots=slots,
            window=sizes.window,
            select_block=sizes.select,
            score=overlap_mass(slots, sizes.d, sizes.select),
            choose=exact_top(sizes.n, 1, 2),
        ).outputs()
        inner = silu(linear(x, layer, f"{nsa}.gates.hidden"))
        gates = sigmoid(linear(inner, layer, f"{nsa}.gates.out")).reshape(len(x), -1, 3)
        out = np.einsum("bthd,thb->thd", outputs, gates).reshape(len(x), -1)
        return linear(out, layer, "self_attn.o_proj")

    return _layers(
        sizes, state, state["model.embed_tokens.weight"][tokens], norm, attention, _swiglu
    )


def _swiglu(x: Array, layer: State) -> Array:
    inner = silu(linear(x, layer, "mlp.gate_proj")) * linear(x, layer, "mlp.up_proj")
    return linear(inner, layer, "mlp.down_proj")


def max_mass(slots: Sequence[range], select_block: int) -> Score:
    """The largest of the slots that overlap the block."""

    def score(mass: Mapping[int, float], block: int, t: int) -> float:
        start, end = block * select_block, (block + 1) * select_block
        return max((p for s, p in mass.items() if slots[s][0] < end and slots[s][-1] >= start),
                   default=0.0)  # fmt: skip

    return score


def infllm_v2(
    sizes: Sizes, state: State, tokens: list[int], *, theta: float, local: int, dense_len: int
) -> Array:
    """[T, vocab]"""
    inverse, best = frequencies(sizes.head_dim, theta), exact_top(sizes.n, 1, local)

    def choose(scores: Sequence[float], t: int) -> set[int]:
        return set(range(len(scores))) if t < dense_len else best(scores, t)

    def norm(x: Array, layer: State, name: str) -> Array:
        return rms_norm(x, layer[f"{name}.weight"], sizes.eps)

    def attention(layer: State, x: Array) -> Array:
        q, k, v = (heads_of(x, layer[f"self_attn.{n}_proj.weight"], sizes.head_dim) for n in "qkv")
        q, k = (rotate_halves(y, range(len(x)), inverse) for y in (q, k))
        slots = windows(len(x), sizes.l, sizes.d)
        means = mean_slots(k, slots), mean_slots(v, slots)
        score = max_mass(slots, sizes.select)
        outputs = _branches(sizes, (q, k, v), means, slots, score, choose).outputs()
        return linear(outputs[1].reshape(len(x), -1), layer, "self_attn.o_proj")

    return _layers(
        sizes, state, state["model.embed_tokens.weight"][tokens], norm, attention, _swiglu
    )


def devin(sizes: Sizes, state: State, tokens: list[int]) -> Array:
    """[T, vocab]"""

    nsa = "self_attn.nsa"

    def slots_of(layer: State, k: Array, v: Array, slots: Sequence[range]) -> tuple[Array, Array]:
        phi = layer, f"{nsa}.compress_k", gelu
        return (
            _compress(k, slots, layer[f"{nsa}.k_positions"], *phi),
            _compress(v, slots, layer[f"{nsa}.v_positions"], *phi),
        )

    def gates(layer: State, x: Array) -> Array:
        return softmax(linear(x, layer, f"{nsa}.gates.out"))

    embedded = state["model.embed_tokens.weight"][tokens]
    embedded = embedded + state["model.embed_positions.weight"][: len(tokens)]
    return _plain(sizes, state, embedded, slots_of, gates)


def edifice(sizes: Sizes, state: State, tokens: list[int]) -> Array:
    """[T, vocab]"""

    def slots_of(layer: State, k: Array, v: Array, slots: Sequence[range]) -> tuple[Array, Array]:
        return mean_slots(k, slots), mean_slots(v, slots)

    def gates(layer: State, x: Array) -> Array:
        return np.tile(softmax(layer["self_attn.nsa.gates.constant"]), (len(x), 1))

    return _plain(sizes, state, state["model.embed_tokens.weight"][tokens], slots_of, gates)


def _plain(
    sizes: Sizes,
    state: State,
    embedded: Array,
    slots_of: Callable[[State, Array, Array, Sequence[range]], tuple[Array, Array]],
    gates: Callable[[State, Array], Array],
) -> Array:
    """What devin and edifice have in common: no rotation, gates [T, 3] for all heads."""

    def norm(x: Array, layer: State, name: str) -> Array:
        return layer_norm(x, layer[f"{name}.weight"], layer[f"{name}.bias"], sizes.eps)

    def attention(layer: State, x: Array) -> Array:
        q, k, v = (
            linear(x, layer, f"self_attn.{name}_proj").reshape(len(x), -1, sizes.head_dim)
            for name in "qkv"
        )
        slots = windows(len(x), sizes.l, sizes.d)
        compressed = slots_of(layer, k, v, slots)
        score = overlap_mass(slots, sizes.d, sizes.select)
        choose = exact_top(sizes.n, 0, 1)
        outputs = _branches(sizes, (q, k, v), compressed, slots, score, choose).outputs()
        out = np.einsum("bthd,tb->thd", outputs, gates(layer, x)).reshape(len(x), -1)
        return linear(out, layer, "self_attn.o_proj")

    def mlp(x: Array, layer: State) -> Array:
        return linear(gelu(linear(x, layer, "mlp.up_proj")), layer, "mlp.down_proj")

    return _layers(sizes, state, embedded, norm, attention, mlp)


def _branches(
    sizes: Sizes,
    qkv: tuple[Array, Array, Array],
    compressed: tuple[Array, Array],
    slots: Sequence[range],
    score: Score,
    choose: Choose,
) -> Branches:
    q, k, v = qkv
    return Branches(
        q=q,
        k=k,
        v=v,
        k_window=k,
        v_window=v,
        slot_k=compressed[0],
        slot_v=compressed[1],
        slots=slots,
        window=sizes.window,
        select_block=sizes.select,
        score=score,
        choose=choose,
    )
