"""`generate` as a user runs it: the text and nothing else on standard output."""

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.support.command_line import expected_answer, expected_text, start
from tests.support.model_folders import write_tiny_folder

FIGURES = rb"\d+ tokens?(, \d+\.\d tokens/s)?, first token after \d+\.\d\d s\n"


def _generate(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    with start("generate", "--runner", "stand-in", "--max-tokens", "12", *arguments) as process:
        out, err = process.communicate(stdin, timeout=60)
    return process.returncode, out, err


def test_the_text_and_then_the_figures() -> None:
    code, out, err = _generate("--raw", "hello")
    assert code == 0
    assert out.decode() == expected_text("hello", 12) + "\n"
    assert re.fullmatch(FIGURES, err), err
    assert err.startswith(b"12 tokens")


def test_a_prompt_is_a_users_message_where_there_is_a_chat_template() -> None:
    _, out, _ = _generate("hello")
    assert out.decode() == expected_answer([{"role": "user", "content": "hello"}], 12) + "\n"


def test_a_prompt_comes_through_a_pipe_without_its_line_end() -> None:
    _, out, _ = _generate("--raw", stdin="über\nzwei\n".encode())
    assert out.decode() == expected_text("über\nzwei", 12) + "\n"


@pytest.mark.parametrize(
    ("stdin", "cause"), [(b"", b"the prompt is empty"), (b"\xff", b"not UTF-8")]
)
def test_nothing_to_continue_is_one_line(stdin: bytes, cause: bytes) -> None:
    code, out, err = _generate(stdin=stdin)
    assert (code, out) == (1, b"")
    assert err.startswith(b"error: ")
    assert cause in err
    assert err.count(b"\n") == 1


def test_an_engine_that_cannot_load_is_one_line(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    with start("generate", "hi", "--model", str(folder), "--block-size", "3") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, b"")
    assert err.startswith(b"error: block_size 3 must be a multiple of")
    assert err.count(b"\n") == 1


@contextmanager
def _endless(seconds_per_token: float) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A `generate` whose answer goes on for a while, and its standard output."""
    arguments = ["generate", "--runner", "stand-in", "--raw", "hello"]
    with start(*arguments, stand_in={"step_seconds": seconds_per_token}) as process:
        assert process.stdout is not None
        yield process, process.stdout


def test_text_comes_while_it_is_made_and_ctrl_c_ends_it() -> None:
    with _endless(0.05) as (process, stdout):
        assert stdout.read(4)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err == b""


def test_a_reader_that_goes_away_is_no_error_to_talk_about() -> None:
    with _endless(0.01) as (process, stdout):
        stdout.read(1)
        stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(20) == 1
