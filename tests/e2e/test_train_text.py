"""A model of every family, trained on the bytes of a text, gives the likelihoods in the engine
that it gave in training."""

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nsa_serve import LLM
from nsa_serve.preset import changed
from nsa_serve.presets import PRESETS
from nsa_serve.train.settings import TrainSettings
from nsa_serve.train.trainer import Trainer
from tests.support.training import CPU

TEXT = Path(__file__).parents[2] / "benchmarks" / "data" / "moby_dick.txt"
SECONDS = 60.0
LENGTH = 256
TOLERANCE = 1e-4
FAMILIES = pytest.mark.parametrize("family", PRESETS)


def settings_for(family: str, steps: int, batch_size: int) -> TrainSettings:
    preset = PRESETS[family]
    defaults = preset.recommended_defaults
    return TrainSettings(
        model=changed(preset.small_config, {"vocab_size": 259}),
        task="text",
        data=(str(TEXT),),
        steps=steps,
        batch_size=batch_size,
        sequence_length=LENGTH,
        learning_rate=defaults.learning_rate,
        weight_decay=defaults.weight_decay,
        dropout=defaults.dropout,
        checkpoint_every=10_000,
        evaluate_every=10_000,
    )


def log_likelihoods(trainer: Trainer, tokens: Tensor) -> Tensor:
    """Of every token after the first, by the training code."""
    trainer.model.eval()
    with torch.no_grad():
        log_probs = trainer.model(tokens[None, :-1])[0].log_softmax(-1)
    return log_probs.gather(-1, tokens[1:, None])[:, 0]


def worst_difference(folder: Path, trainer: Trainer, lengths: tuple[int, ...]) -> float:
    """Between log-likelihoods served and trained, over held-out texts of these lengths."""
    llm = LLM(str(folder), device="cpu", dtype="float32", num_threads=1, num_pages=64)
    held_out = torch.cat([batch.flatten() for batch in trainer.task.validation()])
    worst = 0.0
    for length in lengths:
        tokens = held_out[-length:]
        served = torch.tensor(llm.score(tokens.tolist()))
        worst = max(worst, float((served - log_likelihoods(trainer, tokens)).abs().max()))
    return worst


@FAMILIES
def test_few_steps_serve_as_they_were_trained(family: str, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "model", settings_for(family, steps=2, batch_size=2), CPU)
    trainer.run()
    assert worst_difference(tmp_path / "model", trainer, (97,)) < TOLERANCE


@pytest.mark.slow
@FAMILIES
def test_a_minute_of_training_serves_as_it_was_trained(family: str, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "model", settings_for(family, steps=400, batch_size=8), CPU)
    first = trainer.evaluate()
    began = time.process_time()
    while time.process_time() - began < SECONDS and trainer.step < trainer.settings.steps:
        last = trainer.run(until=trainer.step + 20)
    assert first is not None
    assert last.validation_loss is not None
    print(f"{family}: {trainer.step} steps, {first:.2f} to {last.validation_loss:.3f} nats a byte")
    assert first > 5.4
    assert last.validation_loss < 2.8  # the bytes by themselves, without what is before: 3.1
    assert worst_difference(tmp_path / "model", trainer, (33, 500, 1000)) < TOLERANCE
