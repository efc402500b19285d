"""Small operations between a layer's matrix products, one launch each."""

from nsa_kernels.fused.activation import act_mul
from nsa_kernels.fused.norm import add_rms_norm

__all__ = ["act_mul", "add_rms_norm"]
