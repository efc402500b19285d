"""Flags from a file: TOML or JSON, a key for each flag, with dashes or underscores."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import typer

from nsa_serve.errors import ConfigError


def use_config_file(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of an eager option: what the file says becomes the flags' defaults.

    Raises ConfigError if it cannot be read or names a flag that the command does not have.
    """
    if path is not None:
        context.default_map = _defaults(path, _flags(context))
    return path


def _flags(context: typer.Context) -> dict[str, bool]:
    """The command's parameters by name, and whether each may be given several times."""
    return {
        parameter.name: getattr(parameter, "multiple", False)
        for parameter in context.command.params
        if parameter.name not in (None, "config_file", "help")
    }


def _defaults(path: Path, flags: dict[str, bool]) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    for key, value in _read(path).items():
        name = key.replace("-", "_")
        if name not in flags:
            raise ConfigError(f"{path}: unknown key {key!r}, expected one of {', '.join(flags)}")
        if isinstance(value, dict):
            raise ConfigError(f"{path}: {key} must be a value, not a table")
        if isinstance(value, list) and not flags[name]:
            raise ConfigError(f"{path}: {key} must be one value, not a list")
        defaults[name] = [value] if flags[name] and not isinstance(value, list) else value
    return defaults


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return msgspec.json.decode(text, type=dict[str, Any])
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path} is not valid {kind}: {error}") from None
