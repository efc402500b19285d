"""Bodies that were good once: values swapped, bytes cut and put in, and what hurts parsers."""

import re

from hypothesis import strategies as st

VALUES = (
    *(b"0", b"-1", b"3", b"1.5", b"2147483648", b"9" * 19, b"true", b"null", b"[]", b"{}", b"[[]]"),
    *(b'{"a":1}', b'[1,"x"]', b'""', b'"x"', b'"\\u0000"', b'"' + b"x" * 70_000 + b'"'),
)
NO_VALUES = (
    *(b"NaN", b"-Infinity", b"1e400", b"9" * 400),
    *(b'"\\ud800"', b'"\xff"', b"[" * 3000 + b"]" * 3000),
)
PIECES = (
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\", b'"', b",", b":", b";", b"="),
    *(b"{", b"}", b"[", b"]", b"\r\n", b"\n", b"\r\n\r\n", b"--", b"-", b'{"a":' * 1500),
)
Edit = tuple[int, int, bytes]


def edits(body: bytes) -> st.SearchStrategy[list[Edit]]:
    """Changes of it, one after the other: where, how many bytes go, and what comes there."""
    found = re.finditer(rb'"[^"]*"|-?\d[\d.]*|true|false|null', body)
    tokens = [match.span() for match in found if body[match.end() : match.end() + 1] != b":"]
    values = (*VALUES, *(body[start:end] for start, end in tokens))
    place = st.sampled_from([(start, end - start) for start, end in tokens])
    sound = st.builds(_edit, place, st.sampled_from(values))
    swap = st.builds(_edit, place, st.sampled_from((*values, *NO_VALUES)))
    piece = st.sampled_from(PIECES) | st.binary(max_size=4)
    cut = st.tuples(st.integers(0, len(body)), st.integers(0, 6), piece)
    tail = st.builds(lambda start: (start, len(body), b""), st.integers(0, len(body)))
    return st.lists(sound, min_size=1, max_size=3) | st.lists(cut | swap | tail, min_size=1)


def _edit(place: tuple[int, int], piece: bytes) -> Edit:
    return (*place, piece)


def mutated(body: bytes, changes: list[Edit]) -> bytes:
    """The body after all of them, from its end on, so that places stay what they are."""
    for start, length, piece in sorted(changes, reverse=True):
        body = body[:start] + piece + body[start + length :]
    return body
