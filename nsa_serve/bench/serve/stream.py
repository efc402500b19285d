"""Server-sent events of a streamed answer, and the tokens that they bring.

Parsing is kept cheap, since it runs on the thread that takes the times: a search for the end of an
event, and one typed decode of its JSON.
"""

import msgspec

from nsa_serve.bench.serve.records import Arrival, TokenCounts, spread_tokens

DONE = b"[DONE]"


class StreamError(Exception):
    """The stream holds an error, or something that is no answer; the text says what."""


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Where prompt tokens came from."""

    cached_tokens: int | None = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens so far."""

    prompt_tokens: int | None = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class Delta(msgspec.Struct, frozen=True):
    """What is new of a chat message; reasoning is spelled in two ways."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct, frozen=True):
    """What is new of an answer, on either endpoint."""

    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None


class Chunk(msgspec.Struct, frozen=True):
    """An event, as much as is looked at."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


class EventReader:
    """Cuts a stream of bytes into the data of its events."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, received: bytes) -> list[bytes]:
        """The data of every event that is now complete; comments and other fields are dropped."""
        pending = self._pending + received
        if b"\r" in pending:
            pending = pending.replace(b"\r\n", b"\n")
        *events, self._pending = pending.split(b"\n\n")
        return [data for event in events if (data := _data(event))]


class AnswerReader:
    """Collects an answer and the arrivals of its tokens."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.done = False
        """Whether the end was marked."""
        self.last_time = 0.0
        """Of the last event that belongs to the answer."""
        self.usage = Usage()
        self._events = EventReader()
        self._decode = msgspec.json.Decoder(Chunk).decode
        self._texts: list[str] = []
        self._arrivals: list[Arrival] = []
        self._counts: TokenCounts = "chunks"
        self._counted = 0
        """Tokens of all arrivals."""

    @property
    def num_tokens(self) -> int:
        """Tokens counted so far."""
        return self._counted

    def feed(self, received: bytes, time: float) -> None:
        """Take what was read from the connection at `time`; raises `StreamError`."""
        before = self._counted
        for data in self._events.feed(received):
            if data == DONE:
                self.done = True
            else:
                self._take(data, time)
        if self._counted > before:
            self._arrivals.append(Arrival(time, self._counted - before))

    def finish(self) -> tuple[list[Arrival], TokenCounts]:
        """The arrivals, and how their tokens were counted. Sets `text`."""
        self.text = "".join(self._texts)
        total = self.usage.completion_tokens or 0
        if self._counts == "chunks" and total and total != self._counted:
            times = [arrival.time for arrival in self._arrivals]
            return spread_tokens(times, total), "estimated"
        return self._arrivals, self._counts

    def _take(self, data: bytes, time: float) -> None:
        try:
            chunk = self._decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise StreamError(f"an event is no chunk: {_shown(data)}") from None
        if (error := bytes(chunk.error)) not in (b"", b"null"):
            raise StreamError(_shown(error))
        if chunk.usage is not None:
            self.usage = chunk.usage
        if chunk.choices:
            self.last_time = time
            choice = chunk.choices[0]
            text = _text_of(choice)
            self._texts.append(text)
            self._counted += self._num_tokens(choice, chunk.usage, bool(text))
            self.finish_reason = choice.finish_reason or self.finish_reason

    def _num_tokens(self, choice: Choice, usage: Usage | None, has_text: bool) -> int:
        """Tokens that a chunk adds to those counted."""
        if choice.token_ids is not None:
            self._counts = "token ids"
            return len(choice.token_ids)
        if usage is not None and usage.completion_tokens is not None:
            self._counts = "usage"
            return max(usage.completion_tokens - self._counted, 0)
        called = choice.delta is not None and bool(choice.delta.tool_calls)
        return int(has_text or called)


def _text_of(choice: Choice) -> str:
    if choice.delta is None:
        return choice.text or ""
    delta = choice.delta
    return delta.content or delta.reasoning_content or delta.reasoning or ""


def _data(event: bytes) -> bytes:
    """Most events are one line `data: …`; several such lines are joined."""
    if event.startswith(b"data:") and b"\n" not in event:
        return event[5:].strip()
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def _shown(data: bytes) -> str:
    return data[:300].decode(errors="replace")
