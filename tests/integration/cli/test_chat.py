"""`chat` keeps a conversation, and Ctrl-C stops an answer, not the program."""

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nsa_serve.engine.stand_in import OPTIONS_VARIABLE
from tests.support.command_line import COMMAND, expected_answer, start

CTRL_C, CTRL_D = b"\x03", b"\x04"


def _chat(lines: str, *arguments: str) -> tuple[int, str, str]:
    with start("chat", "--runner", "stand-in", "--max-tokens", "8", *arguments) as process:
        out, err = process.communicate(lines.encode(), timeout=60)
    return process.returncode, out.decode(), err.decode()


def _answers(*turns: str) -> list[str]:
    """What a stand-in says to these turns of one conversation."""
    messages: list[dict[str, str]] = []
    answers = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        answers.append(expected_answer(messages, 8))
        messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_each_piped_line_is_a_turn_of_one_conversation() -> None:
    code, out, err = _chat("one\n\ntwo\n")
    assert code == 0
    assert out == "".join(f"{answer}\n" for answer in _answers("one", "two"))
    assert [line.partition(", ")[0] for line in err.splitlines()] == ["8 tokens"] * 2


def test_reset_forgets_and_exit_leaves() -> None:
    code, out, _ = _chat("one\n/reset\ntwo\n/exit\nthree\n")
    assert code == 0
    assert out == "".join(f"{answer}\n" for answer in _answers("one") + _answers("two"))


def test_a_conversation_too_long_for_the_model_ends_a_pipe_with_one_line() -> None:
    code, _, err = _chat("x" * 200 + "\n", "--max-model-len", "64")
    assert code == 1
    assert err.startswith("error: This model's maximum context length is 64 tokens")
    assert err.count("\n") == 1


class Terminal:
    """The user's side of a pseudo-terminal."""

    def __init__(self, fd: int, process: subprocess.Popen[bytes]) -> None:
        self._fd, self.process = fd, process
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def until(self, text: bytes, seconds: float = 30.0) -> bytes:
        """Everything shown since the last call, up to and with `text`."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            readable, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
            assert readable, self._seen
            self._seen += os.read(self._fd, 4096)
        shown, _, self._seen = self._seen.partition(text)
        return shown + text

    def rest(self) -> bytes:
        """Everything until the program ends."""
        with suppress(OSError):  # how Linux says that the other end is closed
            while data := os.read(self._fd, 4096):
                self._seen += data
        return self._seen


@contextmanager
def _terminal(*arguments: str, **stand_in: Any) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "chat", "--runner", "stand-in", *arguments],
        env={**os.environ, OPTIONS_VARIABLE: json.dumps(stand_in), "TERM": "dumb"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: os.login_tty(os.dup(theirs)),
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_command_that_is_none_is_not_sent_to_the_model() -> None:
    with _terminal("--max-tokens", "8") as terminal:
        terminal.until(b"> ")
        terminal.type(b"/help\n")
        terminal.until(b"/help\r\n")
        shown = terminal.until(b"> ")
        assert b"/reset forgets the conversation" in shown
        assert b"tokens" not in shown
        terminal.type(b"/usr/bin is a folder\n")
        assert b"8 tokens" in terminal.until(b"first token")


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on() -> None:
    with _terminal("--max-tokens", "200", step_seconds=0.05) as terminal:
        terminal.until(b"> ")
        terminal.type(b"hello\n")
        terminal.until(b"hello\r\n")
        time.sleep(0.5)
        terminal.type(CTRL_C)
        shown = terminal.until(b"> ", seconds=5)
        assert b"tokens/s" in shown
        terminal.type(b"/reset\n")
        terminal.until(b"/reset\r\n")
        terminal.until(b"> ")
        terminal.type(b"/exit\n")
        rest = terminal.rest()
        assert terminal.process.wait(10) == 0
        assert b"Traceback" not in rest


def test_ctrl_c_at_the_prompt_does_nothing_and_ctrl_d_leaves() -> None:
    with _terminal() as terminal:
        terminal.until(b"> ")
        terminal.type(b"half a ques")
        terminal.until(b"half a ques")
        time.sleep(0.2)  # the line editor misses a signal that comes while it still echoes
        terminal.type(CTRL_C)
        terminal.until(b"> ")
        terminal.type(CTRL_D)
        rest = terminal.rest()
        assert terminal.process.wait(10) == 0
        assert b"Traceback" not in rest


def test_a_turn_too_long_is_told_and_forgotten() -> None:
    with _terminal("--max-model-len", "64", "--max-tokens", "4") as terminal:
        terminal.until(b"> ")
        terminal.type(b"x" * 100 + b"\n")
        assert b"maximum context length is 64 tokens" in terminal.until(b"forgets")
        terminal.until(b"> ")
        terminal.type(b"hi\n")
        terminal.until(b"4 tokens")
