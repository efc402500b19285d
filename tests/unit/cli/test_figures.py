"""The line of figures under an answer."""

import time

import pytest

from nsa_serve.cli.session import Answer


def _figures(*steps: tuple[float, int]) -> str:
    """The line for an answer whose tokens came in steps of (seconds after asking, tokens)."""
    answer = Answer(asked=10.0)
    with pytest.MonkeyPatch.context() as patch:
        for seconds, num_tokens in steps:
            patch.setattr(time, "perf_counter", lambda now=10.0 + seconds: now)
            answer.add("x", num_tokens)
    return str(answer)


def test_the_rate_is_that_after_the_first_token() -> None:
    figures = _figures((2.0, 1), (2.5, 1), (3.0, 1))
    assert figures == "3 tokens, 2.0 tokens/s, first token after 2.00 s"


def test_tokens_that_come_with_the_first_count_for_no_rate() -> None:
    figures = _figures((2.0, 5), (3.0, 2))
    assert figures == "7 tokens, 2.0 tokens/s, first token after 2.00 s"


def test_one_token_has_no_rate() -> None:
    assert _figures((0.25, 1)) == "1 token, first token after 0.25 s"


def test_an_answer_stopped_before_its_first_token_has_no_times() -> None:
    assert _figures() == "0 tokens"
