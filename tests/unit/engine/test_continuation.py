"""From a core's outputs to the text of one continuation."""

import pytest

from nsa_serve.engine.detokenize import Continuation
from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.outputs import CompletionOutput, FinishReason, Logprob, TokenLogprobs
from nsa_serve.params import SamplingParams
from nsa_serve.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.byte_level()


def _continuation(**params: str | int | bool | tuple[str, ...]) -> Continuation:
    return Continuation(0, TOKENIZER, SamplingParams(**params))  # type: ignore[arg-type]


def _push(
    continuation: Continuation, text: bytes | str, finish_reason: FinishReason | None = None
) -> CompletionOutput:
    """Push the tokens of `text` as one step's output, and take what is new."""
    data = text.encode() if isinstance(text, str) else text
    token_ids = [TOKENIZER.encode(chr(byte))[0] if byte < 128 else _id(byte) for byte in data]
    continuation.push(SequenceOutput(0, token_ids, finish_reason))
    output = continuation.take()
    assert output is not None
    return output


def _id(byte: int) -> int:
    return next(i for i in range(256) if TOKENIZER.token_bytes(i) == bytes([byte]))


def test_half_a_character_is_held_back_until_it_is_whole() -> None:
    continuation = _continuation()
    first, second = "é".encode()[:1], "é".encode()[1:]
    assert _push(continuation, first).text == ""
    assert _push(continuation, second).text == "é"


def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    assert _push(_continuation(), b"a\xc3", "length").text == "a\ufffd"


def test_a_stop_token_counts_but_is_no_text() -> None:
    output = _push(_continuation(), "ab", "stop")
    assert output.text == "a"
    assert len(output.token_ids) == 2
    assert output.finish_reason == "stop"


def test_a_stop_token_is_shown_where_stop_strings_are() -> None:
    assert _push(_continuation(include_stop_str_in_output=True), "ab", "stop").text == "ab"


def test_a_stop_string_ends_it_and_later_tokens_are_dropped() -> None:
    continuation = _continuation(stop=("END",))
    assert _push(continuation, "hi E").text == "hi "
    output = _push(continuation, "ND of it")
    assert (output.text, output.finish_reason, output.stop_reason) == ("", "stop", "END")
    assert len(output.token_ids) == 2
    continuation.push(SequenceOutput(0, [1]))
    assert continuation.take() is None


def test_text_held_for_a_stop_string_is_shown_at_the_end() -> None:
    assert _push(_continuation(stop=("END",)), "hi EN", "length").text == "hi EN"


@pytest.mark.parametrize(("min_tokens", "text"), [(0, ""), (3, ""), (4, "END, ")])
def test_stop_strings_do_not_end_it_before_min_tokens(min_tokens: int, text: str) -> None:
    output = _push(_continuation(stop=("END",), min_tokens=min_tokens), "END, END")
    assert output.text == text
    assert output.stop_reason == "END"


def test_nothing_new_gives_nothing() -> None:
    assert _continuation().take() is None


def test_an_abort_ends_it_once() -> None:
    continuation = _continuation()
    continuation.abort()
    output = continuation.take()
    assert output is not None
    assert output.finish_reason == "abort"
    continuation.abort()
    assert continuation.take() is None


def test_log_probabilities_add_up_over_what_was_taken() -> None:
    continuation = _continuation(logprobs=0)
    places = [TokenLogprobs(Logprob(97, -0.5 * i, 1), []) for i in (1, 2)]
    continuation.push(SequenceOutput(0, [97], logprobs=places[:1]))
    first = continuation.take()
    continuation.push(SequenceOutput(0, [97], "length", logprobs=places[1:]))
    second = continuation.take()
    assert first is not None
    assert second is not None
    assert (first.cumulative_logprob, second.cumulative_logprob) == (-0.5, -1.5)
    assert second.logprobs == places[1:]
