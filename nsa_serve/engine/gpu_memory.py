"""How much of a GPU the caches may take: what is left beside the weights and the worst step."""

import logging
from collections.abc import Callable

import torch

from nsa_serve.config import EngineConfig
from nsa_serve.engine.memory import GIB
from nsa_serve.errors import ConfigError

logger = logging.getLogger(__name__)

_MARGIN = 1.1
"""On what was measured: the allocator cannot always reuse what is free."""
_GRAPH_BYTES = 512 << 20
"""For CUDA graphs themselves and the libraries' workspaces."""


def peak_bytes(device: torch.device, run: Callable[[], None]) -> int:
    """The most memory that `run` held beyond what was held before."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def cache_bytes(
    config: EngineConfig, device: torch.device, worst_step: int, decode_step: int
) -> int:
    """Bytes that the caches may take, the weights being loaded. The worst step and a decode step
    were seen to need so many bytes; graphs have a memory of their own, like a decode step's."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    graphs = 0 if config.enforce_eager else decode_step + _GRAPH_BYTES
    reserved = int(total * (1.0 - config.gpu_memory_utilization))
    steps = int(_MARGIN * worst_step) + graphs
    logger.info(
        "GPU memory: %.1f of %.1f GiB free, %.1f for steps, %.1f not to be used",
        free / GIB,
        total / GIB,
        steps / GIB,
        reserved / GIB,
    )
    left = free - reserved - steps
    if left <= 0:
        raise ConfigError(
            f"no room for a cache: {free / GIB:.1f} GiB of the GPU are free beside the weights, "
            f"a step needs {steps / GIB:.1f} GiB and gpu_memory_utilization "
            f"{config.gpu_memory_utilization} leaves {reserved / GIB:.1f} GiB to others; a smaller "
            "max_num_batched_tokens or max_num_seqs helps"
        )
    return left
