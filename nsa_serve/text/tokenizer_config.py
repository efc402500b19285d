"""tokenizer_config.json, as far as serving reads it."""

from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.json_file import read_bytes, read_json


class _AddedToken(msgspec.Struct):
    content: str


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to a tokenizer beside its vocabulary; unknown fields are ignored."""

    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    unk_token: str | _AddedToken | None = None
    pad_token: str | _AddedToken | None = None
    add_bos_token: bool | None = None
    """None leaves it to the post-processor of tokenizer.json."""
    chat_template: str | list[_NamedTemplate] | None = None

    @property
    def special_tokens(self) -> dict[str, str]:
        """Text of each special token that is set, by the name templates use."""
        tokens: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        return {
            name: token if isinstance(token, str) else token.content
            for name, token in tokens.items()
            if token is not None
        }


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """The file, or the defaults if there is none."""
    path = folder / "tokenizer_config.json"
    return read_json(path, TokenizerConfig) if path.exists() else TokenizerConfig()


def read_chat_template(folder: Path, config: TokenizerConfig) -> str | None:
    """chat_template.jinja, else the template of the tokenizer's config, else None."""
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return read_bytes(path).decode()
        except UnicodeDecodeError:
            raise ModelLoadError(f"{path} is not UTF-8") from None
    if isinstance(config.chat_template, list):
        named = {entry.name: entry.template for entry in config.chat_template}
        return named.get("default")
    return config.chat_template
