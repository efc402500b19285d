"""The server under test: where it is, which model it has, what its streams can tell."""

from collections.abc import Mapping
from typing import Any, Self

import aiohttp
import msgspec

from nsa_serve.bench.serve.options import TargetError, TargetOptions
from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.model.loading.json_file import one_line

_SHOWN = 300
_USAGE_OPTIONS: tuple[dict[str, Any], ...] = (
    {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    {"stream_options": {"include_usage": True}},
    {},
)
"""What is asked for about tokens, best first: servers may refuse fields that they do not know."""
_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class _ModelCard(msgspec.Struct, frozen=True):
    id: str
    max_model_len: int | None = None


class _ModelList(msgspec.Struct, frozen=True):
    data: list[_ModelCard]


class Target:
    """A session with the server. Used inside `async with`, on one event loop."""

    def __init__(self, options: TargetOptions) -> None:
        self.options = options
        self.model = options.model or ""
        self.max_model_len: int | None = None
        self._usage = _USAGE_OPTIONS[0]

    async def __aenter__(self) -> Self:
        headers = {"Accept-Encoding": "identity", **self.options.headers}
        if self.options.api_key is not None:
            headers["Authorization"] = f"Bearer {self.options.api_key}"
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=None),
            timeout=aiohttp.ClientTimeout(total=self.options.timeout),
            headers=headers,
            json_serialize=lambda value: msgspec.json.encode(value).decode(),
            read_bufsize=1 << 18,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.options.root + _PATHS[self.options.endpoint]

    async def find_model(self) -> None:
        """Ask for the models; raises `TargetError` if the one to test is not among them."""
        status, body = await self.get("/v1/models")
        if status != 200:
            if status in (401, 403):
                raise TargetError(f"{self.options.root} refused the API key: {_text(body)}")
            if not self.model:
                raise TargetError(
                    f"{self.options.root}/v1/models answered {status}; name the model with --model"
                )
            return
        try:
            cards = msgspec.json.decode(body, type=_ModelList).data
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise TargetError(
                f"{self.options.root}/v1/models is no list of models: {_text(body)}"
            ) from None
        if not cards:
            raise TargetError(f"{self.options.root} serves no model")
        named = [card for card in cards if card.id == (self.model or cards[0].id)]
        if not named:
            served = ", ".join(card.id for card in cards[:8])
            raise TargetError(f"{self.options.root} serves no model {self.model}, only {served}")
        self.model, self.max_model_len = named[0].id, named[0].max_model_len

    async def agree(self) -> None:
        """Send one small request, to learn which fields about usage the target takes.

        Raises `TargetError` if it refuses the request without any of them.
        """
        status, text = 0, b""
        for usage in _USAGE_OPTIONS:
            self._usage = usage
            status, text = await self.post(
                self.url, self.body(Sample(prompt="Hello", max_tokens=1))
            )
            if status == 200:
                return
            if status not in (400, 422):
                break
        raise TargetError(f"{self.url} answered {status}: {_text(text)}")

    def body(self, sample: Sample) -> dict[str, Any]:
        """The JSON of a request."""
        options = self.options
        body: dict[str, Any] = {"model": self.model, "temperature": 0.0, "stream": True}
        if options.endpoint == "chat":
            body["messages"] = sample.as_messages()
            body["max_completion_tokens"] = body["max_tokens"] = sample.max_tokens
        else:
            body["prompt"] = sample.as_prompt()
            body["max_tokens"] = sample.max_tokens
        if options.ignore_eos:
            body["ignore_eos"] = True
        return {**body, **self._usage, **options.extra_body}

    async def get(self, path: str) -> tuple[int, bytes]:
        """A status and a body; raises `TargetError` if the target cannot be reached."""
        try:
            async with self.session.get(self.options.root + path) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from None

    async def post(self, url: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """As `get`, with a body of JSON."""
        try:
            async with self.session.post(url, json=body) as answer:
                return answer.status, await answer.read()
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> TargetError:
        if isinstance(error, TimeoutError):
            return TargetError(
                f"{self.options.root} gave no answer within {self.options.timeout:g} s"
            )
        cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
        return TargetError(f"cannot reach {self.options.root}: {one_line(cause)}")


def _text(body: bytes) -> str:
    return one_line(body[:_SHOWN].decode(errors="replace"))
