"""Tiny model folders in our own format, complete enough to be served."""

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.loading.write import write_config, write_json
from nsa_serve.text.tokenizer import CHATML, Tokenizer

BYTE_VOCAB = 259
"""Of `Tokenizer.byte_level()`."""

TINY_NSA = NSAConfig(
    compress_block=4,
    compress_stride=2,
    select_block=4,
    num_selected=4,
    window=8,
    compressor="mean",
    branch_kv="shared",
    intra_block_positions="none",
)
TINY = ModelConfig(
    vocab_size=BYTE_VOCAB,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=24,
    max_position_embeddings=256,
    nsa=TINY_NSA,
)


def write_tiny_folder(folder: Path, config: ModelConfig = TINY) -> Path:
    """A folder with random weights and the byte tokenizer; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    Tokenizer.byte_level().save(folder / "tokenizer.json")
    write_json(
        folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", "chat_template": CHATML}
    )
    write_json(folder / "generation_config.json", {"eos_token_id": [256, 258]})
    torch.manual_seed(0)
    save_file(dict(Decoder(config).state_dict()), folder / "model.safetensors")
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level fields of a JSON file; the value `...` removes a field."""
    fields = {**msgspec.json.decode(path.read_bytes()), **changes}
    write_json(path, {name: value for name, value in fields.items() if value is not ...})
