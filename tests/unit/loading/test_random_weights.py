"""Models that are named by their shape: the right size, random weights, served like any other."""

import subprocess
import sys

import pytest
import torch

from nsa_serve import LLM, SamplingParams
from nsa_serve.engine.plan import dense_config, num_parameters
from nsa_serve.errors import ConfigError, ModelLoadError
from nsa_serve.model import shapes
from nsa_serve.model.loading.random_weights import random_decoder
from nsa_serve.model.loading.weights import attention_config
from nsa_serve.model.shapes import SHAPES, find_model, is_random
from tests.support.dialects import MODELS
from tests.support.model_folders import TINY


@pytest.mark.parametrize(("name", "billions"), [("1b", 1.236), ("8b", 8.030)])
def test_a_dense_twin_has_as_many_weights_as_the_model_it_is_named_after(
    name: str, billions: float
) -> None:
    config = find_model(f"random:{name}").config
    twin = attention_config(config, "dense")
    assert twin == dense_config(config)
    assert num_parameters(twin) / 1e9 == pytest.approx(billions, abs=1e-3)


def test_an_unknown_shape_is_told_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"random:3b: no such shape, .* random:1b, random:8b"):
        find_model("random:3b")


def test_a_folder_is_no_shape() -> None:
    assert not is_random(None)
    assert not is_random("./random:1b")
    with pytest.raises(ModelLoadError, match="does not exist"):
        find_model("./random:1b")


def test_weights_are_the_same_for_the_same_seed_and_differ_for_another() -> None:
    config, cpu = MODELS["lucidrains"], torch.device("cpu")
    first, same, other = (
        random_decoder(config, cpu, torch.bfloat16, seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])
    assert {weight.dtype for weight in first.values()} == {torch.bfloat16}
    assert all(bool(weight.isfinite().all()) for weight in first.values())
    assert bool((first["model.norm.weight"] == 1).all())


def test_a_shape_is_served_with_its_own_attention_and_densely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    for attention in ("auto", "dense"):
        llm = LLM("random:tiny", attention=attention, device="cpu", num_threads=1, num_pages=8)
        assert llm.info.attention == ("dense" if attention == "dense" else "nsa")
        (output,) = llm.generate([list(range(40))], params, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 5


def test_naming_a_shape_imports_no_torch() -> None:
    script = f"import sys; import {shapes.__name__}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
