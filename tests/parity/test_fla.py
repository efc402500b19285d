"""A checkpoint of flash-linear-attention gives what fla's own naive reference gives."""

from pathlib import Path

import pytest

from tests.support.originals.fla import HEAD_DIM, SIZES, original_logits, write_random
from tests.support.parity import Parity, load, random_tokens


@pytest.mark.parametrize("sizes", SIZES)
def test_it_gives_the_logits_of_flas_reference(sizes: str, tmp_path: Path, parity: Parity) -> None:
    config, state = write_random(tmp_path, SIZES[sizes])
    tokens = random_tokens(config["block_size"] * (config["block_counts"] + 4) + 5)
    parity.check("fla", load(tmp_path), tokens, lambda begun: original_logits(config, state, begun))


def test_the_heads_are_as_wide_as_they_are_stored(tmp_path: Path) -> None:
    """fla's model leaves `head_dim` out when it builds its layers."""
    write_random(tmp_path, SIZES["small"], head_dim=32)
    assert load(tmp_path).config.head_dim == HEAD_DIM
