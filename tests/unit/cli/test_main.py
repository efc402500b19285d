"""How a command line ends."""

from pathlib import Path

import pytest

from nsa_serve import __version__
from nsa_serve.cli import generate
from nsa_serve.errors import EngineDeadError
from tests.support.command_line import run_here


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("--version") == 0
    assert capsys.readouterr().out == f"nsa-serve {__version__}\n"


@pytest.mark.parametrize("command", [["plan"], ["chat"], ["generate", "hi", "--model"]])
def test_a_model_that_is_not_there_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(*command, str(tmp_path / "none")) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (EngineDeadError("the engine is gone"), 1, "error: the engine is gone\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
    ],
)
def test_no_end_prints_a_traceback(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(generate, "open_session", fail)
    assert run_here("generate", "hi") == code
    assert capsys.readouterr().err == said
