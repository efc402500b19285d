"""Training runs of seconds."""

from pathlib import Path
from typing import Any

import torch

from nsa_serve.config import ModelConfig
from nsa_serve.preset import changed
from nsa_serve.presets import PRESETS
from nsa_serve.train.settings import TaskName, TrainSettings
from nsa_serve.train.trainer import Trainer

CPU = torch.device("cpu")
_SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "intermediate_size": 24,
}  # fmt: skip
_TEXT = b"The sum of the two before it, and of the two before that. " * 40


def tiny_model(task: TaskName, **changes: Any) -> ModelConfig:
    """Two layers that a step takes milliseconds for."""
    small = PRESETS["xunhao"].small_config
    vocab = {"sequence": 10, "text": 259}[task]
    return changed(small, {**_SIZES, "vocab_size": vocab, **changes})


def tiny_settings(folder: Path, task: TaskName, **changes: Any) -> TrainSettings:
    """Eight steps; the text is written into `folder`."""
    data: tuple[str, ...] = ()
    if task == "text":
        (folder / "text.txt").write_bytes(_TEXT)
        data = (str(folder / "text.txt"),)
    fields = {
        "model": tiny_model(task), "task": task, "data": data, "steps": 8, "warmup": 2,
        "batch_size": 4, "sequence_length": 24, "learning_rate": 1e-2, "dropout": 0.1,
        "checkpoint_every": 3, "evaluate_every": 4, "log_every": 2,
    }  # fmt: skip
    return TrainSettings(**{**fields, **changes})


def train(folder: Path, settings: TrainSettings | None, until: int | None = None) -> Trainer:
    """Train on the CPU, or resume without settings."""
    trainer = Trainer(folder, settings, CPU)
    trainer.run(until)
    return trainer
