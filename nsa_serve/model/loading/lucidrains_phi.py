"""The compression networks of lucidrains' library: which one a checkpoint has, and its tensors.

The arguments of the constructor hold a module; config.json names its class instead, and may leave
even that to the tensors: `"compress_mlp": "GroupedMLP"`, or with the arguments that no tensor
shows, `{"type": "CompressTransformer", "num_layers": 2, "num_heads": 4}`.
"""

from typing import TYPE_CHECKING, Any

import msgspec

from nsa_serve.config import NSAConfig
from nsa_serve.errors import ConfigError
from nsa_serve.model.loading.family import Factor
from nsa_serve.model.loading.recipes import Recipe, Shapes, renamed

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "layers.0.0.k_compress."
_SHOWN_BY = {
    "1.weight": "MLP",
    "conv.weight": "ConvLinearCompress",
    "to_attn_logits.weight": "AttentionPool",
    "net.0.weight": "GroupedMLP",
    "compress.1.weight": "SingleProjection",
    "compress.weight": "SingleProjection",
    "layers.0.norm1.weight": "CompressTransformer",
}
"""A tensor of each network. `MLP` is what the library makes when it is given none."""
_TRANSFORMER = {
    "norm": "norm1",
    "q_proj": "attn.q_proj",
    "k_proj": "attn.k_proj",
    "v_proj": "attn.v_proj",
    "o_proj": "attn.out_proj",
    "mlp_norm": "norm2",
    "up": "ff.fc1",
    "down": "ff.fc2",
}


class _Network(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A class of compress_networks and those of its arguments that are not known otherwise."""

    type: str
    expand_factor: Factor = 1.0
    heads: int = 0
    num_layers: int = 1
    num_heads: int = 0
    ff_hidden_dim: int = 0


def read_phi(
    given: str | dict[str, Any] | None,
    shapes: Shapes,
    *,
    block: int,
    dim: int,
    kv_heads: int,
    expand: float,
) -> dict[str, Any]:
    """The fields of `NSAConfig` that say what φ is. Raises `ConfigError`."""
    network = _network(given, shapes)
    width = block * dim
    match network.type:
        case "MLP":
            return {"compressor": "mlp", "compressor_hidden": int(expand * width)}
        case "ConvLinearCompress":
            return {"compressor": "conv"}
        case "AttentionPool":
            return {"compressor": "attention_pool"}
        case "GroupedMLP":
            stored = shapes.get(f"{_PREFIX}net.0.weight", (0, 0, 0))[-1]
            hidden = stored or int(network.expand_factor * width)
            return {"compressor": "grouped_mlp", "compressor_hidden": hidden}
        case "SingleProjection":
            grouped = network.heads > 1 or f"{_PREFIX}compress.weight" in shapes
            return {"compressor": "linear", "compressor_shared": not grouped}
        case "CompressTransformer":
            return _read_transformer(network, shapes, kv_heads * dim)
    raise AssertionError(network.type)


def _network(given: str | dict[str, Any] | None, shapes: Shapes) -> _Network:
    shown = {kind for name, kind in _SHOWN_BY.items() if _PREFIX + name in shapes}
    if given is None:
        return _Network(type=shown.pop() if len(shown) == 1 else "MLP")
    try:
        network = msgspec.convert({"type": given} if isinstance(given, str) else given, _Network)
    except msgspec.ValidationError as error:
        raise ConfigError(f"compress_mlp: {error}") from None
    if network.type not in _SHOWN_BY.values():
        known = ", ".join(dict.fromkeys(_SHOWN_BY.values()))
        raise ConfigError(f"compress_mlp {network.type!r} is none of {known}")
    if shown and network.type not in shown:
        raise ConfigError(
            f"compress_mlp is {network.type}, the tensors are those of {', '.join(sorted(shown))}"
        )
    return network


def _read_transformer(network: _Network, shapes: Shapes, width: int) -> dict[str, Any]:
    if network.num_heads < 1:
        raise ConfigError(
            "compress_mlp: the tensors of a CompressTransformer do not show its num_heads; give "
            '{"type": "CompressTransformer", "num_layers": …, "num_heads": …}'
        )
    stored = sum(name.startswith(_PREFIX) and name.endswith("norm1.weight") for name in shapes)
    hidden = shapes.get(f"{_PREFIX}layers.0.ff.fc1.weight", (network.ff_hidden_dim or 4 * width,))
    return {
        "compressor": "transformer",
        "compressor_layers": stored or network.num_layers,
        "compressor_heads": network.num_heads,
        "compressor_hidden": hidden[0],
    }


def phi_recipe(prefix: str, parameter: str, nsa: NSAConfig, kv_heads: int) -> Recipe:
    """How a parameter of φ, named within it, is made of the tensors under `prefix`."""
    kind = parameter.rpartition(".")[2]
    match nsa.compressor:
        case "mlp":
            number = 1 if parameter.startswith("layers.0.") else 3
            return Recipe((f"{prefix}.{number}.{kind}",), _transposed if kind == "weight" else _one)
        case "grouped_mlp":
            number = 0 if parameter.startswith("layers.0.") else 2
            name = f"{prefix}.net.{number}.{kind}"
            return renamed(name) if kind == "weight" else Recipe((name,), _without_ones)
        case "attention_pool":
            return renamed(f"{prefix}.to_attn_logits.weight")
        case "conv":
            make = _kernel(kv_heads) if kind == "weight" else _per_head(kv_heads)
            return Recipe((f"{prefix}.conv.{kind}",), make)
        case "linear" if nsa.compressor_shared:
            return Recipe((f"{prefix}.compress.1.weight",), _transposed)
        case "linear":
            return Recipe((f"{prefix}.compress.weight",), _repeated(nsa.compress_block))
        case _:
            _, layer, place, _ = parameter.split(".")
            return renamed(f"{prefix}.layers.{layer}.{_TRANSFORMER[place]}.{kind}")


def _transposed(weight: "Tensor") -> "Tensor":
    """[out, in] → [1, in, out]"""
    return weight.t()[None]


def _one(bias: "Tensor") -> "Tensor":
    """[out] → [1, out]"""
    return bias[None]


def _without_ones(bias: "Tensor") -> "Tensor":
    """[1, heads, 1, out] → [heads, out]"""
    return bias.squeeze(2).squeeze(0)


def _kernel(heads: int) -> Any:
    def make(weight: "Tensor") -> "Tensor":
        """A grouped convolution [heads · out, in, l] → [heads, l · in, out]"""
        return weight.unflatten(0, (heads, -1)).permute(0, 3, 2, 1).flatten(1, 2)

    return make


def _per_head(heads: int) -> Any:
    def make(bias: "Tensor") -> "Tensor":
        """[heads · out] → [heads, out]"""
        return bias.unflatten(0, (heads, -1))

    return make


def _repeated(block: int) -> Any:
    def make(weight: "Tensor") -> "Tensor":
        """One map for every token of the window: [heads, in, out] → [heads, l · in, out]"""
        return weight.repeat(1, block, 1)

    return make
