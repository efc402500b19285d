"""Checkpoints of every family answer with the tokens that their originals find likeliest, served as
they are or converted, from Python and over HTTP."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nsa_serve import LLM, SamplingParams
from nsa_serve.model.loading.convert import convert_checkpoint
from tests.support.http_server import run_server
from tests.support.originals import fla, llama_nsa, nsa_vibe, xunhao
from tests.support.originals.lucidrains import PHIS, SIZES, Original
from tests.support.parity import random_tokens

Logits = Callable[[list[int]], Any]
"""Of a sequence, [T, vocab]."""
ENGINE: dict[str, Any] = {"dtype": "float32", "num_threads": 1, "num_pages": 64}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
NUM_TOKENS = 6


def _lucidrains(folder: Path) -> Logits:
    original = Original(PHIS["grouped_mlp"], **SIZES["overlapping"])
    original.write(folder)
    return original.logits


def _fla(folder: Path) -> Logits:
    config, state = fla.write_random(folder, fla.SIZES["small"])
    return lambda tokens: fla.original_logits(config, state, tokens)


def _llama_nsa(folder: Path) -> Logits:
    config, state = llama_nsa.write_random(folder, block_size=4, block_counts=4)
    return lambda tokens: llama_nsa.original_logits(config, state, tokens)


def _xunhao(folder: Path) -> Logits:
    config, state = xunhao.write_random(folder)
    return lambda tokens: xunhao.original_logits(config, state, tokens)


def _fsa(folder: Path) -> Logits:
    config, state = xunhao.write_random(folder, one_gate=True)
    return lambda tokens: xunhao.original_logits(config, state, tokens)


def _nsa_vibe(folder: Path) -> Logits:
    model, state = nsa_vibe.write_random(folder)
    return lambda tokens: nsa_vibe.original_logits(model, state, tokens)


FAMILIES = {
    "lucidrains": _lucidrains,
    "fla": _fla,
    "llama-nsa": _llama_nsa,
    "xunhao": _xunhao,
    "fsa": _fsa,
    "nsa-vibe": _nsa_vibe,
}


def likeliest(logits: Logits, prompt: list[int]) -> list[int]:
    """What a greedy request of this prompt should give."""
    tokens = list(prompt)
    for _ in range(NUM_TOKENS):
        tokens.append(int(np.asarray(logits(tokens))[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("converted", [False, True], ids=["as_it_is", "converted"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_continues_with_what_the_original_finds_likeliest(
    family: str, converted: bool, device: str, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    logits = FAMILIES[family](folder)
    if converted:
        convert_checkpoint(folder, tmp_path / "target", progress=lambda *_: None)
        folder = tmp_path / "target"
    prompts = [random_tokens(length, seed=length) for length in (3, 40, 75)]
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    outputs = LLM(str(folder), device=device, **ENGINE).generate(prompts, params, use_tqdm=False)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == likeliest(logits, prompt)


def test_a_llama_nsa_folder_serves_over_http(tmp_path: Path) -> None:
    folder = tmp_path / "nsa-1b"
    logits = FAMILIES["llama-nsa"](folder)
    prompt = list(b"Blocks of four tokens, four of them for each query: halves are merged.")
    with run_server(
        engine={"runner": "model", "model": str(folder), "device": "cpu", **ENGINE}
    ) as server:
        body = {
            "model": "nsa-1b",
            "prompt": prompt,
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    text = answer.json()["choices"][0]["text"]
    assert text == bytes(likeliest(logits, prompt)).decode(errors="replace")
