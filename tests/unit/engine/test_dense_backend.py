"""The backend of dense attention that a configuration asks for is the one that serves."""

from pathlib import Path

import pytest
import torch

from nsa_kernels import dispatch
from nsa_kernels.dense import dense_backends
from nsa_serve.engine.load_model import load_model_runner
from nsa_serve.errors import ConfigError
from nsa_serve.params import SamplingParams
from tests.support.model_folder import engine_config, model_core, tokens_of_all
from tests.support.model_folders import TINY, write_tiny_folder

PROMPTS = [[5, 7, 11] * 9, [200, 3]]
PARAMS = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.mark.parametrize("name", ["triton", "xformers"])
def test_a_cpu_refuses_what_needs_a_gpu(name: str, tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "model")
    with pytest.raises(ConfigError, match=f"dense_backend {name}: device cpu is no GPU"):
        load_model_runner(engine_config(folder, attention="dense", dense_backend=name))


def test_torch_serves_everywhere(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "model", TINY)
    fields = {"attention": "dense", "dtype": "float32"}
    chosen, left = (
        tokens_of_all(model_core(folder, **fields, **more), PROMPTS, PARAMS)
        for more in ({"dense_backend": "sdpa"}, {})
    )
    assert chosen == left


def test_kernels_come_with_the_backend_that_is_asked_for() -> None:
    kernels = dispatch.layer_kernels(torch.device("cpu"), "sdpa")
    assert kernels.dense.name == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["triton", "xformers", "sdpa"])
def test_every_backend_serves_the_same_answers(name: str, tmp_path: Path) -> None:
    if reason := dense_backends(torch.device("cuda"))[name]:
        pytest.skip(reason)
    folder = write_tiny_folder(tmp_path / "model", TINY)
    fields = {"attention": "dense", "dtype": "float16", "device": "cuda", "block_size": 64}
    reference = model_core(folder, attention="dense", dtype="float32", device="cpu")
    core = model_core(folder, dense_backend=name, **fields)
    got, want = (tokens_of_all(c, PROMPTS, PARAMS) for c in (core, reference))
    same = sum(g == w for a, b in zip(got, want, strict=True) for g, w in zip(a, b, strict=True))
    assert same >= 10  # of 12: where two logits nearly tie, float16 may take the other
