"""A decoder's weights and caches, the way the compiled loop reads them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nsa_kernels.cache import LayerCache
from nsa_serve.model.attention import Attention
from nsa_serve.model.compiled import planes
from nsa_serve.model.compiled.products import OUTPUTS, Product, pack
from nsa_serve.model.compiled.state import Caches, Sizes, SparseRule, Weights
from nsa_serve.model.decoder import MLP, Decoder, Layer
from nsa_serve.model.int8 import Int8Linear


def sizes_of(decoder: Decoder, page_size: int) -> Sizes:
    """The model's, over pages of so many tokens."""
    config = decoder.config
    blocks = [page_size] if config.nsa is None else [page_size, config.nsa.select_block]
    triples = 0
    if config.nsa is not None and config.nsa.gate != "none":
        scopes = {"head": config.num_heads, "group": config.num_kv_heads, "shared": 1}
        triples = scopes[config.nsa.gate_scope]
    return Sizes(
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        value_dim=config.value_dim,
        interleaved=int(config.rope_interleaved),
        num_gates=triples,
        gates=(1.0, 1.0, 1.0) if config.nsa is None else config.nsa.fixed_gates,
        eps=config.rms_norm_eps,
        scale=decoder.attentions[0].scale,
        sparse=config.nsa is not None,
        by_tiles=planes.USES_TILES
        and config.head_dim % planes.DIM == 0
        and all(size % planes.BLOCK == 0 for size in blocks),
    )


def rule_of(decoder: Decoder) -> SparseRule:
    """The dialect, or anything where there is none."""
    nsa = decoder.attentions[0].nsa
    if nsa is None:
        return SparseRule(*(1,) * len(SparseRule._fields))
    spec = nsa.spec
    compressed, selected, window = spec.uses
    return SparseRule(
        compress_block=spec.compress_block,
        compress_stride=spec.compress_stride,
        select_block=spec.select_block,
        num_selected=spec.num_selected,
        window=spec.window,
        first_slot=spec.first_slot,
        strict=int(spec.strict),
        init_blocks=spec.init_blocks,
        local_blocks=spec.local_blocks,
        dense_len=spec.dense_len,
        use_compressed=int(compressed),
        use_selected=int(selected),
        use_window=int(window),
    )


def weights_of(decoder: Decoder) -> Weights:
    """Copies."""
    layers = [layer for layer in decoder.model.layers if isinstance(layer, Layer)]
    norms = [norm for x in layers for norm in (x.input_layernorm, x.post_attention_layernorm)]
    return Weights(
        norms=torch.stack([norm.weight.detach() for norm in [*norms, decoder.model.norm]]).numpy(),
        qkv=_product([_qkv(layer.self_attn) for layer in layers]),
        output=_product([[layer.self_attn.o_proj] for layer in layers]),
        gate_up=_product([[_gate_up(layer.mlp)] for layer in layers], interleaved=True),
        down=_product([[layer.mlp.down_proj] for layer in layers]),
    )


def head_of(decoder: Decoder) -> Product:
    """A copy of the head, its outputs padded."""
    return _product([[decoder.lm_head]])


def caches_of(caches: list[LayerCache]) -> Caches:
    """Where they are; layers without slots name their keys and values instead."""
    tensors = [
        (
            c.k,
            c.v,
            c.k if c.k_compressed is None else c.k_compressed,
            c.v if c.v_compressed is None else c.v_compressed,
        )
        for c in caches
    ]
    addresses = np.array([[t.data_ptr() for t in layer] for layer in tensors], np.int64)
    return Caches(addresses, *(t.numpy() for t in tensors[0]))


def _qkv(attention: Attention) -> list[nn.Module | None]:
    """Queries, keys, values and gates, as one linear layer or as two."""
    assert attention.joined is not None
    parts: list[nn.Module | None] = [attention.joined.linear]
    gates = None if attention.nsa is None else attention.nsa.gates
    if gates is not None and len(attention.joined.sizes) == 3:
        parts.append(gates.out)
    return parts


def _gate_up(mlp: MLP) -> nn.Module:
    assert mlp.gate_up is not None
    return mlp.gate_up.linear


def _product(layers: Sequence[Sequence[nn.Module | None]], interleaved: bool = False) -> Product:
    """Each layer's linear layers one below the other, outputs padded to whole blocks."""
    parts = [_matrix(layer, interleaved) for layer in layers]
    weight, scale_bias = (torch.stack(of) for of in zip(*parts, strict=True))
    return Product(weight.numpy(), scale_bias.numpy())


def _matrix(linears: Sequence[nn.Module | None], interleaved: bool) -> tuple[Tensor, Tensor]:
    parts = [linear for linear in linears if isinstance(linear, Int8Linear)]
    assert len(parts) == len(linears)
    weight = torch.cat([part.plain.t() for part in parts])
    scale_bias = torch.cat([_scale_bias(part) for part in parts], 1)
    if interleaved:
        halves = torch.arange(len(weight)).view(2, -1, OUTPUTS // 2)
        order = halves.transpose(0, 1).flatten()
        weight, scale_bias = weight[order], scale_bias[:, order]
    missing = -len(weight) % OUTPUTS
    weight = nn.functional.pad(weight, (0, 0, 0, missing))
    return pack(weight), nn.functional.pad(scale_bias, (0, missing))


def _scale_bias(linear: Int8Linear) -> Tensor:
    """[2, out]"""
    bias = torch.zeros_like(linear.scale) if linear.bias is None else linear.bias.detach()
    return torch.stack([linear.scale, bias])
