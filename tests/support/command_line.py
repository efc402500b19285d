"""Command lines run in the test's own process, or as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsa_serve.cli.main import main
from nsa_serve.engine.stand_in import OPTIONS_VARIABLE, expected_continuation
from nsa_serve.text.tokenizer import Tokenizer

COMMAND = str(Path(sys.executable).with_name("nsa-serve"))


def run_here(*arguments: str) -> int:
    """Run a command line in this process; its exit status."""
    with pytest.raises(SystemExit) as exited:
        main(list(arguments))
    code = exited.value.code
    assert isinstance(code, int)
    return code


def start(*arguments: str, stand_in: dict[str, Any] | None = None) -> subprocess.Popen[bytes]:
    """Start `nsa-serve` with pipes at all three ends."""
    options = msgspec.json.encode(stand_in or {}).decode()
    return subprocess.Popen(
        [COMMAND, *arguments],
        env={**os.environ, OPTIONS_VARIABLE: options},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def expected_text(prompt: str, num_tokens: int) -> str:
    """What a stand-in continues a bare prompt with."""
    return _continued(Tokenizer.byte_level().encode(prompt), num_tokens)


def expected_answer(messages: list[dict[str, str]], num_tokens: int) -> str:
    """What a stand-in says in a conversation."""
    return _continued(Tokenizer.byte_level().encode_chat(messages), num_tokens)


def _continued(prompt_token_ids: list[int], num_tokens: int) -> str:
    return Tokenizer.byte_level().decode(expected_continuation(prompt_token_ids, num_tokens))
