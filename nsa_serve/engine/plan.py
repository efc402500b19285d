"""What a model needs, from its configuration alone: weights, cache, bytes read per step.

Every figure comes from the modules and layouts that serve, built without memory.
"""

from collections.abc import Iterator

import msgspec
import torch
from torch import nn

from nsa_kernels.geometry import num_pages_for
from nsa_kernels.spec import SparseSpec
from nsa_serve.config import EngineConfig, ModelConfig
from nsa_serve.engine.memory import GIB, cache_cost, page_size_of
from nsa_serve.model import int8
from nsa_serve.model.attention import sparse_spec
from nsa_serve.model.decoder import Decoder

_CONTEXTS = (1024, 4096, 16_384, 65_536, 131_072, 262_144, 524_288)
_WEIGHT_TYPES = ("float32", "bfloat16", "float16", "int8")


class StepReads(msgspec.Struct, frozen=True, kw_only=True):
    """Cache bytes that one decode step reads for one sequence, over all layers."""

    context: int
    """Tokens, the newest included."""
    compressed: int = 0
    selected: int = 0
    window: int = 0
    dense_layers: int = 0

    @property
    def total(self) -> int:
        """All together."""
        return self.compressed + self.selected + self.window + self.dense_layers


class Attention(msgspec.Struct, frozen=True):
    """What the model needs with one kind of attention."""

    weight_bytes: dict[str, int]
    """By type."""
    cache_bytes_per_token: dict[str, float]
    """By what it holds."""
    step_reads: list[StepReads]


class Fit(msgspec.Struct, frozen=True):
    """How many sequences of a context fit at once."""

    memory_gib: float
    context: int
    num_sequences: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a model needs and what fits where."""

    model: str
    num_parameters: int
    dtype: str
    """Of `cache_bytes_per_token`, `step_reads` and `fits`."""
    memory_utilization: float
    nsa: Attention | None
    """None for a dense model."""
    dense: Attention
    fits: list[Fit]
    """With the model's own attention."""


def make_plan(name: str, config: ModelConfig, dtype: str, memory_gib: list[float]) -> Plan:
    """Everything about a model; only the share of memory that the engine takes counts."""
    limit = config.max_position_embeddings
    contexts = [*(c for c in _CONTEXTS if c < limit), limit]
    share = EngineConfig().gpu_memory_utilization
    return Plan(
        model=name,
        num_parameters=num_parameters(config),
        dtype=dtype,
        memory_utilization=share,
        nsa=None if config.nsa is None else _attention(config, dtype, contexts),
        dense=_attention(dense_config(config), dtype, contexts),
        fits=[
            Fit(gib, context, num_sequences(config, dtype, context, gib * share * GIB))
            for context in contexts
            for gib in memory_gib
        ],
    )


def _attention(config: ModelConfig, dtype: str, contexts: list[int]) -> Attention:
    return Attention(
        {name: weight_bytes(config, name) for name in _WEIGHT_TYPES},
        cache_bytes_per_token(config, dtype),
        [step_reads(config, dtype, context) for context in contexts],
    )


def dense_config(config: ModelConfig) -> ModelConfig:
    """The same model with dense attention in every layer."""
    return msgspec.structs.replace(config, nsa=None, layer_kinds=())


def num_parameters(config: ModelConfig) -> int:
    """Weights, tied ones once."""
    return sum(count * sum(p.numel() for p in part.parameters()) for part, count in _parts(config))


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all weights as `dtype` stores them; int8 is what `int8.quantize` makes of a model
    whose files hold 16 bits a weight."""
    if dtype != "int8":
        return num_parameters(config) * _torch_type(dtype).itemsize
    total = sum(count * _int8_bytes(part) for part, count in _parts(config))
    if config.tie_word_embeddings:
        head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta")
        total += int8.num_bytes(head)
    return total


def cache_bytes_per_token(config: ModelConfig, dtype: str) -> dict[str, float]:
    """Cache bytes that one token costs over all layers, by what they hold."""
    return cache_cost(config, page_size_of(config, None), _torch_type(dtype)).bytes_per_token


def num_sequences(config: ModelConfig, dtype: str, context: int, memory: float) -> int:
    """Sequences of `context` tokens that fit beside the weights in `memory` bytes."""
    cost = cache_cost(config, page_size_of(config, None), _torch_type(dtype))
    free = memory - weight_bytes(config, dtype)
    return max(0, int(free // (cost.page_bytes * num_pages_for(context, cost.page_size))))


def step_reads(config: ModelConfig, dtype: str, context: int) -> StepReads:
    """Reads of a step whose newest token is the `context`-th of its sequence."""
    itemsize = _torch_type(dtype).itemsize
    token = config.num_kv_heads * (config.head_dim + config.value_dim) * itemsize
    num_nsa = config.kinds.count("nsa")
    dense_layers = (config.num_layers - num_nsa) * context * token
    if config.nsa is None or not num_nsa:
        return StepReads(context=context, dense_layers=dense_layers)
    spec = sparse_spec(config.nsa)
    _, use_selected, use_window = spec.uses
    return StepReads(
        context=context,
        compressed=num_nsa * _slots_read(config, spec, context) * itemsize,
        selected=num_nsa * _selected_tokens(spec, context) * token if use_selected else 0,
        window=num_nsa * min(context, spec.window) * token if use_window else 0,
        dense_layers=dense_layers,
    )


def _slots_read(config: ModelConfig, spec: SparseSpec, context: int) -> int:
    """Elements of compressed keys, which rank the blocks too, and of compressed values."""
    use_compressed, use_selected, _ = spec.uses
    if not use_compressed and (not use_selected or spec.selects_all(context - 1)):
        return 0
    num_slots = max(spec.num_slots(context) - spec.first_slot, 0)
    width = config.head_dim + (config.value_dim if use_compressed else 0)
    return num_slots * config.num_kv_heads * width


def _selected_tokens(spec: SparseSpec, context: int) -> int:
    """Tokens of the blocks that one query may select at most."""
    if spec.selects_all(context - 1):
        return context
    on_top = 0 if spec.forced_counted else spec.init_blocks + spec.local_blocks
    return min(context, (spec.num_selected + on_top) * spec.select_block)


def _parts(config: ModelConfig) -> Iterator[tuple[nn.Module, int]]:
    """The model's modules, without memory, and how many there are of each: a layer of each kind
    is built once, so a deep model costs no more than a shallow one."""
    kinds = sorted(set(config.kinds))
    shallow = msgspec.structs.replace(config, num_layers=len(kinds), layer_kinds=tuple(kinds))
    with torch.device("meta"):
        decoder = Decoder(shallow).join()
    for kind, layer in zip(kinds, decoder.model.layers, strict=True):
        yield layer, config.kinds.count(kind)
    yield decoder.model.embed_tokens, 1
    if decoder.model.embed_positions is not None:
        yield decoder.model.embed_positions, 1
    yield decoder.model.norm, 1
    if decoder.lm_head is not None:
        yield decoder.lm_head, 1


def _int8_bytes(part: nn.Module) -> int:
    total = 0
    for module in part.modules():
        if isinstance(module, nn.Linear):
            total += int8.num_bytes(module)
        else:
            itemsize = 2 if isinstance(module, nn.Embedding) else 4
            total += itemsize * sum(p.numel() for p in module.parameters(recurse=False))
    return total


def _torch_type(dtype: str) -> torch.dtype:
    """Of activations and caches, and of weights unless they are int8."""
    named: torch.dtype = getattr(torch, "float32" if dtype == "int8" else dtype)
    return named
