"""What an attention layer hands to whatever computes the attention."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values of T tokens: [T, heads, dim].

    With one K/V projection for all branches, `k_window` is `k`, `v_window` and `phi_v` are `v`,
    and `phi_k` is `k` where φ reads rotated keys.
    """

    q: Tensor
    q_raw: Tensor
    """Before rotation."""
    k: Tensor
    v: Tensor
    k_window: Tensor
    v_window: Tensor
    phi_k: Tensor
    phi_v: Tensor
