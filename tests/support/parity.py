"""Holding a decoder to the logits that the original of its checkpoint gives."""

from collections.abc import Callable
from dataclasses import dataclass
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
Logits = Callable[[list[int]], Any]
"""Of a sequence, [T, vocab], as an original has them."""


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


def prefixes(logits: Any) -> Logits:
    """An original whose logits [T, vocab] are known, and do not depend on what comes after."""
    return lambda tokens: logits[: len(tokens)]


@dataclass(frozen=True, slots=True)
class Parity:
    """Holds decoders to their originals: the largest absolute difference of any logit, all in
    float32 on our side, is at most 1e-4."""

    record: Callable[[str, object], None]
    """Called with a family and the largest difference there was."""

    def check(
        self,
        family: str,
        decoder: Decoder,
        tokens: list[int],
        original: Logits,
        *,
        borders: bool = True,
        shortest: int = 1,
    ) -> None:
        """The definition, prefill in chunks of several lengths and token-by-token decoding over
        pages all give the logits that the original gives: for all tokens and, where `borders`, for
        as many as reach each border; `shortest` is what the original can run."""
        nsa = nsa_of(decoder)
        one_by_one = in_chunks(decoder, tokens, 1)
        chunks = sorted({nsa.compress_stride + 1, nsa.select_block, len(tokens)})
        found = [whole(decoder, tokens), *(in_chunks(decoder, tokens, chunk) for chunk in chunks)]
        self._hold(family, [one_by_one, *found], original(tokens))
        lengths = border_lengths(nsa, len(tokens) - 1) if borders else []
        for length in (length for length in lengths if length >= shortest):
            begun = tokens[:length]
            halves = in_chunks(decoder, begun, -(-length // 2))
            found = [whole(decoder, begun), one_by_one[:length], halves]
            self._hold(family, found, original(begun), f"{length} tokens: ")

    def _hold(self, family: str, found: list[Tensor], expected: Any, where: str = "") -> None:
        truth = np.asarray(expected, np.float64)
        differences = [np.abs(logits.double().numpy() - truth).max() for logits in found]
        worst = float(np.max(differences))  # NaN if any is
        self.record(family, worst)
        assert worst <= BOUND, f"{where}off by {worst:.1e}"


def nsa_of(decoder: Decoder) -> NSAConfig:
    """Of a decoder that has one."""
    nsa = decoder.config.nsa
    assert nsa is not None
    return nsa


def in_chunks(decoder: Decoder, tokens: list[int], chunk: int) -> Tensor:
    """Logits [T, vocab] computed over pages, so many tokens at a time."""
    nsa = nsa_of(decoder)
    page = page_size_for(nsa.select_block, nsa.compress_stride, 1)
    model = PagedModel(decoder, page, -(-len(tokens) // page) + 1)
    return model.run(tokens, [chunk] * len(tokens))
