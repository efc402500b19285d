"""A Llama out of a GGUF file is the model that went into it."""

from pathlib import Path

import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.gguf import GGUFFile
from nsa_serve.model.loading.gguf_llama import read_config, read_tensors
from nsa_serve.model.loading.gguf_tokenizer import read_tokenizer
from tests.support import gguf_files
from tests.support.gguf_files import HEAD_DIM, kind_of, random_weights, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, random_weights())
    return GGUFFile(path)


def test_the_configuration_is_read_from_the_metadata(file: GGUFFile) -> None:
    assert read_config(file) == ModelConfig(
        vocab_size=len(gguf_files.TOKENS),
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
    )


def test_tensors_have_hugging_face_names(file: GGUFFile) -> None:
    names = {name for name, _ in read_tensors(file, read_config(file))}
    assert {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.0.mlp.down_proj.weight",
    } <= names
    assert len(names) == len(random_weights())


def _rotate_pairs(x: NDArray[np.float32], angle: NDArray[np.float32]) -> NDArray[np.float32]:
    a, b = x[..., ::2], x[..., 1::2]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def _rotate_halves(x: NDArray[np.float32], angle: NDArray[np.float32]) -> NDArray[np.float32]:
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def test_q_and_k_rows_suit_half_split_rope(file: GGUFFile) -> None:
    """Rotated scores equal those of the file's own order under pairwise rotation."""
    stored = {
        name: dequantize(quantize(weight, kind_of(name)), kind_of(name))
        for name, weight in random_weights().items()
    }
    loaded = dict(read_tensors(file, read_config(file)))
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 64), np.float32)
    angles = rng.standard_normal((2, HEAD_DIM // 2), np.float32)

    q, k = (
        (stored[f"blk.0.attn_{n}.weight"] @ v).reshape(-1, HEAD_DIM)
        for n, v in [("q", x), ("k", y)]
    )
    expected = np.einsum("hd,gd->hg", _rotate_pairs(q, angles[0]), _rotate_pairs(k, angles[1]))
    q, k = (
        (loaded[f"model.layers.0.self_attn.{n}_proj.weight"] @ v).reshape(-1, HEAD_DIM)
        for n, v in [("q", x), ("k", y)]
    )
    scores = np.einsum("hd,gd->hg", _rotate_halves(q, angles[0]), _rotate_halves(k, angles[1]))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)


def test_v_rows_stay_where_they_are(file: GGUFFile) -> None:
    loaded = dict(read_tensors(file, read_config(file)))
    name = "blk.1.attn_v.weight"
    np.testing.assert_array_equal(loaded["model.layers.1.self_attn.v_proj.weight"], file.read(name))


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {}, arch="qwen2")
    with pytest.raises(ModelLoadError, match="'qwen2' is not llama"):
        read_config(GGUFFile(tmp_path / "x.gguf"))


def test_tensors_of_no_plain_llama_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {"rope_freqs_norm.weight": np.ones(8, np.float32)})
    file = GGUFFile(tmp_path / "x.gguf")
    with pytest.raises(ModelLoadError, match=r"rope_freqs_norm\.weight is not one of"):
        list(read_tensors(file, read_config(file)))


def test_other_tokenizers_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {}, pre="llama-bpe")
    with pytest.raises(ModelLoadError, match="gpt2/llama-bpe is not supported"):
        read_tokenizer(GGUFFile(tmp_path / "x.gguf"))
