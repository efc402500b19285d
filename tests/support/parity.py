"""Holding a decoder to the logits that the original of its checkpoint gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from nsa_kernels.geometry import page_size_for
from nsa_serve.config import NSAConfig
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.model.loading.weights import load_decoder
from nsa_serve.model.loading.write import write_json
from nsa_serve.text.tokenizer import Tokenizer
from tests.support.paged import PagedModel, whole

BOUND = 1e-4
VOCAB = 256


def write_checkpoint(folder: Path, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    """A folder as the original's users would bring it, with a tokenizer of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors")
    Tokenizer.bytes_only().save(folder / "tokenizer.json")
    return folder


def load(folder: Path) -> Decoder:
    """The decoder of a folder, in float32."""
    return load_decoder(resolve_model(str(folder)))


def random_tokens(length: int, vocab: int = VOCAB, seed: int = 0) -> list[int]:
    """The same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (length,), generator=generator).tolist()


def border_lengths(nsa: NSAConfig, limit: int) -> list[int]:
    """Lengths at which a stride, a compressed block, a selection block, the selection's number of
    blocks or the window ends, begins or is passed, up to a limit."""
    marks = {
        nsa.compress_stride,
        nsa.compress_block,
        nsa.select_block,
        nsa.window,
        nsa.select_block * nsa.num_selected,
        nsa.select_block * (nsa.num_selected + 1),
    }
    lengths = {1, limit, *(mark + shift for mark in marks for shift in (-1, 0, 1))}
    return sorted(length for length in lengths if 1 <= length <= limit)


def assert_equal(found: Tensor, expected: Any) -> None:
    """Within the bound, of logits whose largest is taken as one."""
    truth = np.asarray(expected, np.float64)
    error = np.abs(found.double().numpy() - truth).max() / np.abs(truth).max()
    assert error <= BOUND, f"off by {error:.1e} of the largest logit"


def assert_parity(decoder: Decoder, tokens: Sequence[int], expected: Any) -> None:
    """The definition, prefill in chunks of several lengths and token-by-token decoding over pages
    all give the logits [T, vocab] that the original gives."""
    nsa = decoder.config.nsa
    assert nsa is not None
    assert_equal(whole(decoder, tokens), expected)
    page = page_size_for(nsa.select_block, nsa.compress_stride, 1)
    num_pages = -(-len(tokens) // page) + 1
    for chunk in sorted({1, nsa.compress_stride + 1, nsa.select_block, len(tokens)}):
        model = PagedModel(decoder, page, num_pages)
        assert_equal(model.run(tokens, [chunk] * len(tokens)), expected)
