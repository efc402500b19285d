"""What one request asks."""

import msgspec

from nsa_serve.bench.serve.records import Needle
from nsa_serve.errors import ConfigError

Messages = list[dict[str, str]]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, as text, token ids or messages, and the length of its answer."""

    prompt: str | list[int] | Messages
    max_tokens: int
    prompt_tokens: int = 0
    """As far as is known before the target says."""
    needle: Needle | None = None

    def as_prompt(self) -> str | list[int]:
        """For /v1/completions."""
        if isinstance(self.prompt, str):
            return self.prompt
        ids = [item for item in self.prompt if isinstance(item, int)]
        if len(ids) < len(self.prompt):
            raise ConfigError("the data holds conversations: use --endpoint chat")
        return ids

    def as_messages(self) -> Messages:
        """For /v1/chat/completions."""
        if isinstance(self.prompt, str):
            return [{"role": "user", "content": self.prompt}]
        messages = [item for item in self.prompt if isinstance(item, dict)]
        if len(messages) < len(self.prompt):
            raise ConfigError("the data holds token ids: use --endpoint completions")
        return messages
