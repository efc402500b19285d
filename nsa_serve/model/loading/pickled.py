"""State dicts that torch.save wrote: tensors and nothing else, since any other object is refused.

Only for conversion, and only for families that publish nothing but these.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.json_file import one_line

_WRAPPINGS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What wrappers of a module put before every name."""


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name, mapped from the file where its format allows it.

    Raises `ModelLoadError`, one line, for whatever is not a dict of tensors.
    """
    state = _unwrapped(_load(path))
    if not isinstance(state, dict) or not state:
        raise ModelLoadError(f"{path} holds no state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ModelLoadError(f"{path}: {name!r} is a {type(value).__name__}, no tensor")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _load(path: Path) -> Any:
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before 2020 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        cause = one_line(error).partition(". ")[0]
        raise ModelLoadError(f"{path} is no file of tensors only: {cause}") from None


def _unwrapped(value: Any) -> Any:
    """What training code saves beside a state dict is left out."""
    while isinstance(value, dict):
        inner = [value[name] for name in _WRAPPINGS if isinstance(value.get(name), dict)]
        if not inner:
            break
        value = inner[0]
    return value
