"""A start that cannot succeed: one line that names the cause, soon, and a failing status."""

import resource
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.support.command_line import start
from tests.support.model_folders import edit_json, write_tiny_folder

SECONDS = 10.0
"""Of the process itself and its engine: a test machine may be busy with other things."""
WEIGHTS, CONFIG = "model.safetensors", "config.json"


def _cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def _header_of_nonsense(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:8] + b"\xff" * 64 + data[72:])


def _length_beyond_the_file(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes((2**63 - 1).to_bytes(8, "little") + data[8:])


def _empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[]")


def _no_json(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


FOLDER_FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "safetensors"),
    "weights cut": (_cut, WEIGHTS),
    "weights' header is nonsense": (_header_of_nonsense, WEIGHTS),
    "weights' header is too long": (_length_beyond_the_file, WEIGHTS),
    "weights are empty": (_empty, WEIGHTS),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "config"),
    "config is no JSON": (_no_json, CONFIG),
    "another shape": (lambda folder: edit_json(folder / CONFIG, hidden_size=32), "shape"),
    "bad value": (lambda folder: edit_json(folder / CONFIG, num_attention_heads=-4), "heads"),
    "no tokenizer of its kind": (_no_tokenizer, "tokenizer"),
}
FLAG_FAULTS = {
    "no such folder": (["/no/such/folder"], "/no/such/folder"),
    "no such flag": (["--no-such-flag"], "--no-such-flag"),
    "bad value of a flag": (["--max-num-seqs", "0"], "max_num_seqs"),
    "no number": (["--port", "high"], "port"),
    "no such device": (["--device", "tpu"], "device"),
    "no such file of flags": (["--config", "/no/such/file.toml"], "/no/such/file.toml"),
}
BY_DEFAULT = {"weights cut", "another shape", "bad value of a flag"}


def _refusal(*arguments: str) -> str:
    """What it prints before it ends by itself."""
    used = _cpu_seconds()
    with start("serve", "--port", "0", *arguments) as process:
        try:
            out, err = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode != 0
    assert out == b""
    assert b"Traceback" not in err
    assert _cpu_seconds() - used < SECONDS
    return err.decode()


def _cpu_seconds() -> float:
    """Of children that have ended, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _faults(names: Iterable[str]) -> list[ParameterSet]:
    """A process for each takes seconds: most of them are slow."""
    slow = (pytest.mark.slow,)
    return [pytest.param(name, marks=() if name in BY_DEFAULT else slow) for name in names]


@pytest.mark.parametrize("fault", _faults(FOLDER_FAULTS))
def test_a_folder_that_cannot_be_served(fault: str, tmp_path: Path) -> None:
    spoil, named = FOLDER_FAULTS[fault]
    spoil(write_tiny_folder(tmp_path / "model"))
    err = _refusal(str(tmp_path / "model"))
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert named in err


@pytest.mark.parametrize("fault", _faults(FLAG_FAULTS))
def test_flags_that_cannot_be_had(fault: str) -> None:
    flags, named = FLAG_FAULTS[fault]
    err = _refusal(*flags)
    assert named in err or named.replace("_", "-") in err


def test_a_cache_that_memory_cannot_hold(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path)
    err = _refusal(str(folder), "--device", "cpu", "--num-pages", "1000000000")
    assert err.startswith("error: no memory for this cache: it needs ")
    assert err.count("\n") == 1
