"""A real, small model behind the core: the same tokens however its steps are cut."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from nsa_serve import LLM
from nsa_serve.config import ModelConfig, RopeScaling
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.messages import AddSequence
from nsa_serve.model.decoder import Decoder
from nsa_serve.outputs import TokenLogprobs
from nsa_serve.params import SamplingParams
from tests.support.device_engine import device_core
from tests.support.dialects import DIALECTS
from tests.support.engine import run_to_end, tokens_of
from tests.support.model_folder import (
    PAGE_SIZE,
    greedy_by_definition,
    model_core,
    run_all,
    tokens_of_all,
    write_sharp_folder,
)
from tests.support.model_folders import TINY
from tests.support.paged import whole

GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=10, temperature=1.5, seed=11, ignore_eos=True, top_p=0.95)
MODELS: dict[str, ModelConfig] = {
    "nsa": TINY,
    "dense": msgspec.structs.replace(TINY, nsa=None),
    "paper": msgspec.structs.replace(TINY, nsa=DIALECTS["paper"], v_head_dim=6),
    "lucidrains": msgspec.structs.replace(TINY, nsa=DIALECTS["lucidrains"]),
    "mixed": msgspec.structs.replace(
        TINY,
        layer_kinds=("nsa", "dense"),
        rope_scaling=RopeScaling(rope_type="linear", factor=2.0),
    ),
}


def random_tokens(length: int, seed: int) -> list[int]:
    return torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [random_tokens(n, seed=n) for n in (1, 3, 17, 40, 64, 7, 33)]


Cores = Callable[..., EngineCore]
CASES: list[tuple[str, Cores]] = [(name, model_core) for name in MODELS]
CASES += [(name, device_core) for name in ("nsa", "lucidrains")]
"""Models, and what makes a core over a folder of theirs: the plain runner, or the one for GPUs over
stand-ins of kernels."""


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1].__name__}", scope="module")
def case(request: pytest.FixtureRequest) -> tuple[str, Cores]:
    found: tuple[str, Cores] = request.param
    return found


@pytest.fixture(scope="module")
def cores(case: tuple[str, Cores]) -> Cores:
    return case[1]


@pytest.fixture(scope="module")
def model(
    case: tuple[str, Cores], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Decoder]:
    return write_sharp_folder(tmp_path_factory.mktemp("model"), MODELS[case[0]])


@pytest.fixture(scope="module")
def folder(model: tuple[Path, Decoder]) -> Path:
    return model[0]


@pytest.fixture(scope="module")
def expected(model: tuple[Path, Decoder]) -> list[list[int]]:
    """Greedy outputs by the definition."""
    return [greedy_by_definition(model[1], prompt, 10) for prompt in PROMPTS]


def test_alone(cores: Cores, folder: Path, expected: list[list[int]]) -> None:
    core = cores(folder, enable_prefix_caching=False)
    assert [tokens_of_all(core, [prompt], GREEDY)[0] for prompt in PROMPTS] == expected


def test_in_one_batch(cores: Cores, folder: Path, expected: list[list[int]]) -> None:
    assert tokens_of_all(cores(folder), PROMPTS, GREEDY) == expected


@pytest.mark.parametrize("budget", [5, 9, 30])
def test_in_chunks(cores: Cores, folder: Path, expected: list[list[int]], budget: int) -> None:
    core = cores(folder, max_num_batched_tokens=budget, max_num_seqs=5)
    assert tokens_of_all(core, PROMPTS, GREEDY) == expected


def test_joining_a_batch_that_runs(cores: Cores, folder: Path, expected: list[list[int]]) -> None:
    core = cores(folder)
    outputs: dict[int, list[int]] = {i: [] for i in range(len(PROMPTS))}
    for sequence_id, prompt in enumerate(PROMPTS):
        core.add(AddSequence(sequence_id, prompt, GREEDY))
        for output in core.step().outputs:
            outputs[output.sequence_id] += output.new_token_ids
    for sequence_id, more in run_to_end(core).items():
        outputs[sequence_id] += tokens_of(more)
    assert list(outputs.values()) == expected


def tight_core(cores: Cores, folder: Path) -> EngineCore:
    """A pool in which only about a third of the prompts fit at once."""
    return cores(folder, num_pages=12, enable_prefix_caching=False)


def test_preempted(cores: Cores, folder: Path, expected: list[list[int]]) -> None:
    core = tight_core(cores, folder)
    for sequence_id, prompt in enumerate(PROMPTS):
        core.add(AddSequence(sequence_id, prompt, GREEDY))
    outputs = run_to_end(core)
    assert [tokens_of(outputs[i]) for i in range(len(PROMPTS))] == expected
    assert core.step().stats.num_preemptions > 0


def test_seeded_samples_are_the_same_in_a_batch_alone_and_preempted(
    cores: Cores, folder: Path
) -> None:
    alone = [tokens_of_all(cores(folder), [prompt], SEEDED)[0] for prompt in PROMPTS]
    assert len({tuple(tokens) for tokens in alone}) == len(PROMPTS)
    assert tokens_of_all(cores(folder), PROMPTS, SEEDED) == alone
    assert tokens_of_all(tight_core(cores, folder), PROMPTS, SEEDED) == alone


def test_after_a_prefix_hit(cores: Cores, folder: Path, expected: list[list[int]]) -> None:
    core = cores(folder)
    tokens_of_all(core, [PROMPTS[4][:41], PROMPTS[3]], GREEDY)
    outputs = run_all(core, PROMPTS, GREEDY)
    assert [tokens_of(outputs[i]) for i in range(len(PROMPTS))] == expected
    cached = [max(output.num_cached_tokens for output in outputs[i]) for i in (3, 4)]
    assert cached == [40 - PAGE_SIZE, 40]


def assert_logprobs(
    model: tuple[Path, Decoder], found: list[TokenLogprobs], prompt: list[int]
) -> None:
    """Those of tokens 1 and on, by the definition."""
    truth = whole(model[1], prompt).log_softmax(-1)
    assert [place.chosen.token_id for place in found] == prompt[1:]
    for t, place in enumerate(found):
        chosen, row = place.chosen, truth[t]
        assert chosen.logprob == pytest.approx(float(row[prompt[t + 1]]), abs=2e-4)
        assert chosen.rank == 1 + int((row > row[chosen.token_id]).sum())
        best = row.topk(len(place.top))
        assert [top.token_id for top in place.top] == best.indices.tolist()
        assert [top.logprob for top in place.top] == pytest.approx(best.values.tolist(), abs=2e-4)


@pytest.mark.parametrize("limits", [{}, {"max_num_batched_tokens": 7}, {"num_pages": 12}])
def test_prompt_logprobs_are_the_definitions_in_any_chunks(
    cores: Cores, model: tuple[Path, Decoder], limits: dict[str, int]
) -> None:
    params = msgspec.structs.replace(GREEDY, prompt_logprobs=3, max_tokens=30)
    core = cores(model[0], **limits)
    prompts = [PROMPTS[3], PROMPTS[6], PROMPTS[4][:20]]
    outputs = run_all(core, prompts, params)
    assert bool(core.step().stats.num_preemptions) == ("num_pages" in limits)
    for sequence_id, prompt in enumerate(prompts):
        found = [place for o in outputs[sequence_id] for place in o.prompt_logprobs or []]
        assert_logprobs(model, found, prompt)


def test_logprobs_of_the_output_are_the_definitions(
    cores: Cores, model: tuple[Path, Decoder]
) -> None:
    params = msgspec.structs.replace(GREEDY, logprobs=2)
    outputs = run_all(cores(model[0]), PROMPTS, params)
    for sequence_id, prompt in enumerate(PROMPTS):
        found = [place for o in outputs[sequence_id] for place in o.logprobs or []]
        tokens = [*prompt, *tokens_of(outputs[sequence_id])]
        truth = whole(model[1], tokens).log_softmax(-1)
        assert [place.chosen.rank for place in found] == [1] * 10
        for t, place in enumerate(found, start=len(prompt) - 1):
            assert place.chosen.logprob == pytest.approx(float(truth[t].max()), abs=2e-4)
            assert place.top[0] == place.chosen


def test_n_continuations_and_scores_through_the_offline_interface(
    model: tuple[Path, Decoder], expected: list[list[int]]
) -> None:
    llm = LLM(str(model[0]), device="cpu", num_threads=1, block_size=PAGE_SIZE, num_pages=64)
    (output,) = llm.generate([PROMPTS[3]], msgspec.structs.replace(GREEDY, n=3))
    assert [o.token_ids for o in output.outputs] == [expected[3]] * 3
    (output,) = llm.generate([PROMPTS[3]], msgspec.structs.replace(SEEDED, n=4))
    assert len({tuple(o.token_ids) for o in output.outputs}) == 4
    truth = whole(model[1], PROMPTS[4]).log_softmax(-1)
    expected_scores = [float(truth[t, token]) for t, token in enumerate(PROMPTS[4][1:])]
    assert llm.score(PROMPTS[4]) == pytest.approx(expected_scores, abs=2e-4)
    assert llm.score([5]) == []
