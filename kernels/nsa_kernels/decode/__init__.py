"""Triton kernels for single queries: three branches over paged caches, in four launches.

1. `compressed`: attention over the compressed slots in splits, with the mass of every block.
2. `select`: scores of the blocks and their exact top n.
3. `attend`: attention over the selected blocks and over the window, in splits.
4. `merge`: the splits of every branch put together and gated.

On GPUs that can, a launch starts before the one before it has ended, and waits for its results
only where it needs them.

How much work one split is depends on a row's own context alone, so no result depends on the batch.
"""

from nsa_kernels.decode.dense import dense_decode
from nsa_kernels.decode.layer import chosen_blocks, sparse_decode
from nsa_kernels.decode.plan import TUNING, SplitRule, Tuning

__all__ = ["TUNING", "SplitRule", "Tuning", "chosen_blocks", "dense_decode", "sparse_decode"]
