"""Streams as servers send them, in any pieces."""

import json
from typing import Any

import pytest

from nsa_serve.bench.serve.records import Arrival
from nsa_serve.bench.serve.stream import AnswerReader, EventReader, StreamError


def _event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _text(text: str, finish: str | None = None, **choice: Any) -> bytes:
    return _event(choices=[{"index": 0, "text": text, "finish_reason": finish, **choice}])


def _usage(completion: int, prompt: int = 9, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def _read(*pieces: bytes) -> AnswerReader:
    """Piece i comes at i + 1 seconds."""
    reader = AnswerReader()
    for i, piece in enumerate(pieces):
        reader.feed(piece, float(i + 1))
    return reader


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
def test_events_come_in_any_pieces(size: int, end: bytes) -> None:
    sent = end.join(
        [b'data: {"a": 1}', b": a comment", b"event: x\ndata:two", b"data: [DONE]", b""]
    )
    reader = EventReader()
    found = [d for i in range(0, len(sent), size) for d in reader.feed(sent[i : i + size])]
    assert found == [b'{"a": 1}', b"two", b"[DONE]"]


def test_chunks_count_as_tokens_where_nothing_else_is_known() -> None:
    reader = _read(_text("a"), _text("b"), _text("", "stop"), b"data: [DONE]\n\n")
    arrivals, counts = reader.finish()
    assert arrivals == [Arrival(1.0, 1), Arrival(2.0, 1)]
    assert (counts, reader.text, reader.finish_reason) == ("chunks", "ab", "stop")
    assert (reader.done, reader.last_time) == (True, 3.0)


def test_a_total_that_is_larger_is_spread_over_the_chunks() -> None:
    last = _event(choices=[], usage=_usage(7))
    arrivals, counts = _read(_text("a"), _text("b"), _text("c"), last).finish()
    assert [arrival.num_tokens for arrival in arrivals] == [3, 2, 2]
    assert counts == "estimated"


def test_a_total_that_agrees_leaves_the_chunks_alone() -> None:
    last = _event(choices=[], usage=_usage(2))
    arrivals, counts = _read(_text("a"), _text("b"), last).finish()
    assert [arrival.num_tokens for arrival in arrivals] == [1, 1]
    assert counts == "chunks"


def test_continuous_usage_tells_the_tokens_of_each_chunk() -> None:
    def chunk(text: str, count: int) -> bytes:
        return _event(choices=[{"text": text}], usage=_usage(count))

    reader = _read(chunk("", 0), chunk("a", 1), chunk("", 2), chunk("bcd", 6))
    arrivals, counts = reader.finish()
    assert arrivals == [Arrival(2.0, 1), Arrival(3.0, 1), Arrival(4.0, 4)]
    assert (counts, reader.usage.prompt_tokens) == ("usage", 9)


def test_token_ids_are_counted_before_all_else() -> None:
    chunk = _event(choices=[{"text": "ab", "token_ids": [4, 5]}], usage=_usage(7))
    arrivals, counts = _read(chunk).finish()
    assert (arrivals, counts) == ([Arrival(1.0, 2)], "token ids")


def test_events_that_come_together_are_one_arrival() -> None:
    arrivals, _ = _read(_text("a") + _text("b"), _text("c")).finish()
    assert arrivals == [Arrival(1.0, 2), Arrival(2.0, 1)]


def test_the_role_of_a_chat_is_no_token() -> None:
    def chunk(**delta: Any) -> bytes:
        return _event(choices=[{"index": 0, "delta": delta}])

    reader = _read(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="hm"),
        chunk(content="a"),
        chunk(tool_calls=[{"index": 0}]),
        chunk(),
    )
    arrivals, _ = reader.finish()
    assert [arrival.time for arrival in arrivals] == [2.0, 3.0, 4.0]
    assert reader.text == "hma"


def test_nulls_are_no_error() -> None:
    details = {"cached_tokens": None}
    usage = _usage(1, prompt_tokens_details=details)
    reader = _read(_event(choices=[{"text": "a", "token_ids": None}], usage=None, error=None),
                   _event(choices=[], usage=usage))  # fmt: skip
    assert reader.finish()[1] == "chunks"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (_event(error={"message": "out of memory"}), '^{"message": "out of memory"}$'),
        (_event(error="full", choices=[]), '^"full"$'),
        (b"data: <html>\n\n", "an event is no chunk: <html>"),
        (b'data: {"choices": 3}\n\n', "an event is no chunk"),
    ],
)
def test_what_is_no_answer_is_an_error(sent: bytes, told: str) -> None:
    with pytest.raises(StreamError, match=told):
        _read(_text("a"), sent)
