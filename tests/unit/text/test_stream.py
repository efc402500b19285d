"""Streamed text is whole characters only, and all of it in the end."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_serve.text.tokenizer import Tokenizer

BYTES = Tokenizer.byte_level()


def _pieces(ids: list[int], *, skip_special_tokens: bool = True) -> list[str | None]:
    stream = BYTES.stream(skip_special_tokens)
    return [*(stream.step(i) for i in ids), stream.flush()]


def _streamed(ids: list[int], *, skip_special_tokens: bool = True) -> str:
    return "".join(piece or "" for piece in _pieces(ids, skip_special_tokens=skip_special_tokens))


@settings(deadline=None)
@given(text=st.text())
def test_pieces_add_up_to_the_text(text: str) -> None:
    assert _streamed(list(text.encode())) == text


def test_a_character_comes_when_it_is_whole() -> None:
    assert _pieces(list("aé😀".encode())) == ["a", None, "é", None, None, None, "😀", ""]


def test_half_a_character_at_the_end_is_replaced() -> None:
    assert _pieces([97, *"é".encode()[:1]]) == ["a", None, "\ufffd"]


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens_are_shown_or_skipped(skip: bool) -> None:
    ids = [97, 258, 98]
    assert _streamed(ids, skip_special_tokens=skip) == ("ab" if skip else "a<|im_end|>b")


def test_random_bytes_stream_to_what_they_decode_to() -> None:
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(256) for _ in range(30)]
        assert _streamed(ids) == BYTES.decode(ids)


def test_endless_garbage_costs_the_same_for_each_token() -> None:
    began = time.process_time()
    text = _streamed([0x80] * 20_000)
    assert text == "\ufffd" * 20_000
    assert time.process_time() - began < 5.0


def test_a_flushed_stream_starts_afresh() -> None:
    stream = BYTES.stream()
    assert stream.step(0xC3) is None
    assert stream.flush() == "\ufffd"
    assert stream.step(97) == "a"
    assert stream.flush() == ""
