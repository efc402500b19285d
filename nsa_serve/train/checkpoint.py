"""Checkpoints: a model folder that serves, and in its `training` the state to go on from.

The state is one file that holds everything, weights included, and takes the place of the last one
whole. So a run that is ended between two writes goes on from the one that was finished.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.loading.json_file import one_line
from nsa_serve.model.loading.write import write_config
from nsa_serve.train.settings import TrainSettings
from nsa_serve.train.task import Task

STATE = Path("training", "state.safetensors")
LOG = Path("training", "log.jsonl")
_WEIGHTS, _OPTIMIZER, _RANDOM = "weights/", "optimizer/", "random/"
_ABOUT = "about"
_EPOCH = "epoch_losses"


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a state says beside its tensors."""

    step: int
    """Steps done."""
    settings: TrainSettings
    data: str
    """Digest of what was trained on."""


def begin_folder(folder: Path, settings: TrainSettings, task: Task) -> None:
    """Make the folder with all but the weights. Raises ConfigError if there is something in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty; --resume goes on with the run in it")
        (folder / STATE).parent.mkdir()
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None
    write_config(folder, settings.model)
    task.write_tokenizer(folder)


def save(
    folder: Path,
    about: About,
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    epoch_losses: Tensor,
) -> None:
    """Write the state, then the weights that serve. `epoch_losses` are those of the epoch that is
    not over."""
    weights = {name: tensor.detach() for name, tensor in decoder.state_dict().items()}
    state = {_WEIGHTS + name: tensor for name, tensor in weights.items()}
    for name, parameter in decoder.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{_OPTIMIZER}{key}/{name}"] = value
    state[_EPOCH] = epoch_losses
    state[_RANDOM + "cpu"] = torch.get_rng_state()
    if next(decoder.parameters()).is_cuda:
        state[_RANDOM + "cuda"] = torch.cuda.get_rng_state()
    try:
        _replace(folder / STATE, state, {_ABOUT: msgspec.json.encode(about).decode()})
        _replace(folder / "model.safetensors", weights, {"format": "pt"})
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from None


def _replace(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write beside the file and take its place once all is on the disk."""
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.chmod(0o644)  # safetensors writes for the owner only
    part.replace(path)


class SavedRun:
    """A state that was saved: what was asked for, how far it went, and its tensors."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelLoadError if there is none in the folder, or it is damaged."""
        self._path = folder / STATE
        if not self._path.exists():
            raise ModelLoadError(f"{folder} holds no training state to resume ({STATE})")
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _ABOUT not in metadata:
                    raise ModelLoadError(f"{self._path} is not a training state")
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.about = msgspec.json.decode(metadata[_ABOUT], type=About)
            self.epoch_losses = self._tensors[_EPOCH]
        except (SafetensorError, OSError, KeyError, ValueError, msgspec.DecodeError) as error:
            raise ModelLoadError(f"{self._path}: {one_line(error)}") from None

    def restore(self, decoder: Decoder, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, the optimizer's moments and the random numbers back."""
        device = next(decoder.parameters()).device
        try:
            decoder.load_state_dict(self._under(_WEIGHTS))
        except RuntimeError as error:
            raise ModelLoadError(f"{self._path}: {one_line(error)}") from None
        parameters: dict[str, nn.Parameter] = dict(decoder.named_parameters())
        for place, tensor in self._under(_OPTIMIZER).items():
            key, _, name = place.partition("/")
            kept = tensor.clone() if key == "step" else tensor.to(device, copy=True)
            optimizer.state[parameters[name]][key] = kept
        random = self._under(_RANDOM)
        torch.set_rng_state(random["cpu"])
        if device.type == "cuda" and "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"])

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in self._tensors.items() if n.startswith(prefix)}
