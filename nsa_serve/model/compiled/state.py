"""What a compiled step is given: named tuples of arrays, which numba knows how to take apart."""

from typing import NamedTuple

from nsa_serve.model.compiled.jit import Bytes, Floats, Indices
from nsa_serve.model.compiled.products import Product


class Sizes(NamedTuple):
    """Of a model."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    interleaved: int
    num_gates: int
    """Triples of gates that a layer computes from its input; 0 where they are fixed."""
    gates: tuple[float, float, float]
    """Where they are fixed."""
    eps: float
    """Of the norms."""
    scale: float
    """Of attention's scores."""
    sparse: bool
    """Whether layers are NSA."""
    by_tiles: bool
    """Whether tokens are attended by AMX."""


class SparseRule(NamedTuple):
    """The dialect, as `SparseSpec` names it."""

    compress_block: int
    compress_stride: int
    select_block: int
    num_selected: int
    window: int
    first_slot: int
    strict: int
    init_blocks: int
    local_blocks: int
    dense_len: int
    use_compressed: int
    use_selected: int
    use_window: int


class Weights(NamedTuple):
    """Of a model."""

    norms: Floats
    """[2 · layers + 1, hidden]: before attention and before the MLP of each layer, then the last"""
    qkv: Product
    """Queries, keys, values, and gates where the layer has them."""
    output: Product
    gate_up: Product
    """16 outputs of the gate and the same 16 of what it weighs, in turn."""
    down: Product


class Caches(NamedTuple):
    """Of all layers."""

    addresses: Indices
    """[layers, 4]: where keys, values and their slots begin"""
    k: Floats
    """One layer's: they tell the shape of all."""
    v: Floats
    k_slots: Floats
    v_slots: Floats


class Rows(NamedTuple):
    """T rows of a step, each a token at a position."""

    positions: Indices
    tiles: Indices
    """[tiles, 3]: rows of one sequence that are attended together: the first row, how many, and
    the row of `pages`"""
    blocks: Indices
    """[blocks, 3]: the keys and values that many tiles read and that are made planes of once: the
    row of `pages`, the first entry and how many"""
    blocks_at: Indices
    """[sequences]: where a sequence's blocks begin in `blocks`, or -1"""
    in_order: int
    """Whether rows need the keys of others, as those of a chunk do."""
    pages: Indices
    """[sequences, W]"""
    rotations: Floats
    """[2, T, head_dim]: cos, and sin with the signs in it"""
    x: Floats
    """[T, hidden]: embeddings; changed."""
    hidden: Floats
    """[T, hidden]: receives the last states, normed."""


class Shared(NamedTuple):
    """What the team hands on."""

    counter: Indices
    """[1] how often anyone has met anyone; it only grows"""
    met: int
    """The counter at the start of the step."""
    taken: Indices
    """[3 · layers]: how many pieces of a phase are taken, zero at first: parts of the rows before
    attention, tiles, parts of the rows behind it"""
    qkv: Floats
    attended: Floats
    inner: Floats
    """[T, …] what products and attention make"""
    k_planes: Bytes
    v_planes: Bytes
    """[kv_heads, blocks, bytes]"""
