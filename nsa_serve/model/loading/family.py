"""What a checkpoint family is: how its config.json is told, read, and its tensors found."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from nsa_serve.config import ModelConfig
from nsa_serve.model.loading.recipes import Recipe, Shapes, renamed

Fields = Mapping[str, Any]
"""The content of a config.json."""
Factor = Annotated[float, msgspec.Meta(gt=0.0, le=1024.0)]
"""Of a width, how many times as wide another is."""


def as_it_is(target: str, config: ModelConfig) -> Recipe:
    """The tensor of the decoder's own name."""
    return renamed(target)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of checkpoint."""

    name: str
    """What its config.json says in `model_type`, or may say."""
    read_config: Callable[[Path, dict[str, Any], Shapes], ModelConfig]
    """Raises `ModelLoadError`, one line, for what cannot be served."""
    fits: Callable[[Fields], bool] = lambda _: False
    """Whether a config.json without a `model_type` of ours is of this family."""
    source: Callable[[str, ModelConfig], Recipe] = as_it_is
    """How a tensor of the decoder is made."""
    ignored: re.Pattern[str] = re.compile(r".*\.rotary_emb\.inv_freq")
    """Tensors that are of no use: tables that checkpoints carry along."""
    pickled: bool = False
    """Whether its models are published only as torch.save writes them."""
