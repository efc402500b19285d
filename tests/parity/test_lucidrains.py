"""A model of lucidrains' library loads from its state dict and gives the library's own logits."""

from pathlib import Path

import pytest

from tests.support.originals.lucidrains import PHIS, SIZES, Original
from tests.support.parity import Parity, load, random_tokens

LENGTH = 77
OTHER_SIZES = [name for name in SIZES if name != "overlapping"]


def check(parity: Parity, folder: Path, phi: str, sizes: str, *, borders: bool) -> None:
    """The library treats sequences that end within a block specially: where `borders`, ends at
    all of them. Its convolution cannot run before a stride is complete."""
    original = Original(PHIS[phi], **SIZES[sizes])
    decoder, tokens = load(original.write(folder)), random_tokens(LENGTH)
    shortest = SIZES[sizes]["sizes"][1] if phi == "conv" else 1
    parity.check("lucidrains", decoder, tokens, original.logits, borders=borders, shortest=shortest)


@pytest.mark.parametrize("phi", PHIS)
def test_every_compressor_gives_the_librarys_logits(
    phi: str, tmp_path: Path, parity: Parity
) -> None:
    check(parity, tmp_path, phi, "overlapping", borders=phi == "default")


@pytest.mark.parametrize("sizes", OTHER_SIZES)
def test_every_size_gives_the_librarys_logits(sizes: str, tmp_path: Path, parity: Parity) -> None:
    check(parity, tmp_path, "grouped_mlp", sizes, borders=True)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("phi", PHIS)
def test_every_compressor_in_every_size_at_every_border(
    phi: str, sizes: str, tmp_path: Path, parity: Parity
) -> None:
    check(parity, tmp_path, phi, sizes, borders=True)
