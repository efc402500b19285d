"""A model folder that can be served resolves; any other gives one line that names the cause."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.folder import read_config, resolve_model
from nsa_serve.model.loading.write import write_json
from tests.support.model_folders import TINY, edit_json, write_tiny_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "tiny")


def test_a_complete_folder_resolves(folder: Path) -> None:
    model = resolve_model(str(folder))
    assert (model.path, model.name, model.config) == (folder, "tiny", TINY)
    assert model.generation.eos_token_ids == (256, 258)


def test_a_written_config_is_read_back(folder: Path) -> None:
    assert read_config(folder) == TINY


def test_resolving_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from nsa_serve.model.loading.folder import resolve_model;"
        f"resolve_model({str(folder)!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tokenizers_end_token_counts_too(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert resolve_model(str(folder)).generation.eos_token_ids == (258,)


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _replace_by_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def _truncate(name: str, keep: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:keep])

    return change


def _shards(weight_map: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})

    return change


def _header(header: bytes) -> Callable[[Path], None]:
    return _write("model.safetensors", len(header).to_bytes(8, "little") + header)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (_remove("config.json"), "config.json is missing"),
    "config is a folder": (
        _replace_by_folder("config.json"),
        "config.json: Is a directory",
    ),
    "not JSON": (_write("config.json", b"{'a': 1}"), "not valid JSON"),
    "not UTF-8": (_write("config.json", b'{"a": "\xff"}'), "config.json"),
    "empty": (_write("config.json", b""), "not valid JSON"),
    "a list": (_write("config.json", b"[]"), "Expected `object`, got `array`"),
    "deep": (_write("config.json", b'{"a":' + b"[" * 100_000), "config.json"),
    "no model type": (_config(model_type=...), "expected one of: nsa_serve, llama"),
    "unknown model type": (_config(model_type="gpt2"), "'gpt2' is not known, expected one of"),
    "model type of a wrong type": (_config(model_type=["llama"]), "is not known"),
    "missing field": (_config(hidden_size=...), "missing required field `hidden_size`"),
    "extra field": (_config(colour="red"), "unknown field `colour`"),
    "ill-typed field": (_config(num_layers="2"), "Expected `int`, got `str` - at `$.num_layers`"),
    "ill-typed nsa field": (_config(nsa={"window": 1.5}), "at `$.nsa.window`"),
    "unknown choice": (_config(nsa={"compressor": "magic"}), "at `$.nsa.compressor`"),
    "value out of range": (_config(num_heads=3), "num_kv_heads 2 must divide num_heads 3"),
    "nsa value out of range": (_config(nsa={"compress_stride": 5}), "must divide"),
    "rope scaling incomplete": (
        _config(rope_scaling={"rope_type": "yarn", "factor": 2.0}),
        "needs original_max_position_embeddings",
    ),
    "no tokenizer": (_remove("tokenizer.json"), "tokenizer.json is missing"),
    "tokenizer of another model": (_config(vocab_size=258), "the tokenizer has 259 tokens"),
    "tokenizer without a model": (_write("tokenizer.json", b"{}"), "field `model`"),
    "negative token id": (
        _write("tokenizer.json", b'{"model": {"vocab": {"a": -1}}}'),
        "token id -1 is negative",
    ),
    "tokenizer config of a wrong type": (
        _write("tokenizer_config.json", b'{"eos_token": 2}'),
        "at `$.eos_token`",
    ),
    "end token outside": (
        _write("generation_config.json", b'{"eos_token_id": [1, 259]}'),
        "end token 259 is outside the vocabulary of 259",
    ),
    "end token ill-typed": (
        _write("generation_config.json", b'{"eos_token_id": "2"}'),
        "at `$.eos_token_id`",
    ),
    "temperature out of range": (
        _write("generation_config.json", b'{"temperature": -1}'),
        "temperature must be between",
    ),
    "no weights": (_remove("model.safetensors"), "neither model.safetensors nor"),
    "weights truncated": (_truncate("model.safetensors", 5_000), "incomplete metadata"),
    "weights empty": (_write("model.safetensors", b""), "model.safetensors"),
    "header length mutated": (
        _write("model.safetensors", b"\xff" * 8 + b"{}"),
        "model.safetensors: ",
    ),
    "header not JSON": (_header(b"{]"), "model.safetensors: "),
    "integer weights": (
        _header(b'{"a":{"dtype":"I64","shape":[0],"data_offsets":[0,0]}}'),
        "a is I64, expected one of F32, F16, BF16",
    ),
    "shard missing": (_shards({"a": "other.safetensors"}), "'other.safetensors', which is not in"),
    "shard outside": (_shards({"a": "../part.safetensors"}), "which is not in the folder"),
    "shard without the tensor": (_shards({"a": "part.safetensors"}), "tensor a is not in part"),
    "index of a wrong type": (_shards(["a"]), "at `$.weight_map`"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_line(folder: Path, fault: str) -> None:
    break_it, cause = FAULTS[fault]
    break_it(folder)
    with pytest.raises(ModelLoadError) as caught:
        resolve_model(str(folder))
    message = str(caught.value)
    assert cause in message
    assert str(folder) in message
    assert "\n" not in message


def test_a_name_of_a_hub_is_told_to_be_no_folder() -> None:
    with pytest.raises(ModelLoadError, match="exist: a model is a folder, none is fetched by its"):
        resolve_model("zen-E/NSA-1B")
    with pytest.raises(ModelLoadError, match=r"does not exist$"):
        resolve_model("./zen-E/NSA-1B")


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="does not exist"):
        read_config(tmp_path / "none")
    with pytest.raises(ModelLoadError, match="does not exist"):
        resolve_model(str(tmp_path / "none"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError, match="is a file; a model is a folder"):
        resolve_model(str(file))


def test_shards_are_found_through_the_index(folder: Path) -> None:
    _shards({"model.norm.weight": "part.safetensors"})(folder)
    assert resolve_model(str(folder)).config == TINY
