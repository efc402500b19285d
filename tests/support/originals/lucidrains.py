"""Transformers of lucidrains' library with random weights."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.parity import (
    write_checkpoint,
)


def _imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"native_sparse_attention_pytorch.{name}")


def networks() -> Any:
    """The module of compressors; skips the test where the library is not installed."""
    return _imported("compress_networks")


def library() -> Any:
    """The module of the transformer; skips the test where the library is not installed."""
    return _imported("transformer")


VOCAB, DIM, DEPTH, DIM_HEAD = 256, 32, 2, 16

Phi = tuple[Callable[[int, int], nn.Module | None], Any]
"""Made for a number of kv heads and a window's length; and what config.json says of it."""
PHIS: dict[str, Phi] = {
    "default": (lambda kv_heads, block: None, None),
    "conv": (
        lambda kv_heads, block: networks().ConvLinearCompress(kv_heads, DIM_HEAD, block),
        None,
    ),
    "attention_pool": (lambda kv_heads, block: networks().AttentionPool(DIM_HEAD, block), None),
    "grouped_mlp": (
        lambda kv_heads, block: networks().GroupedMLP(DIM_HEAD, block, kv_heads, 0.5),
        "GroupedMLP",
    ),
    "one_projection": (lambda kv_heads, block: networks().SingleProjection(DIM_HEAD, block), None),
    "projection_per_head": (
        lambda kv_heads, block: networks().SingleProjection(DIM_HEAD, block, kv_heads),
        "SingleProjection",
    ),
    "transformer": (
        lambda kv_heads, block: networks().CompressTransformer(2, kv_heads * DIM_HEAD, 4),
        {"type": "CompressTransformer", "num_layers": 2, "num_heads": 4},
    ),
}
SIZES: dict[str, dict[str, Any]] = {
    # l / d / l' / n / w, memory, query heads, kv heads
    "overlapping": {"sizes": (8, 4, 8, 2, 7), "memory": 1, "heads": (4, 2)},
    "no_overlap": {"sizes": (4, 4, 4, 3, 5), "memory": 2, "heads": (4, 4)},
    "wide_blocks": {"sizes": (8, 2, 16, 1, 16), "memory": 1, "heads": (4, 1)},
    "wide_slots": {"sizes": (16, 8, 16, 2, 20), "memory": 3, "heads": (6, 2)},
}


class Original:
    """A transformer of the library with random weights, and what its users would save of it."""

    def __init__(
        self, phi: Phi, *, sizes: tuple[int, ...], memory: int, heads: tuple[int, int]
    ) -> None:
        block, stride, select, selected, window = sizes
        attention: dict[str, Any] = {
            "sliding_window_size": window,
            "compress_block_size": block,
            "compress_block_sliding_stride": stride,
            "selection_block_size": select,
            "num_selected_blocks": selected,
            "num_compressed_mem_kv": memory,
        }
        arguments: dict[str, Any] = {
            "num_tokens": VOCAB,
            "dim": DIM,
            "depth": DEPTH,
            "dim_head": DIM_HEAD,
            "heads": heads[0],
            "kv_heads": heads[1],
            "ff_expansion_factor": 2.0,
            "use_sparse_attn": True,
        }
        make, described = phi
        with torch.random.fork_rng():
            torch.manual_seed(1)
            module = make(heads[1], block)
            self.model = library().Transformer(
                **arguments, sparse_attn_kwargs={**attention, "compress_mlp": module}
            )
            for name, parameter in self.model.named_parameters():
                if not name.endswith(("norm.weight", "freqs")):
                    parameter.data += 0.3 * torch.randn_like(parameter) / DIM**0.5
                if "memory" in name or "mem_kv" in name or "positions" in name:
                    parameter.data += torch.randn_like(parameter)
        described = {} if described is None else {"compress_mlp": described}
        self.config = {**arguments, "sparse_attn_kwargs": attention | described}

    def write(self, folder: Path) -> Path:
        """A folder with the state dict."""
        return write_checkpoint(folder, self.config, self.model.state_dict())

    def logits(self, tokens: list[int]) -> Tensor:
        """[T, vocab] by the library's full forward."""
        with torch.no_grad():
            logits: Tensor = self.model(torch.tensor([tokens]))[0]
        return logits
