"""Layers and worlds to ask the token oracle about."""

from dataclasses import replace

import torch

from nsa_kernels.spec import SparseSpec
from tests.support.oracle.layer import OracleShape
from tests.support.specs import paper_spec

SPEC = SparseSpec(
    compress_block=8,
    compress_stride=4,
    select_block=8,
    num_selected=4,
    window=10,
    first_slot=1,
    init_blocks=1,
    local_blocks=1,
)
STRICT = replace(SPEC, strict=True)
WITHOUT_OVERLAP = replace(
    SPEC, compress_stride=8, first_slot=0, num_selected=2, init_blocks=0, local_blocks=0
)
TINY = OracleShape(
    spec=SPEC, group=8, num_pages=10, max_len=64, max_output=6, max_seqs=4, budget=32
)
"""The interpreter takes long for a step: sequences that end soon, and few pages. It
multiplies no bfloat16."""
SHAPES = {
    "shared": TINY,
    "independent": replace(
        TINY,
        spec=STRICT,
        group=4,
        independent=True,
        raw_phi=True,
        weighted=True,
        interleaved=True,
        dtype=torch.float16,
    ),
    "raw keys for φ": replace(TINY, raw_phi=True, dtype=torch.float16),
    "learned": replace(TINY, learned=True, independent=True),
    "without overlap": replace(TINY, spec=WITHOUT_OVERLAP, group=1, kv_heads=3),
    "long pages": replace(
        TINY,
        spec=replace(SPEC, compress_block=16, select_block=16, window=5, first_slot=3),
        value_dim=64,
        head_dim=48,
        page_size=32,
        group=3,
        max_len=120,
    ),
}

GPU = OracleShape(
    spec=paper_spec(),
    kv_heads=4,
    group=16,
    head_dim=128,
    value_dim=128,
    page_size=64,
    dtype=torch.bfloat16,
    num_pages=700,
    max_len=4_000,
    max_output=500,
    max_seqs=16,
    budget=512,
)
LARGE = {
    "chunks": replace(GPU, max_len=12_000, max_output=256, budget=1024),
    "rows": replace(GPU, max_len=3_000, max_output=1_500, max_seqs=48, budget=1024),
    "three heads a group": replace(
        GPU,
        spec=paper_spec(compress_block=16, compress_stride=8, num_selected=5, strict=True),
        kv_heads=3,
        group=3,
        head_dim=64,
        value_dim=64,
        max_output=1_000,
        raw_phi=True,
        max_seqs=40,
        budget=2048,
    ),
}
"""Worlds of real sizes, for a GPU."""
