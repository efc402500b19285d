"""The runner for GPUs on a CPU: without graphs, over stand-ins or interpreted kernels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nsa_kernels.dispatch import LayerKernels
from nsa_serve.config import DEFAULT_NUM_BATCHED_TOKENS, DEFAULT_NUM_SEQS
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.gpu_runner import GpuRunner
from nsa_serve.engine.load_gpu import runner_over
from nsa_serve.engine.memory import page_size_of
from nsa_serve.engine.runner import RunnerInfo
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.model.loading.weights import load_decoder
from tests.support.device_kernels import torch_kernels
from tests.support.model_folder import engine_config


def device_runner(
    folder: Path,
    *,
    kernels: Callable[[], LayerKernels] = torch_kernels,
    device: str = "cpu",
    use_graphs: bool = False,
    run_ahead: bool = True,
    poison: float = 1e4,
    on_forward: Callable[[int], None] | None = None,
    **fields: Any,
) -> GpuRunner:
    """A runner over the model of a folder. Its caches are full of `poison`; `on_forward` is told
    the number of tokens of every pass through the model."""
    model, config = resolve_model(str(folder)), engine_config(folder, **fields)
    info = RunnerInfo(
        model_name=model.name,
        max_model_len=model.config.max_position_embeddings,
        vocab_size=model.config.vocab_size,
        eos_token_ids=model.generation.eos_token_ids,
        num_pages=config.num_pages or 256,
        page_size=page_size_of(model.config, config.block_size),
        device=device,
        dtype="float32",
        attention="nsa",
        cache_key=b"",
        report="",
        max_num_seqs=config.max_num_seqs or DEFAULT_NUM_SEQS,
        max_num_batched_tokens=config.max_num_batched_tokens or DEFAULT_NUM_BATCHED_TOKENS,
        num_lookahead_tokens=int(run_ahead),
    )
    decoder = load_decoder(model, device=device).join()
    if on_forward is not None:
        tell = on_forward
        decoder.register_forward_pre_hook(lambda _, inputs: tell(len(inputs[0])))
    runner = runner_over(decoder, kernels(), info, torch.float32, use_graphs=use_graphs)
    for cache in runner.caches:
        for tensor in cache.tensors:
            tensor.fill_(poison)
    return runner


def device_core(
    folder: Path,
    *,
    run_ahead: bool = True,
    on_forward: Callable[[int], None] | None = None,
    **fields: Any,
) -> EngineCore:
    """A core over such a runner on a CPU."""
    runner = device_runner(folder, run_ahead=run_ahead, on_forward=on_forward, **fields)
    return EngineCore(engine_config(folder, **fields), runner)
