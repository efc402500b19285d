"""The unmodified openai package, and what a stand-in should answer it."""

from typing import Any

import openai

from nsa_serve.engine.stand_in import expected_continuation
from nsa_serve.text.tokenizer import Tokenizer
from tests.support.http_server import ServerProcess

MODEL = "stand-in"
Fields = dict[str, Any]


def client_of(server: ServerProcess, *, key: str = "none", **options: Any) -> openai.OpenAI:
    """A client that does not try again, unless told so."""
    options = {"max_retries": 0, "timeout": 120, **options}
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **options)


def async_client_of(
    server: ServerProcess, *, key: str = "none", **options: Any
) -> openai.AsyncOpenAI:
    """The same for asyncio."""
    options = {"max_retries": 0, "timeout": 120, **options}
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, **options)


def expected_ids(prompt: str | list[int], num_tokens: int) -> list[int]:
    """Token ids with which a stand-in continues a prompt."""
    ids = Tokenizer.byte_level().encode(prompt) if isinstance(prompt, str) else prompt
    return expected_continuation(ids, num_tokens)


def expected_text(prompt: str | list[int], num_tokens: int) -> str:
    """The text of them."""
    return Tokenizer.byte_level().decode(expected_ids(prompt, num_tokens))


def expected_answer(messages: Any, num_tokens: int) -> str:
    """What a stand-in says in a conversation."""
    return expected_text(Tokenizer.byte_level().encode_chat(messages), num_tokens)
