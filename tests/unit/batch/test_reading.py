"""A pipe gives the lines that a file gives, whenever they come."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsa_serve.batch import reading
from nsa_serve.batch.reading import InputFile, Line


@contextmanager
def pipe() -> Iterator[tuple[InputFile, FileIO]]:
    """The reader and the writer, who may close it."""
    theirs, ours = os.pipe()
    with FileIO(ours, "w") as writer, InputFile(Path(f"/dev/fd/{theirs}")) as source:
        os.close(theirs)
        yield source, writer


def from_pipe(data: bytes, size: int) -> list[Line]:
    """What a reader gets when it is written in pieces."""
    with pipe() as (source, writer):

        def write() -> None:
            for start in range(0, len(data), size):
                writer.write(data[start : start + size])
            writer.close()

        thread = threading.Thread(target=write)
        thread.start()
        found = list(source.lines())
        thread.join()
    return found


PIECES = st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"x" * 12])


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=30).map(b"".join), st.integers(1, 40))
def test_a_pipe_gives_the_lines_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int
) -> None:
    path = tmp_path_factory.mktemp("lines") / "in"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "MAX_LINE_BYTES", 10)
        with InputFile(path) as source:
            assert source.num_bytes == len(data)
            assert not source.must_wait
            expected = list(source.lines())
        assert from_pipe(data, size) == expected
    assert sum(line.num_bytes for line in expected) <= len(data)


def test_a_pipe_tells_whether_a_read_would_wait() -> None:
    with pipe() as (source, writer):
        assert source.num_bytes is None
        lines = source.lines()
        assert source.must_wait
        writer.write(b"1\n2\n")
        assert not source.must_wait
        assert next(lines).data == b"1"
        assert not source.must_wait, "the second line has been read already"
        assert next(lines).data == b"2"
        assert source.must_wait
