"""What the runner for GPUs launches ahead, takes and drops: over stand-ins of kernels, on a CPU."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.load_gpu import run, run_worst_steps
from nsa_serve.engine.messages import AddSequence
from nsa_serve.engine.model_runner import NOT_A_NUMBER
from nsa_serve.model.decoder import Decoder
from nsa_serve.params import SamplingParams
from tests.support.device_engine import device_core, device_runner
from tests.support.engine import run_to_end, tokens_of
from tests.support.model_folder import (
    PAGE_SIZE,
    engine_config,
    greedy_by_definition,
    run_all,
    tokens_of_all,
    write_sharp_folder,
)

BAD_TOKEN = 200
GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
NEEDS_MORE: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 1},
    "penalties": {"frequency_penalty": 0.5},
    "biases": {"logit_bias": {3: 1.0}},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    return write_sharp_folder(tmp_path_factory.mktemp("model"), nan_tokens=[BAD_TOKEN])


@pytest.fixture(scope="module")
def folder(model: tuple[Path, Decoder]) -> Path:
    return model[0]


def random_tokens(length: int, seed: int) -> list[int]:
    return torch.randint(0, 199, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def watched_core(folder: Path, **fields: Any) -> tuple[EngineCore, list[int]]:
    """A core, and the numbers of tokens of all passes through its model."""
    passes: list[int] = []
    return device_core(folder, on_forward=passes.append, **fields), passes


def test_a_sequence_that_ends_by_its_length_computes_nothing_in_vain(folder: Path) -> None:
    core, passes = watched_core(folder)
    tokens_of_all(core, [random_tokens(20, 0)], GREEDY)
    assert passes == [20] + [1] * 9


def test_the_next_step_runs_before_the_last_ones_tokens_are_asked_for(folder: Path) -> None:
    core, passes = watched_core(folder)
    core.add(AddSequence(0, random_tokens(20, 0), GREEDY))
    for number in range(1, 9):
        core.step()
        assert len(passes) == number + 1
    run_to_end(core)
    assert len(passes) == 10


def test_a_stop_token_costs_one_row_that_is_dropped(model: tuple[Path, Decoder]) -> None:
    folder, decoder = model
    prompt = random_tokens(20, 0)
    tokens = greedy_by_definition(decoder, prompt, 10)
    stop = next(t for t in tokens[3:] if t not in tokens[:3])
    length = tokens.index(stop) + 1
    params = msgspec.structs.replace(GREEDY, stop_token_ids=(stop,))
    core, passes = watched_core(folder)
    assert tokens_of_all(core, [prompt], params)[0] == tokens[:length]
    assert passes == [20] + [1] * length
    assert tokens_of_all(core, [prompt], GREEDY)[0] == tokens, "the pages were given back whole"


@pytest.mark.parametrize("more", NEEDS_MORE)
def test_nothing_runs_ahead_of_what_the_next_token_depends_on(folder: Path, more: str) -> None:
    params = msgspec.structs.replace(GREEDY, **NEEDS_MORE[more])
    core, passes = watched_core(folder)
    core.add(AddSequence(0, random_tokens(20, 0), params))
    for number in range(1, 9):
        core.step()
        assert len(passes) == number
    ahead = tokens_of_all(device_core(folder), [random_tokens(20, 0)], params)
    behind = tokens_of_all(device_core(folder, run_ahead=False), [random_tokens(20, 0)], params)
    assert ahead == behind


def test_a_prompt_that_joins_is_computed_beside_what_ran_ahead(folder: Path) -> None:
    core, passes = watched_core(folder, enable_prefix_caching=False)
    prompts = [random_tokens(20, 0), random_tokens(33, 1)]
    expected = [tokens_of_all(device_core(folder), [p], GREEDY)[0] for p in prompts]
    core.add(AddSequence(0, prompts[0], GREEDY))
    outputs: dict[int, list[int]] = {0: [], 1: []}
    for number in range(6):
        if number == 3:
            core.add(AddSequence(1, prompts[1], GREEDY))
        for output in core.step().outputs:
            outputs[output.sequence_id] += output.new_token_ids
    for sequence_id, more in run_to_end(core).items():
        outputs[sequence_id] += tokens_of(more)
    assert list(outputs.values()) == expected
    # Prompt, four rows ahead of their time, the other prompt alone; then both together.
    assert passes[:8] == [20, 1, 1, 1, 33, 2, 2, 2]


def test_an_aborted_sequences_row_is_dropped_and_its_pages_serve_another(folder: Path) -> None:
    prompts = [random_tokens(30, 2), random_tokens(31, 3)]
    expected = tokens_of_all(device_core(folder), [prompts[1]], GREEDY)[0]
    core, _ = watched_core(folder, num_pages=6, enable_prefix_caching=False)
    core.add(AddSequence(0, prompts[0], GREEDY))
    core.step()
    core.step()
    core.abort([0])
    assert core.check_integrity()
    core.add(AddSequence(0, prompts[1], GREEDY))
    assert tokens_of(run_to_end(core)[0]) == expected


def any_params(rng: random.Random, stops: list[int]) -> SamplingParams:
    return SamplingParams(
        max_tokens=rng.randint(1, 14),
        temperature=rng.choice([0.0, 1.2]),
        seed=rng.randrange(100),
        top_k=rng.choice([0, 5]),
        stop_token_ids=tuple(stops),
        ignore_eos=True,
        logprobs=rng.choice([None, None, None, 2]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.0, 1.3]),
    )


@pytest.mark.parametrize("seed", range(4))
def test_running_ahead_changes_no_token_of_a_workload(folder: Path, seed: int) -> None:
    """Sequences come, stop, are aborted and preempted at random."""

    def run(run_ahead: bool) -> dict[int, list[int]]:
        rng = random.Random(seed)
        core = device_core(
            folder, run_ahead=run_ahead, num_pages=20, max_num_batched_tokens=24, max_num_seqs=5
        )
        outputs: dict[int, list[int]] = {}
        stops = [rng.randrange(199) for _ in range(40)]
        for sequence_id in range(14):
            prompt = random_tokens(rng.randint(1, 40), seed=rng.randrange(5))
            core.add(AddSequence(sequence_id, prompt, any_params(rng, stops)))
            outputs[sequence_id] = []
            for _ in range(rng.randint(0, 4)):
                for output in core.step().outputs:
                    outputs[output.sequence_id] += output.new_token_ids
            assert core.check_integrity()
        for sequence_id, more in run_to_end(core).items():
            outputs[sequence_id] += tokens_of(more)
        return outputs

    assert run(run_ahead=True) == run(run_ahead=False)


@pytest.mark.parametrize("length", [3, 20, 50])
def test_nan_fails_its_own_sequence_alone(model: tuple[Path, Decoder], length: int) -> None:
    folder, decoder = model
    healthy = [random_tokens(n, seed=n) for n in (5, 30, 61)]
    bad = [*random_tokens(length - 1, 99), BAD_TOKEN]
    core = device_core(folder, max_num_batched_tokens=16, num_pages=40)
    outputs = run_all(core, [healthy[0], bad, *healthy[1:]], GREEDY)
    assert outputs[1][-1].error == NOT_A_NUMBER
    for sequence_id, prompt in ((0, healthy[0]), (2, healthy[1]), (3, healthy[2])):
        assert tokens_of(outputs[sequence_id]) == greedy_by_definition(decoder, prompt, 10)


def test_a_step_that_raises_leaves_nothing_of_itself(
    model: tuple[Path, Decoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, decoder = model
    prompt = random_tokens(3 * PAGE_SIZE - 2, 4)
    fail: list[Callable[[], None]] = []

    def maybe_fail(_: int) -> None:
        if fail:
            fail.pop()()

    core = device_core(folder, on_forward=maybe_fail)
    core.add(AddSequence(0, prompt, GREEDY))
    tokens: list[int] = []
    for number in range(6):
        if number in (1, 3):

            def interrupt() -> None:
                raise KeyboardInterrupt

            fail.append(interrupt)
            with pytest.raises(KeyboardInterrupt):
                core.step()
        for output in core.step().outputs:
            tokens += output.new_token_ids
    tokens += tokens_of(run_to_end(core)[0])
    assert tokens == greedy_by_definition(decoder, prompt, 10)


def test_the_worst_steps_are_full_and_leave_nothing_behind(folder: Path) -> None:
    passes: list[int] = []
    limits: dict[str, Any] = {"max_num_seqs": 6, "max_num_batched_tokens": 100, "num_pages": 4}
    runner = device_runner(folder, on_forward=passes.append, run_ahead=False, **limits)
    run_worst_steps(runner)
    assert passes == [100, 96]  # 5 single queries and a chunk of 95; 6 chunks of 16
    run(runner, 6, [])
    assert passes[2:] == [6]
    prompt = random_tokens(20, 0)
    expected = tokens_of_all(device_core(folder), [prompt], GREEDY)
    core = EngineCore(engine_config(folder, **limits), runner)
    assert tokens_of_all(core, [prompt], GREEDY) == expected
