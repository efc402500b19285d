"""A start of the engine, and the kinds of steps that requests bring, on the `meta` device."""

from dataclasses import replace

import msgspec
import torch

from nsa_kernels.dispatch import layer_kernels
from nsa_serve.config import EngineConfig, ModelConfig
from nsa_serve.engine.graphs import context_bounds
from nsa_serve.engine.load_gpu import (
    TRIAL_PAGES,
    run,
    run_short_step,
    run_worst_steps,
    runner_over,
)
from nsa_serve.engine.load_model import TORCH_TYPES, choose_dtype, describe
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.shapes import find_model

_PROMPTS = (1000, 8000)


@torch.inference_mode()
def rehearse(config: EngineConfig) -> None:
    """Launch, with tensors that have no memory, whatever an engine of this configuration will
    launch: first what takes longest to compile."""
    meta = torch.device("meta")
    stored = choose_dtype(config, torch.device("cuda"))
    info, model = describe(config, find_model(config.model), stored, on_gpu=True)
    dtype = TORCH_TYPES[stored]
    with meta:
        decoder = Decoder(_one_of_each(model)).to(dtype).requires_grad_(False).eval()
    info = replace(info, device="meta", num_pages=TRIAL_PAGES)
    kernels = layer_kernels(meta, config.dense_backend)
    runner = runner_over(decoder.join(), kernels, info, dtype, use_graphs=False)
    run_worst_steps(runner)
    run_short_step(runner)
    for length in _PROMPTS:
        length = min(length, info.max_num_batched_tokens, info.max_model_len - 1)
        run(runner, 0, [(0, length)])
    length = max(info.max_num_batched_tokens // 16, 2)
    if 2 * length < info.max_model_len:
        run(runner, 2, [(0, length), (length, length - 1)])
    for context in context_bounds(info.max_model_len):
        run(runner, 1, [], context)
    run(runner, info.max_num_seqs, [])
    runner.warm_up()


def _one_of_each(model: ModelConfig) -> ModelConfig:
    """A model with one layer of each kind that this one has."""
    kinds = tuple(dict.fromkeys(model.kinds))
    return msgspec.structs.replace(model, num_layers=len(kinds), layer_kinds=kinds)
