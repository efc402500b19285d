"""Llama-family GGUF files: their configuration and their tensors under Hugging Face's names."""

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from nsa_serve.config import ModelConfig
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.gguf import GGUFFile, GGUFTensor
from nsa_serve.model.loading.json_file import convert

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def read_config(file: GGUFFile) -> ModelConfig:
    """The dense configuration that the metadata describes."""
    architecture = file.get("general.architecture", str)
    if architecture != "llama":
        raise ModelLoadError(f"{file.path.name}: architecture {architecture!r} is not llama")
    if file.metadata.get("llama.rope.scaling.type", "none") != "none":
        raise ModelLoadError(f"{file.path.name}: scaled RoPE is not read from GGUF")
    num_heads = file.get("llama.attention.head_count", int)
    hidden_size = file.get("llama.embedding_length", int)
    if num_heads < 1:
        raise ModelLoadError(f"{file.path.name}: llama.attention.head_count must be at least 1")
    fields = {
        "vocab_size": len(file.get("tokenizer.ggml.tokens", list)),
        "hidden_size": hidden_size,
        "num_layers": file.get("llama.block_count", int),
        "num_heads": num_heads,
        "num_kv_heads": file.get("llama.attention.head_count_kv", int),
        "head_dim": hidden_size // num_heads,
        "intermediate_size": file.get("llama.feed_forward_length", int),
        "max_position_embeddings": file.get("llama.context_length", int),
        "rms_norm_eps": _as_written(file.get("llama.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": _as_written(file.get("llama.rope.freq_base", float)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    return convert(file.path, fields, ModelConfig)


def list_tensors(file: GGUFFile) -> dict[str, GGUFTensor]:
    """What the file holds, by Hugging Face's names."""
    return {_target_name(file, name): tensor for name, tensor in file.tensors.items()}


def read_tensors(file: GGUFFile, config: ModelConfig) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each tensor with its Hugging Face name, q and k rows in half-split RoPE order."""
    for name in file.tensors:
        target = _target_name(file, name)
        weight = file.read(name)
        if target.endswith(("q_proj.weight", "k_proj.weight")):
            weight = _half_split(weight, config.head_dim, f"{file.path.name}: {name}")
        yield target, weight


def _target_name(file: GGUFFile, name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    match = _LAYER_NAME.fullmatch(name)
    if match and match[2] in _LAYER:
        return f"model.layers.{match[1]}.{_LAYER[match[2]]}.weight"
    raise ModelLoadError(f"{file.path.name}: tensor {name} is not one of a plain Llama")


def _half_split(weight: NDArray[np.float32], head_dim: int, name: str) -> NDArray[np.float32]:
    """Rows from GGUF's order, in which a rotated pair is adjacent, to the two halves of a head."""
    if weight.ndim != 2 or weight.shape[0] % head_dim:
        raise ModelLoadError(f"{name} has no whole heads of {head_dim}")
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _as_written(value: float) -> float:
    """GGUF holds 1e-5 as a float32: the shortest decimal that gives the same float32 back."""
    return float(str(np.float32(value)))
