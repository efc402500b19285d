"""An nsa-vibe checkpoint gives what its definition gives, in float64, and needs no tokenizer."""

from pathlib import Path
from typing import Any

import pytest

from nsa_serve import LLM, SamplingParams
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.folder import resolve_model
from tests.support.by_hand import to_torch
from tests.support.originals.nsa_vibe import MODEL, NSA, original_logits, random_state, write_random
from tests.support.parity import Parity, load, prefixes, random_tokens, write_checkpoint


@pytest.mark.parametrize("changes", [{}, {"d_v": 12}, {"n_heads": 2, "n_kv_groups": 1}])
def test_it_gives_the_logits_of_the_definition(
    changes: dict[str, Any], tmp_path: Path, parity: Parity
) -> None:
    model, state = write_random(tmp_path, **changes)
    tokens = random_tokens(61)
    expected = original_logits(model, state, tokens)
    parity.check("nsa-vibe", load(tmp_path), tokens, prefixes(expected))


def test_its_config_may_be_flat_and_share_flas_model_type(tmp_path: Path) -> None:
    nested, flat = tmp_path / "nested", tmp_path / "flat"
    write_random(nested)
    write_random(flat, nested=False)
    assert resolve_model(str(flat)).config == resolve_model(str(nested)).config


def test_text_goes_in_and_out_as_bytes(tmp_path: Path) -> None:
    model, state = write_random(tmp_path)
    llm = LLM(str(tmp_path), device="cpu", dtype="float32", num_threads=1, num_pages=64)
    params = SamplingParams(max_tokens=3, temperature=0.0)
    (output,) = llm.generate(["Ünder the sea"], params, use_tqdm=False)
    assert output.prompt_token_ids == list("Ünder the sea".encode())
    tokens = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    expected = original_logits(model, state, tokens)
    start = len(output.prompt_token_ids) - 1
    assert output.outputs[0].token_ids == expected[start:-1].argmax(-1).tolist()


def test_a_learned_phi_is_refused(tmp_path: Path) -> None:
    write_random(tmp_path)
    config = {"model": MODEL, "nsa": NSA | {"phi": "mlp"}}
    write_checkpoint(tmp_path, config, to_torch(random_state(MODEL)))
    with pytest.raises(ModelLoadError, match="phi must be avg"):
        resolve_model(str(tmp_path))
