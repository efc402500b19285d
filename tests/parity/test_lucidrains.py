"""A model of lucidrains' library loads from its state dict and gives the library's own logits."""

from pathlib import Path

import pytest

from tests.support.originals.lucidrains import PHIS, SIZES, Original
from tests.support.paged import whole
from tests.support.parity import assert_equal, assert_parity, border_lengths, load, random_tokens

LENGTH = 77


@pytest.mark.parametrize("phi", PHIS)
def test_every_compressor_gives_the_librarys_logits(phi: str, tmp_path: Path) -> None:
    original = Original(PHIS[phi], **SIZES["overlapping"])
    tokens = random_tokens(LENGTH)
    assert_parity(load(original.write(tmp_path)), tokens, original.logits(tokens))


@pytest.mark.parametrize("sizes", [name for name in SIZES if name != "overlapping"])
@pytest.mark.parametrize("phi", ["default", "grouped_mlp"])
def test_every_size_gives_the_librarys_logits(phi: str, sizes: str, tmp_path: Path) -> None:
    original = Original(PHIS[phi], **SIZES[sizes])
    tokens = random_tokens(LENGTH)
    assert_parity(load(original.write(tmp_path)), tokens, original.logits(tokens))


@pytest.mark.parametrize("sizes", SIZES)
def test_lengths_at_every_border_give_the_librarys_logits(sizes: str, tmp_path: Path) -> None:
    """The library treats sequences that end within a block specially."""
    original = Original(PHIS["default"], **SIZES[sizes])
    decoder = load(original.write(tmp_path))
    nsa = decoder.config.nsa
    assert nsa is not None
    for length in border_lengths(nsa, LENGTH):
        tokens = random_tokens(length, seed=length)
        assert_equal(whole(decoder, tokens), original.logits(tokens))
