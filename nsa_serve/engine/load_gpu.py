"""From a decoder on a GPU to a runner: try the worst step, size the caches, capture graphs."""

import logging
import time
from dataclasses import replace

import torch

from nsa_kernels.cache import LayerCache
from nsa_kernels.dense import BackendError
from nsa_kernels.dispatch import LayerKernels, layer_kernels
from nsa_kernels.geometry import num_pages_for
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.config import EngineConfig
from nsa_serve.engine.compile_ahead import CompileAhead
from nsa_serve.engine.gpu_memory import cache_bytes, peak_bytes
from nsa_serve.engine.gpu_runner import GpuRunner
from nsa_serve.engine.gpu_steps import MAX_CHUNK_CONTEXT
from nsa_serve.engine.memory import cache_cost, cache_table, num_pages_that_fit
from nsa_serve.engine.runner import RunnerInfo
from nsa_serve.errors import ConfigError
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.device import DeviceAttention
from nsa_serve.model.paged import cache_layouts
from nsa_serve.params import SamplingParams

logger = logging.getLogger(__name__)

TRIAL_PAGES = 4
"""Of the caches with which the first steps are tried."""
_SHORT_PROMPT = 40
_COSTLY = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
"""Takes the most memory to sample."""


def load_gpu_runner(
    config: EngineConfig,
    decoder: Decoder,
    info: RunnerInfo,
    compiling: CompileAhead | None = None,
) -> GpuRunner:
    """A runner that has run and has its caches; `info` says all but their size. Nothing runs
    before `compiling` has ended.

    Raises ConfigError if there is no room, or no such backend of dense attention.
    """
    device, dtype = torch.device(info.device), decoder.model.norm.weight.dtype
    try:
        kernels = layer_kernels(device, config.dense_backend)
    except BackendError as error:
        raise ConfigError(f"dense_backend {config.dense_backend}: {error}") from None
    if device.index is not None:
        torch.cuda.set_device(device)
    trial = replace(info, num_pages=TRIAL_PAGES)
    weights = torch.cuda.memory_allocated(device)
    began = time.monotonic()
    if compiling is not None:
        compiling.wait()
    compiled = time.monotonic()
    try:
        runner = runner_over(decoder, kernels, trial, dtype, use_graphs=False)
        buffers = torch.cuda.memory_allocated(device) - weights
        decode_step = peak_bytes(device, lambda: run(runner, trial.max_num_seqs, []))
        worst_step = peak_bytes(device, lambda: run_worst_steps(runner))
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"the GPU has no room for a step of {info.max_num_batched_tokens} tokens of "
            f"{info.max_num_seqs} sequences beside the weights; a smaller max_num_batched_tokens "
            "or max_num_seqs helps"
        ) from None
    run_short_step(runner)
    torch.cuda.synchronize(device)
    tried = time.monotonic()
    del runner
    free = cache_bytes(config, device, buffers + worst_step, decode_step)
    cost = cache_cost(decoder.config, info.page_size, dtype)
    num_pages = num_pages_that_fit(config, cost, info.max_model_len, free, info.max_num_seqs)
    info = replace(
        info,
        num_pages=num_pages,
        max_model_len=min(info.max_model_len, num_pages * info.page_size),
        max_num_seqs=min(info.max_num_seqs, num_pages),
        report=cache_table(cost, num_pages, info.max_model_len),
        cache_bytes=num_pages * cost.page_bytes,
        compressed_cache_bytes=num_pages * cost.compressed_page_bytes,
        num_lookahead_tokens=1,
    )
    runner = runner_over(decoder, kernels, info, dtype, use_graphs=not config.enforce_eager)
    runner.warm_up()
    logger.info(
        "waited %.1f s for kernels; first steps took %.1f s, caches and %d graphs %.1f s",
        compiled - began,
        tried - compiled,
        runner.num_graphs,
        time.monotonic() - tried,
    )
    return runner


def runner_over(
    decoder: Decoder,
    kernels: LayerKernels,
    info: RunnerInfo,
    dtype: torch.dtype,
    *,
    use_graphs: bool,
) -> GpuRunner:
    """A runner over fresh caches of `info.num_pages` pages."""
    device = torch.device(info.device)
    caches = [
        LayerCache.allocate(layout, info.num_pages, dtype, device)
        for layout in cache_layouts(decoder.config, info.page_size)
    ]
    layers = DeviceAttention(decoder, caches, kernels, info.max_model_len)
    run_ahead = info.num_lookahead_tokens > 0
    return GpuRunner(decoder, layers, info, use_graphs=use_graphs, run_ahead=run_ahead)


def run_worst_steps(runner: GpuRunner) -> None:
    """All at the end of their contexts: the largest chunk beside as many single queries as fit,
    and the most chunks that are launched at once."""
    info = runner.info
    longest, tokens = info.max_model_len - 1, info.max_num_batched_tokens
    num_singles = min(info.max_num_seqs, tokens) - 1
    length = min(tokens - num_singles, longest)
    run(runner, num_singles, [(longest - length, length)])
    num_chunks = min(info.max_num_seqs, max(MAX_CHUNK_CONTEXT // info.max_model_len, 1))
    length = min(tokens // num_chunks, longest)
    if length > 1:
        run(runner, 0, [(longest - length, length)] * num_chunks)


def run_short_step(runner: GpuRunner) -> None:
    """The beginning of a prompt beside a single query: launches kernels that nothing else does."""
    run(runner, 1, [(0, min(_SHORT_PROMPT, runner.info.max_model_len - 1))])


def run(
    runner: GpuRunner,
    num_singles: int,
    chunks: list[tuple[int, int]],
    context: int | None = None,
) -> None:
    """A step of single queries, the last of so many tokens or of all that there can be, and of
    chunks of (start, length). They share the few pages there are: what they compute is of no
    use."""
    info = runner.info
    longest = info.max_model_len - 1
    last = (context or info.max_model_len) - 2
    pages = [i % info.num_pages for i in range(num_pages_for(longest, info.page_size))]
    tokens = [0] * longest
    items = []
    for i, (start, length) in enumerate([(last, 1)] * num_singles + chunks):
        end = start + length
        sequence = Sequence(
            sequence_id=-1 - i,
            token_ids=tokens if end == longest else tokens[:end],
            num_prompt_tokens=end,
            max_output_tokens=1,
            pages=pages,
        )
        runner.add(sequence.sequence_id, _COSTLY, tokens[:1])
        items.append(ScheduledSequence(sequence, start, length))
    try:
        runner.execute(ScheduledBatch(items))
    finally:
        for item in items:
            runner.remove(item.sequence.sequence_id)
