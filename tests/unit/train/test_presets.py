"""Presets: what the README and docs/train.md promise of each."""

import msgspec
import pytest
import torch

from nsa_serve.config import ModelConfig
from nsa_serve.engine.plan import cache_bytes_per_token, num_parameters
from nsa_serve.errors import ConfigError
from nsa_serve.model.decoder import Decoder
from nsa_serve.preset import Preset, changed
from nsa_serve.presets import PRESETS, find_preset
from tests.support.command_line import run_here

ALL = pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
SIZES = {  # millions of parameters, from the layers' shapes by hand
    "fla": (2 * 32_000 * 2048 + 24 * (2 * 2048 * 2048 + 2 * 2048 * 128 + 3 * 64 * 2048
            + 3 * 2048 * 5632 + 2 * 2048) + 2048) / 1e6,
    "edifice": (2 * 256 * 256 + 4 * (4 * (256 * 256 + 256) + 3 + 2 * 256 * 1024 + 1024 + 256
                + 4 * 256) + 2 * 256) / 1e6,
    "devin": (2 * 10 * 256 + 1024 * 256
              + 2 * (4 * (256 * 256 + 256) + 3 * 257 + 2 * 256 * 1024 + 1024 + 256 + 4 * 256
                     + 64 * 64 * 256 + 256 + 256 * 64 + 64 + 2 * 4 * 64 * 64) + 2 * 256) / 1e6,
}  # fmt: skip


def test_every_family_is_there() -> None:
    assert set(PRESETS) == {
        "paper", "fla", "nsa-1b", "xunhao", "fsa", "lucidrains", "infllm-v2", "nsa-vibe", "devin",
        "edifice",
    }  # fmt: skip


@ALL
def test_parameters_and_cache_come_from_the_configuration_alone(
    preset: Preset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("plan", "--preset", preset.name, "--json") == 0
    plan = msgspec.json.decode(capsys.readouterr().out)
    with torch.device("meta"):
        decoder = Decoder(preset.config)
    assert plan["model"] == preset.name
    assert plan["num_parameters"] == sum(p.numel() for p in decoder.parameters())
    assert plan["nsa"]["cache_bytes_per_token"] == cache_bytes_per_token(preset.config, "bfloat16")


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_those_of_the_layers(name: str) -> None:
    assert num_parameters(PRESETS[name].config) == round(SIZES[name] * 1e6)


@ALL
def test_a_small_one_is_the_same_architecture(preset: Preset) -> None:
    small, full = preset.small_config, preset.config
    lengths = [
        "compress_block",
        "compress_stride",
        "select_block",
        "num_selected",
        "window",
        "compressor_hidden",
        "gate_hidden",
        "init_blocks",
        "local_blocks",
        "dense_len",
    ]
    assert small.nsa is not None
    assert full.nsa is not None
    for field in small.nsa.__struct_fields__:
        if field not in lengths:
            assert getattr(small.nsa, field) == getattr(full.nsa, field), field
    for field in ("norm", "mlp", "positions", "hidden_act", "attention_bias", "rope_interleaved"):
        assert getattr(small, field) == getattr(full, field), field
    assert (small.group == 1) == (full.group == 1)
    assert num_parameters(small) < 1e6


def test_names_that_are_not_known_are_answered_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="'deepseek' is not known, expected one of: paper, fla"):
        find_preset("deepseek")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"num_layer": 3}, "num_layer"),
        ({"num_heads": 3}, "num_kv_heads 2 must divide num_heads 3"),
        ({"nsa": {"windows": 3}}, "windows"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_bad_changes_are_named(changes: dict[str, object], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        changed(PRESETS["xunhao"].small_config, changes)


def test_changes_leave_the_rest() -> None:
    config: ModelConfig = changed(PRESETS["fla"].config, {"num_layers": 2, "nsa": {"window": 7}})
    assert (config.num_layers, config.hidden_size) == (2, 2048)
    assert config.nsa is not None
    assert (config.nsa.window, config.nsa.select_block) == (7, 64)


def test_a_model_and_a_preset_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("plan", "folder", "--preset", "fla") == 2
    assert "takes the place of MODEL" in capsys.readouterr().err
