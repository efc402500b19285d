"""Stop strings end a text at the same place however tokens cut it."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nsa_serve.engine.detokenize import StopStrings

ALPHABET = "abé"


def _pieces(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _shown(text: str, stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """By definition: read character by character until one completes a stop string."""
    for end in range(1, len(text) + 1):
        ends_here = [s for s in stop if text[:end].endswith(s)]
        if ends_here:
            found = max(ends_here, key=len)
            return text[: end if include else end - len(found)], found
    return text, None


@given(
    text=st.text(ALPHABET, max_size=40),
    stop=st.lists(st.text(ALPHABET, min_size=1, max_size=6), max_size=4).map(tuple),
    cuts=st.lists(st.integers(0, 1000), max_size=40),
    include=st.booleans(),
)
def test_every_split_shows_the_same_text(
    text: str, stop: tuple[str, ...], cuts: list[int], include: bool
) -> None:
    checker = StopStrings(stop, include=include)
    shown = "".join([checker.push(piece) for piece in _pieces(text, cuts)]) + checker.flush()
    assert (shown, checker.matched) == _shown(text, stop, include)


@given(
    text=st.text(ALPHABET, max_size=40),
    stop=st.lists(st.text(ALPHABET, min_size=2, max_size=6), min_size=1, max_size=3).map(tuple),
)
def test_nothing_is_shown_that_a_stop_string_could_still_take_back(
    text: str, stop: tuple[str, ...]
) -> None:
    checker, shown = StopStrings(stop, include=False), ""
    final, _ = _shown(text, stop, include=False)
    for character in text:
        shown += checker.push(character)
        assert final.startswith(shown)


def test_no_more_is_held_back_than_could_become_a_stop_string() -> None:
    checker = StopStrings(("END",), include=False)
    assert [checker.push(piece) for piece in ("abcE", "N", "x", "yz")] == ["abc", "", "ENx", "yz"]


def test_a_stop_string_passed_over_does_not_end_later() -> None:
    checker = StopStrings(("ab",), include=False)
    assert checker.push("xab", may_end=False) == "xab"
    assert checker.push("ya") == "y"
    assert checker.push("b") == ""
    assert checker.matched == "ab"
