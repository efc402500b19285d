"""Help fits a terminal of 80 columns, names what flags take, and its examples work."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from nsa_serve.cli.app import app
from nsa_serve.cli.help import EXAMPLES, WORDS
from tests.support.command_line import run_here


def _commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its name behind `nsa-serve`."""
    for name, command in group.commands.items():
        whole = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from _commands(command, whole)
        else:
            yield whole, command


COMMANDS = dict(_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", ["", "bench", *COMMANDS])
def test_help_is_whole_at_80_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_here(*name.split(), "--help") == 0
    shown = capsys.readouterr().out
    assert not re.search(r"^  .*\.\.\.$", shown, re.MULTILINE), "a summary is cut"
    assert max(map(len, shown.splitlines())) <= 80
    assert "list[" not in shown
    assert "[]" not in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_say_what_they_take(name: str) -> None:
    bare = [
        p.name
        for p in COMMANDS[name].params
        if p.metavar is None
        and not getattr(p, "hidden", False)
        and not getattr(p, "is_flag", False)
        and not _is_choice(p)
    ]
    assert bare == []


def _is_choice(parameter: Any) -> bool:
    help_record = parameter.get_help_record(typer.Context(COMMANDS["serve"]))
    return "|" in help_record[0]


def test_no_word_is_left_of_a_flag_that_went() -> None:
    named = {p.name for command in COMMANDS.values() for p in command.params}
    assert {flag for flags in WORDS.values() for flag in flags.split()} <= named


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_command_lines_that_parse(name: str) -> None:
    lines = [line.strip() for line in EXAMPLES[name].strip().splitlines()]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" < ")[0])
        assert words[: 1 + len(name.split())] == ["nsa-serve", *name.split()]
        COMMANDS[name].make_context(name, words[1 + len(name.split()) :])
