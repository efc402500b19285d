"""From token ids to text while they come."""

import tokenizers
from tokenizers.decoders import DecodeStream

_MAX_HELD = 32
"""No character is spread over so many tokens: what is still held then is not UTF-8. Without this
bound each token of a garbage output would decode all the ones before it again."""


class TokenStream:
    """Text of one output, whole characters at a time. Not thread-safe."""

    def __init__(self, backend: tokenizers.Tokenizer, *, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._held: list[int] = []

    def step(self, token_id: int) -> str | None:
        """The text that this token completes; None while a character is half there."""
        text = self._stream.step(self._backend, token_id)
        if text is not None:
            self._held.clear()
            return text
        self._held.append(token_id)
        return self.flush() or None if len(self._held) >= _MAX_HELD else None

    def flush(self) -> str:
        """What is still held back, half a character as U+FFFD; the stream starts afresh."""
        text = self._backend.decode(self._held, skip_special_tokens=self._skip_special_tokens)
        self._held.clear()
        self._stream = DecodeStream(skip_special_tokens=self._skip_special_tokens)
        return text
