"""`serve --config`: a file gives flags, the command line wins, and nothing is guessed."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_api import server
from nsa_api.settings import ApiSettings
from nsa_serve.config import EngineConfig
from tests.support.command_line import run_here

Serve = Callable[..., tuple[EngineConfig, ApiSettings]]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Runs `serve`; the configuration and settings that it would serve."""
    seen: list[tuple[EngineConfig, ApiSettings]] = []
    monkeypatch.delenv("NSA_SERVE_API_KEY", raising=False)
    monkeypatch.setattr(server, "serve", lambda *served: seen.append(served))

    def run(*arguments: str) -> tuple[EngineConfig, ApiSettings]:
        assert run_here("serve", *arguments) == 0
        return seen[-1]

    return run


def _write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


TOML = """
model = "folder"
port = 9
api-key = ["a", "b"]
served_model_name = "one"
enable_prefix_caching = false
gpu-memory-utilization = 0.5
"""
JSON = """{"model": "folder", "port": 9, "api-key": ["a", "b"], "served_model_name": "one",
"enable_prefix_caching": false, "gpu-memory-utilization": 0.5}"""


@pytest.mark.parametrize(("name", "text"), [("c.toml", TOML), ("c.json", JSON)])
def test_keys_are_flags(serve: Serve, tmp_path: Path, name: str, text: str) -> None:
    config, settings = serve("--batch-dir", "off", "--config", _write(tmp_path / name, text))
    assert config == EngineConfig(
        model="folder", enable_prefix_caching=False, gpu_memory_utilization=0.5
    )
    expected = ApiSettings(port=9, api_keys=("a", "b"), served_model_names=("one",))
    assert settings == expected


def test_the_command_line_wins_wherever_it_stands(serve: Serve, tmp_path: Path) -> None:
    file = _write(tmp_path / "c.toml", TOML)
    for arguments in (["--port", "7", "--config", file], ["--config", file, "--port", "7"]):
        config, settings = serve("other", "--api-key", "c", *arguments)
        assert (config.model, settings.port, settings.api_keys) == ("other", 7, ("c",))


def test_a_key_in_the_environment_wins_over_the_file(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NSA_SERVE_API_KEY", "e")
    assert serve("--config", _write(tmp_path / "c.toml", TOML))[1].api_keys == ("e",)


def test_one_key_is_not_taken_for_its_letters(serve: Serve, tmp_path: Path) -> None:
    _, settings = serve("--config", _write(tmp_path / "c.toml", 'api-key = "secret"'))
    assert settings.api_keys == ("secret",)


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("c.toml", "prot = 1", "unknown key 'prot'"),
        ("c.toml", "config = 'd.toml'", "unknown key 'config'"),
        ("c.toml", "[engine]\nport = 1", "unknown key 'engine'"),
        ("c.toml", "[port]\na = 1", "must be a value, not a table"),
        ("c.toml", "port = [1, 2]", "must be one value, not a list"),
        ("c.toml", "port = ", "is not valid TOML"),
        ("c.json", "{", "is not valid JSON"),
        ("c.json", "[]", "is not valid JSON"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_line(
    tmp_path: Path, name: str, text: str, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("serve", "--config", _write(tmp_path / name, text)) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / name}")
    assert cause in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("serve", "--config", "/nowhere/c.toml") == 1
    assert capsys.readouterr().err == "error: /nowhere/c.toml: No such file or directory\n"


def test_a_value_of_the_wrong_type_names_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("serve", "--config", _write(tmp_path / "c.toml", 'port = "x"')) == 2
    assert "--port" in capsys.readouterr().err
