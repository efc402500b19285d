"""Which implementation of a stage runs where. The reference runs everywhere."""

from nsa_kernels.paged.reference import Queries, dense_attention, sparse_attention
from nsa_kernels.write.reference import compress_slots, write_tokens

__all__ = ["Queries", "compress_slots", "dense_attention", "sparse_attention", "write_tokens"]
