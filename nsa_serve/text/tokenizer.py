"""Text to token ids and back, over the tokenizers library. Safe to use from several threads."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import tokenizers

from nsa_serve.errors import ModelLoadError, RequestError
from nsa_serve.model.loading.json_file import one_line, read_bytes
from nsa_serve.text.byte_level import byte_level_backend, token_to_bytes
from nsa_serve.text.chat_template import ChatTemplate, Message, join_text_parts
from nsa_serve.text.special_tokens import SpecialTokens
from nsa_serve.text.stream import TokenStream
from nsa_serve.text.tokenizer_config import (
    TokenizerConfig,
    read_chat_template,
    read_tokenizer_config,
)
from nsa_serve.text.tools import with_tools_told

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


_CACHED_WORDS = 1000
"""Whose tokens the library keeps, in every thread. Its own 10,000 are no faster over prose, and
take tens of megabytes a thread once clients send words of a kind that never comes again."""


class Tokenizer:
    """The vocabulary and the chat template of a model."""

    def __init__(
        self, backend: tokenizers.Tokenizer, config: TokenizerConfig, chat_template: str | None
    ) -> None:
        """`chat_template` is jinja source; raises `ModelLoadError` if it does not render."""
        backend.no_truncation()
        backend.no_padding()
        _bound_cache(backend)
        self._backend = backend
        self._added = backend.get_added_tokens_decoder()
        self._special = SpecialTokens(self._added)
        self._add_bos = config.add_bos_token
        self.special_tokens = tokens = config.special_tokens
        """Texts by name, eos_token and so on: those that are set."""
        self.chat_template_source = chat_template
        self.bos_token_id = _id_of(backend, "bos_token", tokens.get("bos_token"))
        self.eos_token_id = _id_of(backend, "eos_token", tokens.get("eos_token"))
        self._chat_template = ChatTemplate(chat_template, tokens) if chat_template else None

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read tokenizer.json, tokenizer_config.json and chat_template.jinja of a model folder."""
        path = folder / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_buffer(read_bytes(path))
        except ModelLoadError:
            raise
        except Exception as error:  # the library raises nothing more precise
            raise ModelLoadError(f"{path}: {one_line(error)}") from None
        config = read_tokenizer_config(folder)
        try:
            return cls(backend, config, read_chat_template(folder, config))
        except ModelLoadError as error:
            raise ModelLoadError(f"{folder}: {error}") from None

    @classmethod
    def byte_level(cls) -> "Tokenizer":
        """One token a byte, <|endoftext|>, <|im_start|>, <|im_end|> and ChatML: 259 in all."""
        config = TokenizerConfig(eos_token="<|im_end|>")  # noqa: S106
        return cls(byte_level_backend(), config, CHATML)

    @classmethod
    def bytes_only(cls) -> "Tokenizer":
        """One token a byte and nothing else: 256 in all, no chat template."""
        return cls(byte_level_backend(special=False), TokenizerConfig(), None)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return max(self._backend.get_vocab().values(), default=-1) + 1

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` can be used."""
        return self._chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Ids of a raw prompt: special tokens spelled in it count as such.

        BOS goes first where tokenizer_config.json says so (`add_bos_token`), or, if that says
        nothing, where the post-processor of tokenizer.json does.
        """
        ids = self._encode(self._backend, text, add_special_tokens=self._add_bos is None)
        if self._add_bos and self.bos_token_id is not None and ids[:1] != [self.bos_token_id]:
            return [self.bos_token_id, *ids]
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text by itself, nothing before or behind it."""
        return self._encode(self._backend, text)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Ids of a conversation under the chat template, and of the functions that may be called.

        No text of them becomes a special token, whatever it spells. Raises `RequestError` if there
        is no template, or it refuses the messages.
        """
        template = self._chat_template
        if template is None:
            raise RequestError("this model has no chat template", param="messages")
        messages = [join_text_parts(message) for message in messages]
        if not template.tells_tools:
            messages, tools = with_tools_told(messages, tools), None
        render = partial(template.render, add_generation_prompt=add_generation_prompt)
        if not self._special.spelled_in([messages, tools]):
            return self._encode(self._backend, render(messages, tools=tools))
        hidden = self._special.hide([messages, tools])
        text = render(hidden.value[0], tools=hidden.value[1])
        ids: list[int] = []
        for piece in self._special.split(text):
            if isinstance(piece, int):
                ids.append(piece)
            elif piece:
                ids += self._encode(self._literal, hidden.reveal(piece))
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the ids, U+FFFD for what is no character."""
        return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, possibly a part of a character; b"" if unknown."""
        if token_id in self._added:
            return self._added[token_id].content.encode()
        token = self._backend.id_to_token(token_id) or ""
        return token_to_bytes(token, byte_level=self._is_byte_level)

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, U+FFFD for what is no character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def stream(self, skip_special_tokens: bool = True) -> TokenStream:
        """A decoder for one output that comes token by token."""
        return TokenStream(self._backend, skip_special_tokens=skip_special_tokens)

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        path.write_text(self._backend.to_str(), encoding="utf-8")

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """A second backend that takes special tokens for ordinary text; most servers need none."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        _bound_cache(backend)
        return backend

    @cached_property
    def _is_byte_level(self) -> bool:
        return "ByteLevel" in repr(self._backend.decoder)

    @staticmethod
    def _encode(
        backend: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = False
    ) -> list[int]:
        try:
            return backend.encode(text, add_special_tokens=add_special_tokens).ids
        except (UnicodeEncodeError, TypeError):
            raise RequestError("the text is not valid Unicode") from None


def _bound_cache(backend: tokenizers.Tokenizer) -> None:
    resize = getattr(backend.model, "_resize_cache", None)  # not every version or model has one
    if resize is not None:
        resize(_CACHED_WORDS)


def _id_of(backend: tokenizers.Tokenizer, name: str, token: str | None) -> int | None:
    if token is None:
        return None
    token_id = backend.token_to_id(token)
    if token_id is None:
        raise ModelLoadError(f"{name} {token!r} is not in the vocabulary")
    return token_id
