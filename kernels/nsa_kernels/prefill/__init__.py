"""Triton kernels for chunks of consecutive queries, each with its history in the paged caches.

`layer.sparse_prefill` is the three branches of a whole layer, `dense.dense_prefill` causal
attention over all keys. The stages, in the order in which they run:

* `gather`: the compressed slots of each chunk's sequence, made contiguous;
* `flash`: compressed, window and (for the first queries of a sequence) dense attention;
* `scores`: the importance of every block, from the slots' logits once more;
* `select`: the exact top n of each query, and the union of a tile's choices as a list;
* `selected`: attention of a tile of neighbouring queries over its list.
"""
