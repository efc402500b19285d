"""A checkpoint of any family becomes a folder of ours: the same model, whole or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file, save_file
from torch import Tensor

from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading import convert
from nsa_serve.model.loading.folder import ModelFolder, resolve_model
from nsa_serve.model.loading.weights import load_decoder
from nsa_serve.model.loading.write import OUR_MODEL_TYPE
from nsa_serve.text.tokenizer import Tokenizer
from tests.support.gguf_files import kind_of, random_weights, write_gguf
from tests.support.model_folders import edit_json, write_tiny_folder
from tests.support.originals import llama_nsa, nsa_vibe, xunhao
from tests.support.originals.every import WRITERS

NAMES = {
    "ours": "nsa_serve",
    "fla": "nsa",
    "llama_nsa": "llama-nsa",
    "fsa": "xunhao",
    "nsa_vibe": "nsa-vibe",
}


def run(source: Path, target: Path, **options: Any) -> tuple[str, ModelFolder]:
    """Convert, in silence."""
    return convert.convert_checkpoint(source, target, progress=lambda *_: None, **options)


@pytest.fixture(params=WRITERS)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def _stored(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def _same_model(a: Path, b: Path) -> None:
    one, other = resolve_model(str(a)), resolve_model(str(b))
    assert one.config == other.config
    assert one.generation == other.generation
    states = [load_decoder(model, dtype=None).state_dict() for model in (one, other)]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert tensor.dtype == states[1][name].dtype
        assert torch.equal(tensor, states[1][name]), name


def test_what_it_makes_is_the_same_model_in_our_format(family: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "made" / "target"
    WRITERS[family](source)
    found, folder = run(source, target)
    assert found == NAMES.get(family, family)
    assert (folder.path, folder.family.name) == (target, OUR_MODEL_TYPE)
    assert folder.has_tokenizer
    _same_model(source, target)


def test_types_are_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    xunhao.write_random(source)
    state = {name: tensor.bfloat16() for name, tensor in _stored(source).items()}
    state["layers.0.nsa.intra_block_pe"] = state["layers.0.nsa.intra_block_pe"].half()
    save_file(state, source / "model.safetensors")
    run(source, target)
    _same_model(source, target)
    dtypes = {name: tensor.dtype for name, tensor in _stored(target).items()}
    assert dtypes.pop("model.layers.0.self_attn.nsa.k_positions") == torch.float16
    assert set(dtypes.values()) == {torch.bfloat16}


def test_a_tokenizer_and_what_belongs_to_it_are_carried_over(tmp_path: Path) -> None:
    source, target = write_tiny_folder(tmp_path / "source"), tmp_path / "target"
    (source / "LICENSE.txt").write_text("as you like")
    edit_json(source / "generation_config.json", temperature=0.3)
    run(source, target)
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE.txt"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    assert resolve_model(str(target)).generation.temperature == 0.3


def test_end_tokens_of_config_json_are_carried_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    llama_nsa.write_random(source, eos_token_id=[7, 9])
    assert run(source, tmp_path / "target")[1].generation.eos_token_ids == (7, 9)


def test_tokens_that_are_bytes_get_a_tokenizer_of_bytes(tmp_path: Path) -> None:
    nsa_vibe.write_random(tmp_path / "source")
    run(tmp_path / "source", tmp_path / "target")
    tokenizer = Tokenizer.from_folder(tmp_path / "target")
    assert tokenizer.encode("ß!") == [0xC3, 0x9F, 0x21]
    assert tokenizer.decode([0xC3, 0x9F, 0x21]) == "ß!"


def test_a_tokenizer_can_come_from_elsewhere(tmp_path: Path) -> None:
    source, other = write_tiny_folder(tmp_path / "source"), write_tiny_folder(tmp_path / "other")
    (source / "tokenizer.json").unlink()
    with pytest.raises(ModelLoadError, match=r"source has no tokenizer\.json; --tokenizer can"):
        run(source, tmp_path / "target")
    run(source, tmp_path / "target", tokenizer=other)
    tokenizer = (tmp_path / "target" / "tokenizer.json").read_bytes()
    assert tokenizer == (other / "tokenizer.json").read_bytes()


def test_a_tokenizer_of_another_model_is_refused_by_its_own_name(tmp_path: Path) -> None:
    llama_nsa.write_random(tmp_path / "source")
    other = write_tiny_folder(tmp_path / "other")
    with pytest.raises(ModelLoadError, match="other: the tokenizer has 259 tokens") as caught:
        run(tmp_path / "source", tmp_path / "target", tokenizer=other)
    assert ".part-" not in str(caught.value)


def _pickle(folder: Path, name: str, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    state = _stored(folder)
    (folder / "model.safetensors").unlink()
    torch.save(wrap(state), folder / name)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "step": 7},
        lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["bare", "with_a_step", "of_a_wrapper"],
)
@pytest.mark.parametrize("family", ["xunhao", "fsa", "nsa_vibe", "lucidrains"])
def test_saved_state_dicts_convert_for_families_without_a_format(
    family: str, wrap: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    plain, saved = tmp_path / "plain", tmp_path / "saved"
    for folder in (plain, saved):
        WRITERS[family](folder)
    _pickle(saved, "model.pt", wrap)
    with pytest.raises(ModelLoadError, match="only what `nsa-serve convert` may read"):
        resolve_model(str(saved))
    run(saved, tmp_path / "target")
    _same_model(plain, tmp_path / "target")
    run(saved / "model.pt", tmp_path / "again")
    _same_model(plain, tmp_path / "again")


def test_saved_state_dicts_of_other_families_are_refused(tmp_path: Path) -> None:
    llama_nsa.write_random(tmp_path / "source")
    _pickle(tmp_path / "source", "pytorch_model.bin", lambda state: state)
    with pytest.raises(ModelLoadError, match="models of llama-nsa come as safetensors"):
        run(tmp_path / "source", tmp_path / "target")


class _Innocent:
    """An object that no file of tensors holds."""


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"layers": _Innocent()}, "no file of tensors only"),
        ({"step": 3}, "'step' is a int, no tensor"),
        ([1, 2], "holds no state dict"),
        ({"norm.weight": torch.ones(2, dtype=torch.int64)}, "expected one of F32, F16, BF16"),
    ],
)
def test_anything_but_tensors_is_refused(content: Any, cause: str, tmp_path: Path) -> None:
    xunhao.write_random(tmp_path / "source")
    _pickle(tmp_path / "source", "model.pt", lambda _: content)
    with pytest.raises(ModelLoadError, match=cause) as caught:
        run(tmp_path / "source", tmp_path / "target")
    assert "\n" not in str(caught.value)


def test_a_damaged_state_dict_is_refused(tmp_path: Path) -> None:
    xunhao.write_random(tmp_path / "source")
    _pickle(tmp_path / "source", "model.pt", lambda state: state)
    path = tmp_path / "source" / "model.pt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelLoadError, match="no file of tensors only"):
        run(tmp_path / "source", tmp_path / "target")


def test_a_gguf_llama_converts_to_a_dense_model(tmp_path: Path) -> None:
    weights = random_weights()
    write_gguf(tmp_path / "tiny.gguf", weights)
    found, folder = run(tmp_path / "tiny.gguf", tmp_path / "target")
    assert (found, folder.config.nsa) == ("llama", None)
    assert folder.generation.eos_token_ids == (2,)
    stored = _stored(tmp_path / "target")
    norm = stored["model.layers.0.input_layernorm.weight"]
    assert norm.dtype == torch.float32
    np.testing.assert_array_equal(norm.numpy(), weights["blk.0.attn_norm.weight"])
    name = "blk.1.ffn_up.weight"
    up = stored["model.layers.1.mlp.up_proj.weight"]
    expected = dequantize(quantize(weights[name], kind_of(name)), kind_of(name))
    np.testing.assert_array_equal(up.numpy(), expected.astype(np.float16))
    assert load_decoder(folder).config == folder.config


def test_a_gguf_file_without_a_tensor_is_refused(tmp_path: Path) -> None:
    weights = {k: w for k, w in random_weights().items() if k != "blk.1.attn_q.weight"}
    write_gguf(tmp_path / "tiny.gguf", weights)
    with pytest.raises(ModelLoadError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        run(tmp_path / "tiny.gguf", tmp_path / "target")


def test_a_folder_that_exists_is_replaced_only_by_force(tmp_path: Path) -> None:
    source, target = write_tiny_folder(tmp_path / "source"), tmp_path / "target"
    llama_nsa.write_random(target)
    (target / "note").write_text("mine")
    with pytest.raises(ConfigError, match="target exists already; --force replaces it"):
        run(source, target)
    assert (target / "note").exists()
    run(source, target, force=True)
    _same_model(source, target)
    assert not (target / "note").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_force_replaces_no_folder_of_anything_else(tmp_path: Path) -> None:
    source, target = write_tiny_folder(tmp_path / "source"), tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="no model folder, so it is not replaced"):
        run(source, target, force=True)
    with pytest.raises(ConfigError, match="holds what is to be converted"):
        run(source, source, force=True)
    with pytest.raises(ConfigError, match="holds what is to be converted"):
        run(source, tmp_path, force=True)


def test_what_was_there_survives_a_conversion_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = write_tiny_folder(tmp_path / "source"), write_tiny_folder(tmp_path / "target")
    before = {path.name: path.read_bytes() for path in target.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_flush", fail)
    with pytest.raises(ConfigError, match=r"target cannot be written \(No space left on device\)"):
        run(source, target, force=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    fractions: list[float] = []
    source = write_tiny_folder(tmp_path / "source")
    convert.convert_checkpoint(
        source, tmp_path / "target", progress=lambda _, fraction: fractions.append(fraction)
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) == len(_stored(source))
