"""How many tokens a text has: by a tokenizer, or by what the target says of a sample.

Without a tokenizer sizes are estimates; what is reported is what the target counted.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.bench.serve.target import Target
from nsa_serve.bench.serve.words import random_text
from nsa_serve.errors import ConfigError
from nsa_serve.text.tokenizer import Tokenizer

MakeText = Callable[[random.Random, int], str]
"""Text of at least so many characters."""

_GUESS = 4.0
"""Characters of a token where nobody can tell."""
_SAMPLE_CHARS = (600, 2400)


class Sizer(Protocol):
    """Counts and cuts text."""

    description: str
    """For the report."""

    def count(self, text: str) -> int:
        """Tokens of a text."""

    def chars(self, num_tokens: int) -> int:
        """About how many characters this many tokens have."""

    def cut(self, text: str, num_tokens: int) -> str:
        """The beginning of a longer text, as near to `num_tokens` as can be told."""


class LocalSizer:
    """Exact, by the tokenizer of a model folder."""

    def __init__(self, tokenizer: Tokenizer, name: str) -> None:
        self.description = f"prompts were sized with the tokenizer of {name}"
        self._tokenizer = tokenizer
        sample = random_text(random.Random(0), 4000)
        self._chars = len(sample) / max(len(tokenizer.encode(sample)), 1)

    @property
    def vocab_size(self) -> int:
        """One more than the highest token id."""
        return self._tokenizer.vocab_size

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text))

    def chars(self, num_tokens: int) -> int:
        """About how many characters this many tokens have."""
        return int(num_tokens * self._chars) + 1

    def cut(self, text: str, num_tokens: int) -> str:
        """Cut behind a token. The text may encode otherwise afterwards, then it is cut again."""
        aim, best = num_tokens, text
        for _ in range(4):
            candidate = self._tokenizer.decode(self._tokenizer.encode(text)[:aim])
            off = self.count(candidate) - num_tokens
            if abs(off) <= abs(self.count(best) - num_tokens):
                best = candidate
            if off == 0:
                break
            aim -= off
        return best


class EstimatingSizer:
    """Characters of a token, and tokens around every prompt (of a chat template, say)."""

    def __init__(self, chars_per_token: float, overhead: int, description: str) -> None:
        self.description = description
        self._chars = chars_per_token
        self._overhead = overhead

    def count(self, text: str) -> int:
        """Tokens of a text, about."""
        return max(round(len(text) / self._chars) + self._overhead, 1)

    def chars(self, num_tokens: int) -> int:
        """About how many characters this many tokens have."""
        return max(round((num_tokens - self._overhead) * self._chars), 1)

    def cut(self, text: str, num_tokens: int) -> str:
        """Cut before a space."""
        limit = self.chars(num_tokens)
        if limit >= len(text):
            return text
        space = text.rfind(" ", 0, limit + 1)
        return text[: space if space > 0 else limit]


def local_sizer(folder: Path) -> LocalSizer:
    """Raises `ModelLoadError` if the folder holds no tokenizer."""
    return LocalSizer(Tokenizer.from_folder(folder), folder.name)


async def ask_target(target: Target, make: MakeText = random_text) -> Sizer:
    """Let the target count the tokens of two texts, by /tokenize or in the usage.

    `make` gives text like that of the prompts: other text has other tokens.
    """
    texts = [make(random.Random(i), chars) for i, chars in enumerate(_SAMPLE_CHARS)]
    for count, how in ((_by_tokenize, "/tokenize"), (_by_usage, "its usage")):
        few, many = [await count(target, text) for text in texts]
        if few is not None and many is not None and many > few:
            chars = (len(texts[1]) - len(texts[0])) / (many - few)
            overhead = max(round(few - len(texts[0]) / chars), 0)
            return EstimatingSizer(
                chars, overhead, f"prompts were sized by {how}: {chars:.2f} characters a token"
            )
    return EstimatingSizer(
        _GUESS, 0, f"prompts were sized by a guess: {_GUESS:g} characters a token"
    )


class _Tokenized(msgspec.Struct, frozen=True):
    count: int


async def _by_tokenize(target: Target, text: str) -> int | None:
    """None where the target has no such endpoint."""
    chat = target.options.endpoint == "chat"
    prompt = {"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}
    status, body = await target.post(
        target.options.root + "/tokenize", {"model": target.model, **prompt}
    )
    try:
        return msgspec.json.decode(body, type=_Tokenized).count if status == 200 else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int


class _Answer(msgspec.Struct, frozen=True):
    usage: _Usage


async def _by_usage(target: Target, text: str) -> int | None:
    """A whole answer of one token; None where it tells no usage."""
    body = {**target.body(Sample(prompt=text, max_tokens=1)), "stream": False}
    body.pop("stream_options", None)
    status, answer = await target.post(target.url, body)
    try:
        return msgspec.json.decode(answer, type=_Answer).usage.prompt_tokens
    except (msgspec.DecodeError, UnicodeDecodeError):
        if status == 200:
            return None
        raise ConfigError(f"the target refused a prompt of {len(text)} characters") from None
