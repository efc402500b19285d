"""Which implementation of a stage runs where. The reference runs everywhere."""

import functools
import importlib.util

import torch

from nsa_kernels.paged.reference import Queries, dense_attention, sparse_attention
from nsa_kernels.write.reference import compress_slots, write_tokens

__all__ = [
    "Queries",
    "compress_slots",
    "dense_attention",
    "has_kernels",
    "sparse_attention",
    "why_no_kernels",
    "write_tokens",
]

_CAPABILITY = (8, 0)
"""The least compute capability: bfloat16 products and asynchronous copies."""


@functools.cache
def why_no_kernels(device: torch.device) -> str | None:
    """One line that says why the Triton kernels cannot run on a device; None if they can."""
    if device.type != "cuda":
        return f"device {device} is no GPU"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        have, need = (".".join(map(str, c)) for c in (capability, _CAPABILITY))
        return f"the GPU has compute capability {have}, the kernels need {need}"
    return None


def has_kernels(device: torch.device) -> bool:
    """Whether the Triton kernels can run on a device."""
    return why_no_kernels(device) is None
