"""JSON files of a model folder, read into typed values; whatever is wrong becomes one line."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from nsa_serve.errors import ConfigError, ModelLoadError

T = TypeVar("T")


def one_line(error: object) -> str:
    """The text of an exception without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def read_bytes(path: Path) -> bytes:
    """The content of a file that must be there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelLoadError(f"{path.name} is missing from {path.parent}") from None
    except OSError as error:
        raise ModelLoadError(f"{path}: {error.strerror or one_line(error)}") from None


def read_json(path: Path, kind: type[T]) -> T:
    """The file as a `kind`; a violation names the file and the place in it."""
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except msgspec.ValidationError as error:
        raise ModelLoadError(f"{path}: {one_line(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} is not valid JSON: {one_line(error)}") from None
    except RecursionError:
        raise ModelLoadError(f"{path} is nested too deeply") from None


def convert(path: Path, fields: dict[str, Any], kind: type[T]) -> T:
    """Fields already read from `path` as a `kind`, with the same errors as `read_json`."""
    try:
        return msgspec.convert(fields, kind)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ModelLoadError(f"{path}: {one_line(error)}") from None
