"""Which φ of a layer are averages, and what the writing kernels must know of them."""

from torch import Tensor, nn

from nsa_kernels.write.averages import Average, Averages
from nsa_serve.model.attention import NSABranches
from nsa_serve.model.compressors import Mean, Weighted


def averages_of(
    nsa: NSABranches, num_kv_heads: int, cos_sin: Tensor, *, interleaved: bool
) -> Averages | None:
    """φ of a layer, or None where it is more than an average. cos_sin [positions, D] float32 (cos
    of every pair, then sin) reaches every position. Made from the parameters once: not trained."""
    if not isinstance(nsa.compress_k, Mean | Weighted):
        return None
    table = cos_sin if nsa.nsa.compressed_rope == "block_start" else None
    return Averages(
        nsa.spec,
        _average(nsa.compress_k, nsa.k_positions, num_kv_heads, table, interleaved),
        _average(nsa.value_compressor, nsa.v_positions, num_kv_heads, None, interleaved),
    )


def _average(
    phi: nn.Module,
    positions: Tensor | None,
    num_kv_heads: int,
    cos_sin: Tensor | None,
    interleaved: bool,
) -> Average:
    """positions [kv_heads, l, dim]"""
    weights = bias = None
    if isinstance(phi, Weighted):
        weights = phi.weight.detach().float().expand(num_kv_heads, -1).contiguous()
    if positions is not None:
        places = positions.detach().float()
        bias = places.mean(-2) if weights is None else (places * weights[:, :, None]).sum(-2)
    return Average(weights, bias, cos_sin, interleaved)
