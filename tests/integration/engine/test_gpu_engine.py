"""The engine on a GPU: graphs, batches and runs ahead give the same tokens. Runs where there is a
GPU."""

from pathlib import Path

import msgspec
import pytest
import torch

from nsa_kernels.dispatch import layer_kernels
from nsa_serve.config import ModelConfig
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.gpu_runner import GpuRunner
from nsa_serve.engine.load_model import load_model_runner
from nsa_serve.params import SamplingParams
from tests.support.device_engine import device_runner
from tests.support.dialects import DIALECTS
from tests.support.model_folder import (
    engine_config,
    greedy_by_definition,
    model_core,
    run_all,
    tokens_of_all,
    write_sharp_folder,
)
from tests.support.model_folders import TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

GREEDY = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=30, temperature=1.2, seed=3, ignore_eos=True)
WIDE = msgspec.structs.replace(TINY, num_heads=8, head_dim=16, hidden_size=64)
MODELS: dict[str, ModelConfig] = {
    "nsa": WIDE,
    "dense": msgspec.structs.replace(WIDE, nsa=None),
    "paper": msgspec.structs.replace(WIDE, nsa=DIALECTS["paper"]),
    "lucidrains": msgspec.structs.replace(WIDE, nsa=DIALECTS["lucidrains"]),
}


def random_tokens(length: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [random_tokens(n, seed=n) for n in (1, 3, 17, 40, 64, 7, 33, 100, 16)]


@pytest.fixture(params=MODELS, scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharp_folder(tmp_path_factory.mktemp("model"), MODELS[request.param])[0]


def gpu_core(folder: Path, *, use_graphs: bool = True, run_ahead: bool = True) -> EngineCore:
    runner = device_runner(
        folder,
        kernels=lambda: layer_kernels(torch.device("cuda")),
        device="cuda",
        use_graphs=use_graphs,
        run_ahead=run_ahead,
        poison=torch.nan,
        max_num_seqs=12,
    )
    return EngineCore(engine_config(folder), runner)


def logprobs_of(core: EngineCore, prompts: list[list[int]]) -> list[list[float]]:
    params = msgspec.structs.replace(GREEDY, logprobs=0)
    outputs = run_all(core, prompts, params)
    return [
        [place.chosen.logprob for output in outputs[i] for place in output.logprobs or []]
        for i in range(len(prompts))
    ]


@pytest.mark.parametrize("params", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_graphs_and_runs_ahead_change_no_token(folder: Path, params: SamplingParams) -> None:
    expected = tokens_of_all(gpu_core(folder, use_graphs=False, run_ahead=False), PROMPTS, params)
    for use_graphs, run_ahead in ((True, True), (True, False), (False, True)):
        core = gpu_core(folder, use_graphs=use_graphs, run_ahead=run_ahead)
        assert tokens_of_all(core, PROMPTS, params) == expected


def test_a_graphs_probabilities_are_those_of_single_launches_bit_for_bit(folder: Path) -> None:
    """Eight sequences, so that no batch is padded."""
    prompts = PROMPTS[:8]
    assert logprobs_of(gpu_core(folder), prompts) == logprobs_of(
        gpu_core(folder, use_graphs=False), prompts
    )


def test_a_batch_gives_each_the_tokens_that_it_gets_alone(folder: Path) -> None:
    core = gpu_core(folder)
    alone = [tokens_of_all(core, [prompt], GREEDY)[0] for prompt in PROMPTS]
    assert tokens_of_all(gpu_core(folder), PROMPTS, GREEDY) == alone


def test_the_tokens_are_those_of_the_definition(tmp_path: Path) -> None:
    folder, decoder = write_sharp_folder(tmp_path, WIDE)
    expected = [greedy_by_definition(decoder, prompt, 10) for prompt in PROMPTS]
    params = msgspec.structs.replace(GREEDY, max_tokens=10)
    assert tokens_of_all(gpu_core(folder), PROMPTS, params) == expected


def test_an_engine_sizes_its_cache_and_leaves_room_for_its_worst_step(tmp_path: Path) -> None:
    folder, _ = write_sharp_folder(tmp_path, WIDE)
    config = engine_config(folder, device="cuda", num_pages=None, gpu_memory_utilization=0.5)
    runner = load_model_runner(config)
    assert isinstance(runner, GpuRunner)
    info = runner.info
    assert (info.max_num_seqs, info.max_num_batched_tokens) == (256, 8192)
    assert info.num_lookahead_tokens == 1
    # More than can be used at once is not taken.
    assert info.num_pages <= 256 * -(-info.max_model_len // info.page_size)
    core = model_core(folder, device="cuda", dtype="float32")
    assert [len(t) for t in tokens_of_all(core, PROMPTS, GREEDY)] == [30] * len(PROMPTS)
