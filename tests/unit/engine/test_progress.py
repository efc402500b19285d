"""The progress bar shows itself on terminals only, and only for long work."""

import sys

import pytest

from nsa_serve.engine import progress
from nsa_serve.engine.progress import ProgressBar


def _shown(capsys: pytest.CaptureFixture[str]) -> str:
    with ProgressBar("Working", 3, enabled=True) as bar:
        bar.advance(3)
    return capsys.readouterr().err


def test_long_work_on_a_terminal_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_SHOWN", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "Working" in _shown(capsys)


def test_short_work_is_not_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert _shown(capsys) == ""


def test_nothing_is_shown_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_SHOWN", 0.0)
    assert _shown(capsys) == ""
