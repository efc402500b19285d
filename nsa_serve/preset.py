"""What a preset is: an architecture by name, and what training it begins with. Imports no torch."""

from typing import Any

import msgspec

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ConfigError

_SMALL: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 128,
    "num_layers": 2,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 16,
    "v_head_dim": 0,
    "intermediate_size": 256,
    "max_position_embeddings": 1024,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}


class TrainingDefaults(msgspec.Struct, frozen=True, kw_only=True):
    """What training begins with unless it is told otherwise."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    batch_size: int = 16
    """Sequences of one step."""
    sequence_length: int = 256
    """Tokens of one sequence."""
    dropout: float = 0.0
    warmup: int = 20
    """Steps over which the learning rate rises."""
    grad_clip: float = 1.0


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """An architecture."""

    name: str
    summary: str
    config: ModelConfig
    small: dict[str, Any]
    """Changes that make it a model of two layers that a CPU trains in minutes; those of `nsa` are
    nested."""
    recommended_defaults: TrainingDefaults = TrainingDefaults()

    @property
    def small_config(self) -> ModelConfig:
        """The same architecture, small, for bytes."""
        return changed(self.config, {**_SMALL, **self.small})


def changed(config: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """The configuration with some fields replaced; those under `nsa` in its NSA section. Raises
    ConfigError where a field is not known or a value not possible."""
    fields = msgspec.to_builtins(config)
    own = {name: value for name, value in changes.items() if name != "nsa"}
    nsa = changes.get("nsa")
    if nsa is not None:
        own["nsa"] = {**(fields["nsa"] or {}), **nsa}
    try:
        return msgspec.convert({**fields, **own}, ModelConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
