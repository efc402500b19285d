"""What attention must read and multiply at least, so what a machine could do at best.

Bytes are those of the keys and values that each branch reads, every one once per sequence; queries
and outputs are left out, they are less than a hundredth of it. Where the window and the selected
blocks overlap a kernel may read them once, and be a little below.
"""

from dataclasses import dataclass

from nsa_kernels.spec import SparseSpec
from nsa_serve.bench.shapes import HeadShape


@dataclass(frozen=True, slots=True)
class Work:
    """Of one layer."""

    num_bytes: int
    flops: int

    def seconds(self, bytes_per_second: float, flops_per_second: float) -> float:
        """The longer of reading and multiplying."""
        return max(self.num_bytes / bytes_per_second, self.flops / flops_per_second)


def decode_work(
    spec: SparseSpec, heads: HeadShape, batch: int, context: int, itemsize: int
) -> Work:
    """One NSA decode step of `batch` sequences of `context` tokens, the newest included."""
    return _work(heads, batch * _entries(spec, context), batch * _entries(spec, context), itemsize)


def dense_decode_work(heads: HeadShape, batch: int, context: int, itemsize: int) -> Work:
    """One dense decode step."""
    return _work(heads, batch * context, batch * context, itemsize)


def prefill_work(spec: SparseSpec, heads: HeadShape, tokens: int, itemsize: int) -> Work:
    """NSA over a whole prompt: the multiplications of every query, and each key read once."""
    slots = spec.num_slots(tokens)
    pairs = sum(_entries(spec, context) for context in range(1, tokens + 1))
    return _work(heads, tokens + slots, pairs, itemsize)


def dense_prefill_work(heads: HeadShape, tokens: int, itemsize: int) -> Work:
    """Dense causal attention over a whole prompt."""
    return _work(heads, tokens, tokens * (tokens + 1) // 2, itemsize)


def _entries(spec: SparseSpec, context: int) -> int:
    """Keys of all three branches that the query of the newest of `context` tokens sees."""
    slots = max(spec.num_slots(context) - spec.first_slot, 0)
    if spec.selects_all(context - 1):
        selected = context
    else:
        selected = min(context, spec.num_selected * spec.select_block)
    return slots + selected + min(context, spec.window)


def _work(heads: HeadShape, read: int, pairs: int, itemsize: int) -> Work:
    """`read`: entries read per kv head; `pairs`: (query, key) pairs per query head."""
    width = heads.head_dim + heads.value_dim
    return Work(read * heads.num_kv_heads * width * itemsize, 2 * pairs * heads.num_heads * width)
