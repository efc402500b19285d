"""A plan's figures are those of real modules, caches and selections."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from nsa_kernels.cache import LayerCache
from nsa_kernels.select.reference import select_blocks
from nsa_serve.config import ModelConfig
from nsa_serve.engine.memory import GIB, cache_cost, page_size_of
from nsa_serve.engine.plan import (
    cache_bytes_per_token,
    make_plan,
    num_parameters,
    num_sequences,
    step_reads,
    weight_bytes,
)
from nsa_serve.model import int8
from nsa_serve.model.attention import sparse_spec
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.paged import cache_layouts
from tests.support.command_line import run_here
from tests.support.dialects import DIALECTS, MODELS, model_config, random_decoder
from tests.support.model_folders import write_tiny_folder

DEEP = {
    "deep": model_config(
        DIALECTS["paper"], num_layers=5, layer_kinds=("nsa", "dense") * 2 + ("nsa",)
    )
}


@pytest.mark.parametrize("config", (MODELS | DEEP).values(), ids=(MODELS | DEEP).keys())
def test_parameters_are_those_of_the_whole_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        decoder = Decoder(config)
    assert num_parameters(config) == sum(p.numel() for p in decoder.parameters())
    stored = sum(p.to(torch.bfloat16).nbytes for p in decoder.parameters())
    assert weight_bytes(config, "bfloat16") == stored


@pytest.mark.skipif(not int8.supported(), reason="this CPU multiplies no int8 vectors")
@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "tied_normed_biased",
        "paper",
        "transformer",
        "softmax_gates",
        "learned_positions_dense",
    ],
)
def test_int8_weights_take_what_quantisation_leaves(name: str) -> None:
    decoder = int8.quantize(random_decoder(MODELS[name]).to(torch.bfloat16).join())
    stored = sum(parameter.nbytes for parameter in decoder.parameters())
    for module in decoder.modules():
        if isinstance(module, int8.Int8Linear):
            tensors = module.plain, module.scale, module.zero_points, module.bias
            stored += module.packed.numel()  # opaque: its numbers are bytes
            stored += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    assert weight_bytes(MODELS[name], "int8") == stored


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_cache_bytes_are_those_of_allocated_pages(config: ModelConfig, dtype: str) -> None:
    num_pages, page_size = 3, page_size_of(config, None)
    kind = getattr(torch, dtype)
    caches = [
        LayerCache.allocate(layout, num_pages, kind, torch.device("cpu"))
        for layout in cache_layouts(config, page_size)
    ]
    per_token = sum(cache_bytes_per_token(config, dtype).values())
    assert per_token * num_pages * page_size == sum(cache.num_bytes for cache in caches)


@pytest.mark.parametrize("context", [1, 8, 24, 64, 200, 512])
@pytest.mark.parametrize("name", DIALECTS)
def test_selected_reads_are_the_blocks_that_a_query_selects(name: str, context: int) -> None:
    config = MODELS[name]
    spec = sparse_spec(DIALECTS[name])
    num_blocks = -(-context // spec.select_block)
    scores = torch.randn(num_blocks, generator=torch.Generator().manual_seed(0))
    chosen = select_blocks(spec, scores, torch.tensor(context - 1))
    num_tokens = min(context, int((chosen >= 0).sum()) * spec.select_block)
    token = 4 * config.num_kv_heads * (config.head_dim + config.value_dim)
    planned = step_reads(config, "float32", context).selected
    if not spec.uses[1]:
        assert planned == 0
    elif spec.selection_floor or spec.half_merge:  # may select fewer
        assert planned >= num_tokens * token * config.num_layers
    else:
        assert planned == num_tokens * token * config.num_layers


@pytest.mark.parametrize("name", DIALECTS)
def test_slot_and_window_reads_are_what_the_cache_holds_and_the_query_sees(name: str) -> None:
    config, nsa, context = MODELS[name], DIALECTS[name], 200
    reads = step_reads(config, "float32", context)
    use_compressed, _, use_window = nsa.uses
    token = 4 * config.num_kv_heads * (config.head_dim + config.value_dim) * config.num_layers
    assert reads.window == (nsa.window * token if use_window else 0)
    slots = context // nsa.compress_stride - nsa.first_slot
    share = 1.0 if use_compressed else config.head_dim / (config.head_dim + config.value_dim)
    assert reads.compressed == slots * token * share


def test_a_query_that_selects_everything_ranks_nothing() -> None:
    reads = step_reads(MODELS["built_in"], "float32", 32)
    dense = step_reads(MODELS["dense"], "float32", 32)
    assert reads.compressed == 0
    assert reads.total == dense.total


def test_layers_that_attend_densely_read_everything() -> None:
    mixed, dense = (step_reads(MODELS[n], "float32", 200) for n in ("mixed_layers", "dense"))
    assert 2 * mixed.dense_layers == dense.total
    assert mixed.total < dense.total + mixed.compressed


@pytest.mark.parametrize("name", ["paper", "dense"])
def test_one_more_sequence_would_not_fit(name: str) -> None:
    config, context, memory = MODELS[name], 300, 50e6
    cost = cache_cost(config, page_size_of(config, None), torch.bfloat16)
    per_sequence = -(-context // cost.page_size) * cost.page_bytes
    free = memory - weight_bytes(config, "bfloat16")
    fits = num_sequences(config, "bfloat16", context, memory)
    assert fits * per_sequence <= free < (fits + 1) * per_sequence


def test_a_memory_too_small_for_the_weights_holds_nothing() -> None:
    assert num_sequences(MODELS["paper"], "bfloat16", 100, 1000) == 0


def test_contexts_end_at_the_models_limit() -> None:
    config = model_config(DIALECTS["base"], max_position_embeddings=5000)
    plan = make_plan("m", config, "bfloat16", [1.0, 2.0])
    assert plan.nsa is not None
    for attention in (plan.nsa, plan.dense):
        assert [read.context for read in attention.step_reads] == [1024, 4096, 5000]
    assert [(fit.context, fit.memory_gib) for fit in plan.fits] == [
        (context, gib) for context in (1024, 4096, 5000) for gib in (1.0, 2.0)
    ]
    share = 2.0 * plan.memory_utilization * GIB
    assert plan.fits[-1].num_sequences == num_sequences(config, "bfloat16", 5000, share)


def _planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run_here("plan", "--json", *arguments) == 0
    return msgspec.json.decode(capsys.readouterr().out, type=dict[str, Any])


def test_a_folder_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    plan = _planned(capsys, str(folder), "--memory", "1", "--dtype", "float32")
    assert (plan["model"], plan["dtype"]) == ("tiny", "float32")
    assert {fit["memory_gib"] for fit in plan["fits"]} == {1.0}


@pytest.mark.parametrize(("file", "name"), [("config.json", "tiny"), ("other.json", "other.json")])
def test_a_bare_config_file_is_enough(
    tmp_path: Path, file: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_folder(tmp_path / "tiny")
    expected = _planned(capsys, str(folder))
    bare = tmp_path / "elsewhere" / "tiny" / file
    bare.parent.mkdir(parents=True)
    (folder / "config.json").rename(bare)
    plan = _planned(capsys, str(bare))
    assert plan["model"] == name
    for key in ("num_parameters", "nsa", "dense"):
        assert plan[key] == expected[key]


@pytest.mark.parametrize("attention", ["nsa", "mixed", "dense"])
def test_the_tables_hold_the_plan(
    tmp_path: Path, attention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"nsa": "paper", "mixed": "mixed_layers", "dense": "dense"}
    folder = write_tiny_folder(tmp_path / "tiny", MODELS[names[attention]])
    assert run_here("plan", str(folder)) == 0
    shown = capsys.readouterr().out
    assert "this machine" in shown
    assert "141 GiB" in shown
    assert ("NSA saves reads, not bytes" in shown) == (attention != "dense")
    assert ("dense layers" in " ".join(shown.split())) == (attention == "mixed")
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("memory", ["nan", "inf", "x"])
def test_a_memory_that_is_no_amount_is_a_bad_flag(memory: str) -> None:
    assert run_here("plan", "--memory", memory) == 2
