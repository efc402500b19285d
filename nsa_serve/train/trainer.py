"""The training loop: AdamW, a cosine schedule, clipped gradients, checkpoints."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nsa_serve.errors import ConfigError, TrainingError
from nsa_serve.model.trainable import LanguageModel, initialize
from nsa_serve.model.training import TrainingOptions
from nsa_serve.train import checkpoint
from nsa_serve.train.interruption import Interruption
from nsa_serve.train.log import Display, Log
from nsa_serve.train.settings import TrainSettings
from nsa_serve.train.task import Task, generator_of, make_task

_BETAS = (0.9, 0.95)
_WEIGHTS = 7
"""What random numbers are drawn for."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a run."""

    steps: int
    loss: float
    """Mean of the last whole epoch, or of the steps since the last line of the log."""
    validation_loss: float | None
    seconds: float


class Trainer:
    """One run in a folder, new or resumed."""

    def __init__(self, folder: Path, settings: TrainSettings | None, device: torch.device) -> None:
        """`settings` None resumes the run in the folder.

        Raises ConfigError if the data or the folder does not do or nothing is left to train,
        ModelLoadError if there is nothing to resume.
        """
        saved = checkpoint.SavedRun(folder) if settings is None else None
        self.settings = settings if settings is not None else _settings_of(saved)
        self.folder, self._device = folder, device
        self.task: Task = make_task(self.settings)
        self.model = _fresh_model(self.settings, device)
        self._optimizer = _optimizer(self.settings, self.model)
        torch.manual_seed(self.settings.seed)
        self.step = self.saved = 0
        """Steps done, and those that the last checkpoint has."""
        if saved is None:
            checkpoint.begin_folder(folder, self.settings, self.task)
        else:
            self._refuse_to_resume(saved.about)
            saved.restore(self.model.decoder, self._optimizer)
            self.step = self.saved = saved.about.step
        self._log = Log(folder / checkpoint.LOG, resumed_at=self.step)
        self._losses: list[Tensor] = []
        self._epoch_losses = [] if saved is None else list(saved.epoch_losses.to(device))
        self._loss = self._epoch_loss = math.nan

    def _refuse_to_resume(self, about: checkpoint.About) -> None:
        if about.step >= self.settings.steps:
            raise ConfigError(f"{self.folder}: all {about.step} steps are done")
        if about.data != self.task.digest:
            raise ConfigError(f"{self.folder}: the data is not what the run began with")

    def run(self, until: int | None = None) -> Result:
        """Train to the end, or until so many steps are done, and save. Ctrl-C ends it after the
        step that runs, and saves too."""
        started, settings = time.perf_counter(), self.settings
        end = settings.steps if until is None else min(until, settings.steps)
        validation = None
        with Display(settings.steps, self.step) as display, Interruption() as interruption:
            while self.step < end:
                self._take_step()
                last = self.step == end or interruption.wanted
                saves = last or self.step % settings.checkpoint_every == 0
                if saves or self.step % settings.log_every == 0:
                    display.show(self.step, self._report(started), always=last)
                if saves:
                    self.save()
                interruption.obey()
                if self.step == end or self.step % settings.evaluate_every == 0:
                    validation = self.evaluate()
        return Result(
            steps=self.step,
            loss=self._loss if math.isnan(self._epoch_loss) else self._epoch_loss,
            validation_loss=validation,
            seconds=time.perf_counter() - started,
        )

    def save(self) -> None:
        """Write a checkpoint of the steps done so far."""
        losses = torch.stack(self._epoch_losses) if self._epoch_losses else torch.empty(0)
        about = checkpoint.About(step=self.step, settings=self.settings, data=self.task.digest)
        checkpoint.save(self.folder, about, self.model.decoder, self._optimizer, losses)
        self.saved = self.step

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Mean loss of what no step sees; None where there is nothing."""
        batches = self.task.validation()
        if not batches:
            return None
        self.model.eval()
        sums = [(self._loss_of(batch) * batch[:, 1:].numel(), batch) for batch in batches]
        self.model.train()
        tokens = sum(batch[:, 1:].numel() for _, batch in sums)
        loss = float(sum(total.item() for total, _ in sums)) / tokens
        self._log.write(self.step, validation_loss=loss)
        return loss

    def _take_step(self) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step)
        loss = self._loss_of(self.task.batch(self.step))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._norm = clip(self.model, self.settings.grad_clip)
        self._optimizer.step()
        self.step += 1
        self._losses.append(loss.detach())
        if self.task.epoch is not None:
            self._epoch_losses.append(loss.detach())
            if self.step % self.task.epoch == 0:
                self._end_epoch()

    def _loss_of(self, batch: Tensor) -> Tensor:
        """Mean cross-entropy of every next token of [batch, time + 1]."""
        tokens = batch.to(self._device, non_blocking=True)
        with self._precision():
            logits = self.model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    def _precision(self) -> AbstractContextManager[object]:
        if self.settings.dtype == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _report(self, started: float) -> str:
        """Read the losses since the last time, write the log; a line of figures."""
        settings = self.settings
        self._loss = float(torch.stack(self._losses).mean())
        if not math.isfinite(self._loss):
            raise TrainingError(
                f"the loss is no number after step {self.step}; a lower learning rate may help "
                f"({settings.learning_rate} now)"
            )
        rate = learning_rate(settings, self.step - 1)
        values = {"loss": self._loss, "learning_rate": rate, "gradient_norm": float(self._norm)}
        self._log.write(self.step, **values, seconds=round(time.perf_counter() - started, 3))
        self._losses.clear()
        return f"loss {self._loss:.4f}  learning rate {rate:.2e}"

    def _end_epoch(self) -> None:
        self._epoch_loss = float(torch.stack(self._epoch_losses).mean())
        self._epoch_losses.clear()
        self._log.write(self.step, epoch_loss=self._epoch_loss)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Of a step, counted from 0: a rise over `warmup` steps, then half a cosine to the end."""
    highest = settings.learning_rate
    if step < settings.warmup:
        return highest * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    left = settings.final_learning_rate
    return highest * (left + (1.0 - left) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))))


def clip(model: nn.Module, largest: float) -> Tensor:
    """Scale the gradient down to a norm of `largest`, unless that is 0; its norm before."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    return nn.utils.clip_grad_norm_(parameters, largest or math.inf)


def _settings_of(saved: checkpoint.SavedRun | None) -> TrainSettings:
    assert saved is not None
    return saved.about.settings


def _fresh_model(settings: TrainSettings, device: torch.device) -> LanguageModel:
    """The same weights for the same seed, on any device."""
    options = TrainingOptions(
        dropout=settings.dropout, differentiable_selection=settings.differentiable_selection
    )
    model = LanguageModel(settings.model, options)
    generator = generator_of(settings.seed, _WEIGHTS)
    initialize(model, generator, settings.model.num_layers)
    return model.to(device).train()


def _optimizer(settings: TrainSettings, model: nn.Module) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    on_cpu = next(model.parameters()).device.type == "cpu"  # where one loop a tensor is much faster
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=_BETAS, fused=on_cpu)
