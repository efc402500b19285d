"""Writing a model folder in our own format."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.config import ModelConfig

OUR_MODEL_TYPE = "nsa_serve"


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write config.json, every field spelled out."""
    write_json(
        folder / "config.json", {"model_type": OUR_MODEL_TYPE, **msgspec.to_builtins(config)}
    )


def write_json(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON object, indented for people."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n")
