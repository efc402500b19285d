"""Shapes of known models, served with random weights: to measure speed without a download.

`random:1b` and `random:8b` stand in the place of a model folder. The shapes are Llama 3.2 1B's and
Llama 3.1 8B's. Their attention has the paper's lengths and one K/V projection for all branches, so
that the dense twin (`attention="dense"`) stores the same keys and values. Imports no torch.
"""

from pathlib import Path

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.errors import ConfigError
from nsa_serve.model.loading.folder import ModelFolder, resolve_model
from nsa_serve.model.loading.generation import GenerationDefaults

PREFIX = "random:"
_DIALECT = NSAConfig(compressor="mean", intra_block_positions="none", branch_kv="shared")
SHAPES = {
    "1b": ModelConfig(
        vocab_size=128_256,
        hidden_size=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        intermediate_size=8192,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        tie_word_embeddings=True,
        nsa=_DIALECT,
    ),
    "8b": ModelConfig(
        vocab_size=128_256,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14_336,
        max_position_embeddings=131_072,
        rope_theta=500_000.0,
        nsa=_DIALECT,
    ),
}


def is_random(model: str | None) -> bool:
    """Whether a model is named by its shape alone."""
    return model is not None and model.startswith(PREFIX)


def find_model(model: str | None) -> ModelFolder:
    """What `resolve_model` gives, or the model of a shape, whose folder does not exist."""
    if model is None or not is_random(model):
        return resolve_model(model)
    config = SHAPES.get(model.removeprefix(PREFIX))
    if config is None:
        known = ", ".join(PREFIX + name for name in SHAPES)
        raise ConfigError(f"model {model}: no such shape, expected one of: {known}")
    return ModelFolder(Path(model), model, config, GenerationDefaults())
