"""What an attention layer hands to whatever computes the attention."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Projected:
    """Queries, keys and values of T tokens as the projections give them, [T, heads, dim]: not
    normed, not rotated, views of a joined product where the layer is joined."""

    q: Tensor
    k: Tensor
    v: Tensor
    own: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
    """(k_window, v_window, k_phi, v_phi) of a layer with K/V of their own for each branch."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries, keys and values of T tokens, normed and rotated: [T, heads, dim].

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
