"""Everything that decides what a training run computes, frozen. Imports no torch."""

from typing import Literal

import msgspec

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ConfigError

TaskName = Literal["sequence", "text"]
TrainDType = Literal["float32", "bfloat16"]


class TrainSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A run. It is stored in every checkpoint, and resuming takes it from there."""

    model: ModelConfig
    task: TaskName
    data: tuple[str, ...] = ()
    """Files of the text task."""
    tokenizer: str | None = None
    """Folder with a tokenizer.json for the text task; None is one token a byte."""
    steps: int
    batch_size: int
    """Sequences of one step."""
    sequence_length: int
    """Tokens of a sequence that are predicted from, for the text task; of all, for sequences."""
    learning_rate: float
    warmup: int = 20
    """Steps over which the learning rate rises to its highest; then it falls as a cosine."""
    final_learning_rate: float = 0.1
    """Share of the learning rate that is left at the end."""
    weight_decay: float = 0.1
    """On matrices."""
    grad_clip: float = 1.0
    """Largest norm of a step's gradient; 0 is none."""
    dropout: float = 0.0
    differentiable_selection: bool = False
    dtype: TrainDType = "float32"
    """Of the products; weights and sums are float32."""
    seed: int = 0
    checkpoint_every: int = 500
    evaluate_every: int = 500
    log_every: int = 10

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_size", "checkpoint_every", "evaluate_every", "log_every",
        ):  # fmt: skip
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        _require(0 <= self.seed < 2**63, "seed must be in [0, 2^63)")
        _require(self.sequence_length >= 2, "sequence_length must be at least 2")
        _require(0.0 < self.learning_rate <= 100.0, "learning_rate must be in (0, 100]")
        _require(0.0 <= self.final_learning_rate <= 1.0, "final_learning_rate must be in [0, 1]")
        _require(0.0 <= self.dropout < 1.0, "dropout must be in [0, 1)")
        for name in ("warmup", "weight_decay", "grad_clip"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative")
        limit = self.model.max_position_embeddings
        _require(
            self.sequence_length <= limit,
            f"sequence_length {self.sequence_length} exceeds the model's {limit} positions",
        )
        _require(self.task == "sequence" or bool(self.data), "the text task needs a data file")
        _require(
            self.task == "text" or not (self.data or self.tokenizer),
            "the sequence task takes neither data nor a tokenizer",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
