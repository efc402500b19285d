"""From a configuration to a runner that is loaded, has its caches and has run once."""

import hashlib
import logging
import os
import time
from dataclasses import replace

import msgspec
import torch

from nsa_kernels.cache import LayerCache
from nsa_kernels.dispatch import why_no_kernels
from nsa_kernels.geometry import num_pages_for
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.config import (
    DEFAULT_NUM_BATCHED_TOKENS,
    DEFAULT_NUM_SEQS,
    EngineConfig,
    ModelConfig,
)
from nsa_serve.engine.allocator import keep_freed_memory
from nsa_serve.engine.compile_ahead import CompileAhead
from nsa_serve.engine.memory import (
    cache_cost,
    cache_table,
    check_cpu_memory,
    free_cpu_cache_bytes,
    num_pages_that_fit,
    page_size_of,
)
from nsa_serve.engine.model_runner import ModelRunner
from nsa_serve.engine.runner import Runner, RunnerInfo
from nsa_serve.errors import ConfigError
from nsa_serve.model import int8
from nsa_serve.model.attention import sparse_spec
from nsa_serve.model.compiled import compile_steps, telling_of_compilation
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.loading.folder import ModelFolder
from nsa_serve.model.loading.random_weights import random_decoder
from nsa_serve.model.loading.weights import attention_config, load_decoder
from nsa_serve.model.paged import cache_layouts
from nsa_serve.model.shapes import find_model, is_random
from nsa_serve.params import SamplingParams

logger = logging.getLogger(__name__)

_SHORT_CHUNK = 8
"""Tokens; int8 layers compute few rows in another way than many."""
GPU_NUM_SEQS, GPU_NUM_BATCHED_TOKENS = 256, 8192
"""Defaults where kernels serve."""
TORCH_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}
"""Types of activations and caches."""


def load_model_runner(config: EngineConfig, compiling: CompileAhead | None = None) -> Runner:
    """Raises ConfigError or ModelLoadError, one line, if it cannot be served like this. Before the
    first kernel is launched, `compiling` is waited for; in any case it is over in the end."""
    try:
        return _load(config, compiling)
    finally:
        if compiling is not None:
            compiling.close()


def _load(config: EngineConfig, compiling: CompileAhead | None) -> Runner:
    folder = find_model(config.model)
    device = choose_device(config.device)
    dtype = choose_dtype(config, device)
    on_gpu = _uses_kernels(device)
    if not on_gpu and config.dense_backend not in ("auto", "sdpa"):
        raise ConfigError(f"dense_backend {config.dense_backend}: {why_no_kernels(device)}")
    info, _ = describe(config, folder, dtype, on_gpu=on_gpu)
    info = replace(info, device=str(device))
    if device.type == "cpu":
        torch.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    began = time.monotonic()
    decoder = _load_decoder(config, folder, device, dtype).join()
    if on_gpu:
        logger.info("loaded the weights in %.1f s", time.monotonic() - began)
        from nsa_serve.engine.load_gpu import load_gpu_runner

        return load_gpu_runner(config, decoder, info, compiling)
    if dtype == "int8":
        int8.quantize(decoder)
    return _reference_runner(config, decoder, info)


def describe(
    config: EngineConfig, folder: ModelFolder, dtype: str, *, on_gpu: bool
) -> tuple[RunnerInfo, ModelConfig]:
    """All of a runner that is known before anything is loaded, its device apart, and the model
    with the attention that was asked for."""
    model = attention_config(folder.config, config.attention)
    info = RunnerInfo(
        model_name=folder.name,
        max_model_len=_max_model_len(config, model),
        vocab_size=model.vocab_size,
        eos_token_ids=folder.generation.eos_token_ids,
        num_pages=0,
        page_size=page_size_of(model, config.block_size),
        device="",
        dtype=dtype,
        attention="dense" if model.nsa is None else "nsa",
        cache_key=cache_key(folder, model, dtype),
        report="",
        max_num_seqs=config.max_num_seqs or (GPU_NUM_SEQS if on_gpu else DEFAULT_NUM_SEQS),
        max_num_batched_tokens=config.max_num_batched_tokens
        or (GPU_NUM_BATCHED_TOKENS if on_gpu else DEFAULT_NUM_BATCHED_TOKENS),
        sparse=None if model.nsa is None else sparse_spec(model.nsa),
        num_nsa_layers=model.kinds.count("nsa"),
        num_dense_layers=model.kinds.count("dense"),
    )
    return info, model


def _uses_kernels(device: torch.device) -> bool:
    """Whether Triton kernels serve; a GPU without them is told of once."""
    reason = why_no_kernels(device)
    if reason is not None and device.type == "cuda":
        logger.warning("%s: attention runs in plain torch, many times slower", reason)
    return reason is None


def _load_decoder(
    config: EngineConfig, folder: ModelFolder, device: torch.device, dtype: str
) -> Decoder:
    stored = None if dtype == "int8" else TORCH_TYPES[dtype]
    if is_random(config.model):
        model = attention_config(folder.config, config.attention)
        return random_decoder(model, device, stored or torch.float32)
    return load_decoder(folder, attention=config.attention, device=device, dtype=stored)


def _reference_runner(config: EngineConfig, decoder: Decoder, info: RunnerInfo) -> ModelRunner:
    """A runner in plain torch, with the caches that fit, that has run once."""
    device, activations = torch.device(info.device), TORCH_TYPES[info.dtype]
    cost = cache_cost(decoder.config, info.page_size, activations)
    free = free_gpu_bytes(config, device) if device.type == "cuda" else free_cpu_cache_bytes(config)
    num_pages = num_pages_that_fit(config, cost, info.max_model_len, free, info.max_num_seqs)
    if device.type == "cpu":
        check_cpu_memory(num_pages * cost.page_bytes)
    layouts = cache_layouts(decoder.config, info.page_size)
    caches = [LayerCache.allocate(layout, num_pages, activations, device) for layout in layouts]
    info = replace(
        info,
        num_pages=num_pages,
        max_model_len=min(info.max_model_len, num_pages * info.page_size),
        report=cache_table(cost, num_pages, info.max_model_len),
        cache_bytes=num_pages * cost.page_bytes,
        compressed_cache_bytes=num_pages * cost.compressed_page_bytes,
    )
    compiled = None
    if device.type == "cpu":
        keep_freed_memory()
        compiled = compile_steps(decoder, caches, torch.get_num_threads())
    runner = ModelRunner(decoder, caches, info, compiled)
    with telling_of_compilation(_tell_of_compilation):
        warm_up(runner)
    return runner


def _tell_of_compilation() -> None:
    logger.info("compiling for this CPU: some 20 seconds, and kept for the next start")


def choose_device(wanted: str) -> torch.device:
    """The device asked for, or a GPU if there is one."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"device {wanted!r} is not known, expected auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {wanted}: torch {torch.__version__} finds no usable GPU")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {wanted!r} is not supported, expected auto, cpu or cuda")
    return device


def choose_dtype(config: EngineConfig, device: torch.device) -> str:
    """The type asked for. By itself: bfloat16 on a GPU; on a CPU float32, and int8 for the
    built-in model, whose weights have four bits, where the CPU multiplies int8 vectors."""
    if config.dtype == "int8" and (device.type != "cpu" or not int8.supported()):
        raise ConfigError("dtype int8 needs a CPU with VNNI or AMX")
    if config.dtype != "auto":
        return config.dtype
    if device.type == "cuda":
        return "bfloat16"
    return "int8" if config.model is None and int8.supported() else "float32"


def free_gpu_bytes(config: EngineConfig, device: torch.device) -> int:
    """Bytes that the cache may take on a GPU that holds the weights already."""
    free, total = torch.cuda.mem_get_info(device)
    return max(0, int(free - total * (1.0 - config.gpu_memory_utilization)))


def _max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    limit = model.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > limit:
        raise ConfigError(f"max_model_len {config.max_model_len} exceeds the model's {limit}")
    return config.max_model_len or limit


def cache_key(folder: ModelFolder, model: ModelConfig, dtype: str) -> bytes:
    """Differs wherever the content of pages would."""
    text = msgspec.json.encode([str(folder.path), model, dtype])
    return hashlib.sha256(text).digest()[:16]


def warm_up(runner: ModelRunner) -> None:
    """Run the largest prefill chunk, a short one and a decode step once, over pages nobody holds
    yet."""
    info = runner.info
    length = max(1, min(info.max_num_batched_tokens, info.max_model_len - 1))
    sequence = Sequence(
        sequence_id=-1,
        token_ids=[0] * (length + 1),
        num_prompt_tokens=length + 1,
        max_output_tokens=1,
        pages=list(range(num_pages_for(length + 1, info.page_size))),
    )
    runner.add(-1, SamplingParams(temperature=0.0), sequence.token_ids)
    for chunk in (length, min(length, _SHORT_CHUNK)):
        runner.execute(ScheduledBatch([ScheduledSequence(sequence, 0, chunk)]))
    runner.execute(ScheduledBatch([ScheduledSequence(sequence, length, 1)]))
    runner.remove(-1)
