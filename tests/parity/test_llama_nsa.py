"""A `llama-nsa` checkpoint (NSA-1B) gives what its definition gives, and serves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nsa_kernels.select.reference import select_blocks
from nsa_serve import LLM, SamplingParams
from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.folder import resolve_model
from tests.support.originals.llama_nsa import half_merge, original_logits, write_random
from tests.support.parity import Parity, load, prefixes, random_tokens
from tests.support.specs import paper_spec


@pytest.mark.parametrize("n", [4, 16])
def test_half_merge_is_the_rule_on_random_scores(n: int) -> None:
    """With ties, and at every place of a query in its block of n."""
    spec = paper_spec(
        select_block=16, num_selected=n, init_blocks=0, local_blocks=1, half_merge=True
    )
    rng, choose = np.random.default_rng(0), half_merge(n)
    for current in [*range(3 * n + 2), 7 * n - 1, 7 * n]:
        for scores in (rng.random(current + 1), rng.integers(0, 4, current + 1) / 4.0):
            padded = np.concatenate([scores, rng.random(3)]).astype(np.float32)
            position = 16 * current + int(rng.integers(16))
            found = select_blocks(spec, torch.from_numpy(padded), torch.tensor(position))
            assert {int(j) for j in found if j >= 0} == choose(scores.tolist(), position)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 16 * 34 + 5),
        ({"block_counts": 4, "window_size": 20}, 16 * 9 + 3),
        ({"block_size": 4, "block_counts": 4, "num_key_value_heads": 2}, 4 * 13 + 2),
    ],
    ids=["as_nsa_1b", "exact", "small_half_merge"],
)
def test_it_gives_the_logits_of_the_definition(
    changes: dict[str, Any], length: int, tmp_path: Path, parity: Parity
) -> None:
    config, state = write_random(tmp_path, **changes)
    tokens = random_tokens(length)
    expected = original_logits(config, state, tokens)
    parity.check("nsa-1b", load(tmp_path), tokens, prefixes(expected))


def test_a_folder_serves_the_likeliest_tokens(tmp_path: Path) -> None:
    config, state = write_random(tmp_path)
    prompt = random_tokens(300, seed=5)
    llm = LLM(str(tmp_path), device="cpu", dtype="float32", num_threads=1, num_pages=64)
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    tokens = [*prompt, *output.outputs[0].token_ids]
    expected = original_logits(config, state, tokens)[len(prompt) - 1 : -1].argmax(-1)
    assert output.outputs[0].token_ids == expected.tolist()


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"block_counts": 12}, "block_counts 12 must be a power of 2"),
        ({"block_counts": 32}, "at most block_size 16"),
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"inference_mode": "full"}, "inference_mode 'full' is not sparse"),
    ],
)
def test_what_no_such_checkpoint_does_is_refused(
    changes: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    write_random(tmp_path, **changes)
    with pytest.raises(ModelLoadError, match=cause) as caught:
        resolve_model(str(tmp_path))
    assert "\n" not in str(caught.value)
