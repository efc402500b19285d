"""Forms in any pieces."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsa_api.batches.multipart import boundary_of, parts
from nsa_api.errors import ApiError

BOUNDARY = b"-x-"


def read(body: bytes, size: int) -> list[tuple[str, str | None, bytes]]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    async def whole() -> list[tuple[str, str | None, bytes]]:
        return [
            (part.name, part.filename, b"".join([piece async for piece in part.pieces]))
            async for part in parts(chunks(), BOUNDARY)
        ]

    return asyncio.run(whole())


def form(*fields: tuple[str, bytes]) -> bytes:
    made = [
        b'---x-\r\nContent-Disposition: form-data; name="%s"; filename="a b.jsonl"\r\n\r\n%s\r\n'
        % (name.encode(), value)
        for name, value in fields
    ]
    return b"".join(made) + b"---x---\r\n"


NEARLY = st.lists(st.sampled_from([b"\r", b"\n", b"-", b"x", b"--", b"\r\n--", b"\r\n--", b"a"]))


def without_boundary(value: bytes) -> bytes:
    """No value holds it: a client takes another. What is left of one must not make a new one."""
    while (shorter := value.replace(b"--" + BOUNDARY, b"")) != value:
        value = shorter
    return value


@given(st.lists(NEARLY.map(b"".join), min_size=1, max_size=3), st.integers(1, 40))
def test_every_byte_arrives_whatever_the_pieces(values: list[bytes], size: int) -> None:
    values = [without_boundary(value) for value in values]
    fields = [(f"f{i}", value) for i, value in enumerate(values)]
    expected = [(name, "a b.jsonl", value) for name, value in fields]
    assert read(form(*fields), size) == expected


@given(st.binary(max_size=200), st.integers(1, 50))
def test_what_is_no_form_is_a_400(body: bytes, size: int) -> None:
    with pytest.raises(ApiError) as refusal:
        read(body, size)
    assert refusal.value.status_code == 400


@given(st.integers(0, 10_000))
def test_a_form_that_ends_early_is_a_400(length: int) -> None:
    body = form(("purpose", b"batch"), ("file", b"{}\n" * 20)).removesuffix(b"--\r\n")
    with pytest.raises(ApiError):
        read(body[: length % (len(body) + 1)], 7)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; boundary="a b"', b"a b"),
    ],
)
def test_the_boundary_is_in_the_content_type(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type", ["", "application/json; boundary=a", "multipart/form-data", "multipart/mixed"]
)
def test_another_content_type_is_refused(content_type: str) -> None:
    with pytest.raises(ApiError):
        boundary_of(content_type)
