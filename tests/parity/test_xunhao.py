"""Checkpoints of XunhaoLai's library and of FSA give what their definition gives, in float64."""

from pathlib import Path
from typing import Any

import pytest

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.folder import resolve_model
from tests.support.by_hand import to_torch
from tests.support.originals.xunhao import CONFIG, original_logits, random_state, write_random
from tests.support.parity import Parity, load, prefixes, random_tokens, write_checkpoint

CASES: dict[str, dict[str, Any]] = {
    "linear": {},
    "weighted": {"compress_type": "weightedpool"},
    "mean": {"compress_type": "avgpool"},
    "fsa": {"one_gate": True},
    "fsa_by_name": {"one_gate": True, "model_type": "fsa", "compress_type": "weightedpool"},
    "wide_blocks": {"block_size": 32, "kernel_stride": 4, "topk": 3, "rope_scaling": None},
    "more_forced": {"kernel_size": 8, "init_blocks": 2, "local_blocks": 1, "window_size": 8},
}


@pytest.mark.parametrize("case", CASES)
def test_it_gives_the_logits_of_the_definition(case: str, tmp_path: Path, parity: Parity) -> None:
    config, state = write_random(tmp_path, **CASES[case])
    tokens = random_tokens(config["block_size"] * (config["topk"] + 3) + 5)
    expected = original_logits(config, state, tokens)
    family = "fsa" if case.startswith("fsa") else "xunhao"
    parity.check(family, load(tmp_path), tokens, prefixes(expected))


def test_other_compressors_are_refused(tmp_path: Path) -> None:
    config = CONFIG | {"compress_type": "conv"}
    write_checkpoint(tmp_path, config, to_torch(random_state(CONFIG, one_gate=False)))
    with pytest.raises(ModelLoadError, match="compress_type 'conv' is none of avgpool"):
        resolve_model(str(tmp_path))
