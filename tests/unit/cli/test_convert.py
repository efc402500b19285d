"""`nsa-serve convert` as a user runs it."""

from pathlib import Path

import pytest

from nsa_serve.model.loading.folder import resolve_model
from tests.support.command_line import run_here
from tests.support.model_folders import write_tiny_folder
from tests.support.originals import llama_nsa


def test_it_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama_nsa.write_random(tmp_path / "source")
    target = tmp_path / "target"
    assert run_here("convert", str(tmp_path / "source"), str(target)) == 0
    captured = capsys.readouterr()
    assert captured.err == f"{target}: llama-nsa, 2 layers, 4 heads\n"
    assert captured.out == ""
    assert resolve_model(str(target)).config.nsa is not None


def test_what_is_wrong_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tiny_folder(tmp_path / "source")
    for target in (source, tmp_path / "other"):
        (tmp_path / "other").mkdir(exist_ok=True)
        assert run_here("convert", str(source), str(target)) == 1
        assert capsys.readouterr().err.count("\n") == 1
    assert run_here("convert", str(source), str(tmp_path / "other"), "--force") == 0
    assert run_here("convert", str(tmp_path / "none"), str(tmp_path / "x")) == 1
    assert capsys.readouterr().err.endswith("none does not exist\n")
