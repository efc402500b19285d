"""Model folders whose weights make every token and every cache entry matter, and their truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nsa_serve.config import EngineConfig, ModelConfig
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.load_model import load_model_runner
from nsa_serve.engine.messages import AddSequence, SequenceOutput
from nsa_serve.model.decoder import Decoder
from nsa_serve.params import SamplingParams
from tests.support.dialects import random_decoder
from tests.support.engine import run_to_end, tokens_of
from tests.support.model_folders import TINY, write_tiny_folder
from tests.support.paged import whole

PAGE_SIZE = 8


def write_sharp_folder(
    folder: Path, config: ModelConfig = TINY, *, nan_tokens: Sequence[int] = ()
) -> tuple[Path, Decoder]:
    """A folder with the weights of `random_decoder`, and that decoder. The embeddings of
    `nan_tokens` are NaN in the folder."""
    write_tiny_folder(folder, config)
    decoder = random_decoder(config)
    state = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    state["model.embed_tokens.weight"][list(nan_tokens)] = torch.nan
    save_file(state, folder / "model.safetensors")
    return folder, decoder


def engine_config(folder: Path, **fields: Any) -> EngineConfig:
    """Pages of eight tokens on one thread of a CPU."""
    defaults: dict[str, Any] = {
        "model": str(folder),
        "device": "cpu",
        "num_threads": 1,
        "block_size": PAGE_SIZE,
        "num_pages": 256,
    }
    return EngineConfig(**defaults | fields)


def model_core(folder: Path, **fields: Any) -> EngineCore:
    """A core over the model of a folder."""
    config = engine_config(folder, **fields)
    return EngineCore(config, load_model_runner(config))


def greedy_by_definition(decoder: Decoder, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """What a greedy request of this prompt should give."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(whole(decoder, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def run_all(
    core: EngineCore, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> dict[int, list[SequenceOutput]]:
    """Add all prompts at once, sequence ids from 0 on; run to the end."""
    for sequence_id, prompt in enumerate(prompts):
        core.add(AddSequence(sequence_id, list(prompt), params))
    return run_to_end(core)


def tokens_of_all(
    core: EngineCore, prompts: Sequence[Sequence[int]], params: SamplingParams
) -> list[list[int]]:
    """The output tokens of each prompt."""
    outputs = run_all(core, prompts, params)
    return [tokens_of(outputs[i]) for i in range(len(prompts))]
