"""What a run computes, logs and leaves behind."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nsa_serve.errors import TrainingError
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.train import sequences
from nsa_serve.train.checkpoint import LOG, SavedRun
from nsa_serve.train.trainer import Trainer, clip, learning_rate
from tests.support.training import CPU, tiny_settings, train


def test_the_learning_rate_rises_then_falls_as_a_cosine(tmp_path: Path) -> None:
    settings = tiny_settings(
        tmp_path, "sequence", steps=110, warmup=10, learning_rate=2.0, final_learning_rate=0.1
    )
    rates = [learning_rate(settings, step) for step in range(111)]
    assert rates[:2] == pytest.approx([0.2, 0.4])
    assert rates[9] == rates[10] == max(rates) == 2.0
    assert rates[60] == pytest.approx((2.0 + 0.2) / 2)
    assert rates[110] == pytest.approx(0.2)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_a_gradient_is_clipped_to_a_norm(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 3), 4.0), torch.zeros(2)
    assert clip(model, 0.0) == pytest.approx(math.sqrt(96))
    assert model.weight.grad[0, 0] == 4.0
    clip(model, 0.5)
    assert model.weight.grad.norm() == pytest.approx(0.5, rel=1e-4)


def test_the_log_is_a_line_of_json_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "NUM_SEQUENCES", 100)
    settings = tiny_settings(tmp_path, "sequence", batch_size=25, steps=8)
    result = Trainer(tmp_path / "run", settings, CPU).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(losses) == [2, 3, 4, 6, 8]  # every 2, and at every checkpoint
    assert all(0.0 < loss < 4.0 for loss in losses.values())
    epochs = {line["step"]: line["epoch_loss"] for line in lines if "epoch_loss" in line}
    assert list(epochs) == [4, 8]
    # an epoch's mean is that of its steps: two lines are of two steps, the others of one
    assert epochs[4] == pytest.approx((2 * losses[2] + losses[3] + losses[4]) / 4)
    assert result.loss == epochs[8] < epochs[4]
    validations = {
        line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line
    }
    assert list(validations) == [4, 8]
    assert result.validation_loss == validations[8]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates == [learning_rate(settings, step - 1) for step in losses]
    assert all(line["gradient_norm"] > 0 for line in lines if "loss" in line)


def test_what_a_validation_says_is_the_loss_of_the_model_that_was_saved(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "run", tiny_settings(tmp_path, "text"), CPU)
    result = trainer.run()
    saved = resolve_model(str(tmp_path / "run"))
    assert saved.config == trainer.settings.model
    trainer.model.decoder.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    trainer.model.eval()
    losses = []
    for batch in trainer.task.validation():
        with torch.no_grad():
            log_probs = trainer.model(batch[:, :-1]).log_softmax(-1)
        losses.append(-log_probs.gather(-1, batch[:, 1:, None]).flatten())
    assert result.validation_loss == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_the_optimizer_decays_matrices_alone(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path / "run", tiny_settings(tmp_path, "text", weight_decay=0.25), CPU)
    decays = {
        name: group["weight_decay"]
        for name, parameter in trainer.model.named_parameters()
        for group in trainer._optimizer.param_groups
        if any(parameter is own for own in group["params"])
    }
    assert decays.keys() == dict(trainer.model.named_parameters()).keys()
    assert {name for name, decay in decays.items() if decay == 0.0} == {
        name for name, parameter in trainer.model.named_parameters() if parameter.ndim == 1
    }
    assert set(decays.values()) == {0.0, 0.25}


def test_products_in_bfloat16_learn_the_same(tmp_path: Path) -> None:
    exact = train(tmp_path / "a", tiny_settings(tmp_path, "text", dropout=0.0))
    rough = train(tmp_path / "b", tiny_settings(tmp_path, "text", dropout=0.0, dtype="bfloat16"))
    assert {p.dtype for p in rough.model.parameters()} == {torch.float32}
    assert 0.0 < abs(exact._loss - rough._loss) < 0.05


def test_settings_reach_the_model(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, "text", dropout=0.25, differentiable_selection=True)
    options = Trainer(tmp_path / "run", settings, CPU).model.options
    assert (options.dropout, options.differentiable_selection) == (0.25, True)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    trainer = train(tmp_path / "run", tiny_settings(tmp_path, "text"), until=3)
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(torch.inf)
    with pytest.raises(TrainingError, match="no number after step 4; a lower learning rate"):
        trainer.run()
    assert SavedRun(tmp_path / "run").about.step == 3
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())
