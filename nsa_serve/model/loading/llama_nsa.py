"""NSA-1B's `LlamaNSAForCausalLM`: model_type `llama-nsa`, a Llama with fla's first NSA kernel."""

from pathlib import Path
from typing import Any

import msgspec

from nsa_serve.config import ModelConfig, NSAConfig
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model.loading.family import Family
from nsa_serve.model.loading.fla import mean_pooling
from nsa_serve.model.loading.json_file import convert
from nsa_serve.model.loading.llama import read_llama_config
from nsa_serve.model.loading.recipes import Recipe, Shapes, layer_of, renamed

_GATES = "self_attn.nsa.gates.out."


class _Config(msgspec.Struct, kw_only=True):
    """What is added to a Llama; the defaults are those of its configuration class."""

    block_size: int = 64
    block_counts: int = 16
    window_size: int = 512
    inference_mode: str = "sparse"


def read_config(path: Path, fields: dict[str, Any], shapes: Shapes) -> ModelConfig:
    """A Llama's configuration and three fields more."""
    llama, own = read_llama_config(path, fields), convert(path, fields, _Config)
    if own.inference_mode != "sparse":
        raise ModelLoadError(f"{path}: inference_mode {own.inference_mode!r} is not sparse")
    try:
        return msgspec.structs.replace(llama, nsa=_dialect(own))
    except ConfigError as error:
        raise ModelLoadError(f"{path}: {error}") from None


def _dialect(own: _Config) -> NSAConfig:
    """The kernel ranks as many blocks at once as a block has tokens, and keeps the better half of
    those so far and the better half of the new ones: exact while n is at most half of them."""
    n, block = own.block_counts, own.block_size
    if n < 1 or n & (n - 1) or n > block:
        raise ConfigError(
            f"block_counts {n} must be a power of 2 and at most block_size {block}: "
            "the kernel that such checkpoints are trained with selects no other number"
        )
    selection = "half_merge" if n == block else "exact"
    return mean_pooling(
        block, n, own.window_size, init_blocks=0, local_blocks=1, selection=selection
    )


def _source(target: str, config: ModelConfig) -> Recipe:
    if _GATES not in target:
        return renamed(target)
    layer, name = layer_of(target)
    return renamed(f"model.layers.{layer}.{name.replace(_GATES, 'self_attn.g_proj.')}")


LLAMA_NSA = Family(name="llama-nsa", read_config=read_config, source=_source)
