"""Native Sparse Attention from its written definition, in float64, one query at a time.

For families whose original is in no package: what a family does differently is an argument. Nothing
here is imported from what it checks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
State = dict[str, Array]

Choose = Callable[[Sequence[float], int], set[int]]
"""From the scores of blocks 0 to the query's own, and the query's position, the blocks it reads."""
Score = Callable[[Mapping[int, float], int, int], float]
"""From what each visible slot (by number, from the first that exists) has of the group's
probability, the block's number and the query's position, the importance of the block."""


def randoms(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> State:
    """Random numbers under the names: vectors of norms around one, other tensors of a deviation
    that keeps products with a vector in size."""
    rng = np.random.default_rng(seed)
    state: State = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape)
        if "norm" in name and name.endswith("weight"):
            state[name] = 1.0 + 0.3 * noise
        elif "emb" in name:
            state[name] = noise
        else:
            state[name] = noise / math.sqrt(shape[-1]) if len(shape) > 1 else 0.3 * noise
        state[name] = state[name].astype(np.float32).astype(np.float64)  # as a file can hold it
    return state


def softmax(x: Array) -> Array:
    """Over the last dimension."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def sigmoid(x: Array) -> Array:
    """1 / (1 + e⁻ˣ)"""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def silu(x: Array) -> Array:
    """x · sigmoid(x)"""
    return x * sigmoid(x)


def gelu(x: Array) -> Array:
    """The exact one."""
    return np.asarray(0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0))))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / rms(x) · weight"""
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """(x − mean(x)) / deviation(x) · weight + bias"""
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred * centred).mean(-1, keepdims=True) + eps)
    return np.asarray(centred / deviation * weight + bias)


def frequencies(dim: int, theta: float) -> Array:
    """Angle per position of each pair of channels."""
    return np.array([theta ** (-2.0 * i / dim) for i in range(dim // 2)])


def llama3(plain: Array, factor: float, low: float, high: float, length: int) -> Array:
    """Frequencies stretched as Llama 3.1 was published: by the length of their waves."""
    out = []
    for frequency in plain:
        wave = 2.0 * math.pi / frequency
        smooth = min(max((length / wave - low) / (high - low), 0.0), 1.0)
        out.append((1.0 - smooth) * frequency / factor + smooth * frequency)
    return np.array(out)


def rotate_halves(x: Array, positions: Sequence[int], inverse: Array) -> Array:
    """x [N, heads, dim]: channel i and channel i + dim / 2 turn together."""
    angles = np.outer(np.asarray(positions, np.float64), inverse)[:, None]
    a, b = np.split(x, 2, -1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def rotate_pairs(x: Array, positions: Sequence[int], inverse: Array) -> Array:
    """x [N, heads, dim]: channels 2i and 2i + 1 turn together."""
    angles = np.outer(np.asarray(positions, np.float64), inverse)[:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def attend(q: Array, keys: Array, values: Array) -> Array:
    """Softmax attention of one query [D] over keys [N, D]; zeros where there is none."""
    if not len(keys):
        return np.zeros(values.shape[-1])
    return np.asarray(softmax(keys @ q / math.sqrt(len(q))) @ values)


def windows(length: int, block: int, stride: int) -> list[range]:
    """The tokens of each slot that completes within a sequence and starts within it."""
    ends = range(stride, length + 1, stride)
    return [range(end - block, end) for end in ends if end >= block]


def overlap_mass(slots: Sequence[range], stride: int, select_block: int) -> Score:
    """Each slot counts once for every stride of it that lies in the block."""

    def score(mass: Mapping[int, float], block: int, t: int) -> float:
        return sum(
            p
            for s, p in mass.items()
            for start in slots[s][::stride]
            if start // select_block == block
        )

    return score


def exact_top(n: int, init: int, local: int, *, counted: bool = True) -> Choose:
    """The forced blocks, and the best of the others; the lower number on a tie."""

    def choose(scores: Sequence[float], t: int) -> set[int]:
        current = len(scores) - 1
        forced = {j for j in range(len(scores)) if j < init or current - j < local}
        others = sorted(set(range(len(scores))) - forced, key=lambda j: (-scores[j], j))
        return forced | set(others[: max(n - len(forced), 0) if counted else n])

    return choose


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """What one layer attends with; heads are [T, heads, dim], slots [S, kv_heads, dim]."""

    q: Array
    k: Array
    v: Array
    k_window: Array
    v_window: Array
    slot_k: Array
    slot_v: Array
    slots: Sequence[range]
    window: int
    """Keys, the query's own included."""
    select_block: int
    score: Score
    choose: Choose

    def outputs(self) -> Array:
        """[3, T, H, Dv]: compressed, selected, window."""
        t_all, heads, _ = self.q.shape
        out = np.zeros((3, t_all, heads, self.v.shape[-1]))
        for t in range(t_all):
            for head in range(self.k.shape[1]):
                self._query(out, t, head)
        return out

    def _query(self, out: Array, t: int, head: int) -> None:
        group = self.q.shape[1] // self.k.shape[1]
        queries = range(head * group, (head + 1) * group)
        seen = [s for s, tokens in enumerate(self.slots) if tokens[-1] <= t]
        mass = dict.fromkeys(seen, 0.0)
        for h in queries:
            out[0, t, h] = attend(self.q[t, h], self.slot_k[seen, head], self.slot_v[seen, head])
            if seen:
                logits = self.slot_k[seen, head] @ self.q[t, h] / math.sqrt(self.q.shape[-1])
                for s, p in zip(seen, softmax(logits), strict=True):
                    mass[s] += float(p)
        blocks = t // self.select_block + 1
        chosen = self.choose([self.score(mass, j, t) for j in range(blocks)], t)
        keys = [i for i in range(t + 1) if i // self.select_block in chosen]
        near = list(range(max(t - self.window + 1, 0), t + 1))
        for h in queries:
            out[1, t, h] = attend(self.q[t, h], self.k[keys, head], self.v[keys, head])
            out[2, t, h] = attend(
                self.q[t, h], self.k_window[near, head], self.v_window[near, head]
            )


def mean_slots(x: Array, slots: Sequence[range]) -> Array:
    """x [T, kv_heads, dim] → [S, kv_heads, dim]"""
    if not slots:
        return np.zeros((0, *x.shape[1:]))
    return np.stack([x[list(tokens)].mean(0) for tokens in slots])


def heads_of(x: Array, matrix: Array, dim: int) -> Array:
    """x [T, hidden] through [heads · dim, hidden] → [T, heads, dim]"""
    return (x @ matrix.T).reshape(len(x), -1, dim)


def to_torch(state: State) -> Any:
    """The same numbers as float32 tensors."""
    import torch

    return {name: torch.from_numpy(value).float() for name, value in state.items()}
