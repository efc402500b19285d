"""The built-in model, as a new user meets it."""

import subprocess

from tests.support.command_line import COMMAND


def test_it_knows_the_capital_of_france() -> None:
    result = subprocess.run(
        [COMMAND, "generate", "What is the capital of France?", "--temperature", "0"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
    assert "tokens/s" in result.stderr.splitlines()[-1]
