"""A model that computes NaN for one request fails that request, and no other is any different."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nsa_kernels.cache import LayerCache
from nsa_scheduler.output import ScheduledBatch, ScheduledSequence
from nsa_scheduler.sequence import Sequence
from nsa_serve.engine.load_model import load_model_runner
from nsa_serve.engine.model_runner import NOT_A_NUMBER, ModelRunner
from nsa_serve.engine.runner import StepResult
from nsa_serve.model.paged import cache_layouts
from nsa_serve.params import SamplingParams
from tests.support.engine import tokens_of
from tests.support.model_folder import (
    PAGE_SIZE,
    engine_config,
    greedy_by_definition,
    model_core,
    run_all,
    write_sharp_folder,
)
from tests.support.model_folders import TINY

BAD_TOKEN = 200
PARAMS = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=5)


def random_tokens(length: int, seed: int) -> list[int]:
    return torch.randint(0, 199, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def bad_prompt(length: int) -> list[int]:
    return [BAD_TOKEN, *random_tokens(length - 1, seed=99)]


def prompt_with_a_bad_end(length: int) -> list[int]:
    return [*random_tokens(length - 1, seed=99), BAD_TOKEN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharp_folder(tmp_path_factory.mktemp("nan"), nan_tokens=[BAD_TOKEN])[0]


HEALTHY = [random_tokens(n, seed=n) for n in (5, 30, 61)]


def step(folder: Path, bad: list[int], pages: list[list[int]], last: int) -> StepResult:
    """Fill the caches with prompts, the bad one first; then the `last` tokens of all at once."""
    runner = load_model_runner(engine_config(folder))
    items = []
    for sequence_id, (prompt, own) in enumerate(zip([bad, *HEALTHY], pages, strict=True)):
        runner.add(sequence_id, PARAMS, prompt)
        sequence = Sequence(
            sequence_id=sequence_id,
            token_ids=list(prompt),
            num_prompt_tokens=len(prompt),
            max_output_tokens=4,
            pages=own,
        )
        start = len(prompt) - last
        runner.execute(ScheduledBatch([ScheduledSequence(sequence, 0, start)]))
        items.append(ScheduledSequence(sequence, start, last))
    return runner.execute(ScheduledBatch(items))


@pytest.mark.parametrize("last", [1, 3])
@pytest.mark.parametrize("first_page_is_bad", [False, True])
def test_others_of_the_same_step_are_bit_identical(
    folder: Path, last: int, first_page_is_bad: bool
) -> None:
    """Tables are padded to the longest: what pads them must not be another's page."""
    order = list(range(30)) if first_page_is_bad else list(range(29, -1, -1))
    pages, taken = [], 0
    for length in (20, *map(len, HEALTHY)):
        count = -(-length // PAGE_SIZE)
        pages.append(order[taken : taken + count])
        taken += count
    found = step(folder, prompt_with_a_bad_end(20), pages, last)
    healthy = step(folder, random_tokens(20, seed=1), pages, last)
    assert found.failed == {0: NOT_A_NUMBER}
    assert set(found.token_ids) == {1, 2, 3}
    del healthy.token_ids[0], healthy.logprobs[0]
    assert found.token_ids == healthy.token_ids
    assert found.logprobs == healthy.logprobs


@pytest.mark.parametrize("caching", [False, True])
def test_those_that_get_the_pages_next_are_what_they_are_alone(
    tmp_path: Path, caching: bool
) -> None:
    """Entries of a page that were not yet written have no weight, but 0 · NaN is NaN."""
    folder, decoder = write_sharp_folder(tmp_path, TINY, nan_tokens=[BAD_TOKEN])
    core = model_core(folder, num_pages=12, enable_prefix_caching=caching)
    bad = [bad_prompt(60)]
    for _ in range(2):
        (output,) = run_all(core, bad, PARAMS)[0]
        assert (output.finish_reason, output.error) == ("error", NOT_A_NUMBER)
        for prompt in HEALTHY:
            outputs = run_all(core, [prompt], PARAMS)[0]
            assert tokens_of(outputs) == greedy_by_definition(decoder, prompt, 12)
            assert outputs[-1].finish_reason == "length"


def test_a_batch_goes_on_without_the_one_that_failed(tmp_path: Path) -> None:
    folder, decoder = write_sharp_folder(tmp_path, TINY, nan_tokens=[BAD_TOKEN])
    core = model_core(folder, max_num_batched_tokens=16, num_pages=40)
    outputs = run_all(core, [HEALTHY[0], bad_prompt(50), *HEALTHY[1:], bad_prompt(3)], PARAMS)
    assert {i for i, o in outputs.items() if o[-1].finish_reason == "error"} == {1, 4}
    for sequence_id, prompt in ((0, HEALTHY[0]), (2, HEALTHY[1]), (3, HEALTHY[2])):
        assert tokens_of(outputs[sequence_id]) == greedy_by_definition(decoder, prompt, 12)


class SpoiledHead(nn.Module):
    """A head whose second row of logits is not finite."""

    def __init__(self, head: nn.Module, value: float) -> None:
        super().__init__()
        self.head, self.value = head, value

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, hidden] → [N, vocab]"""
        logits: Tensor = self.head(hidden)
        logits[1, 3] = self.value
        return logits


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_of_logits_that_is_not_finite_fails_alone(tmp_path: Path, value: float) -> None:
    folder, decoder = write_sharp_folder(tmp_path)
    info = load_model_runner(engine_config(folder)).info
    assert decoder.lm_head is not None

    def first_step() -> StepResult:
        caches = [
            LayerCache.allocate(layout, 8, torch.float32, torch.device("cpu"))
            for layout in cache_layouts(TINY, PAGE_SIZE)
        ]
        runner = ModelRunner(decoder, caches, info)
        items = []
        for i in range(3):
            runner.add(i, PARAMS, [i, i])
            sequence = Sequence(
                sequence_id=i,
                token_ids=[i, i],
                num_prompt_tokens=2,
                max_output_tokens=4,
                pages=[i],
            )
            items.append(ScheduledSequence(sequence, 0, 2))
        return runner.execute(ScheduledBatch(items))

    healthy = first_step()
    decoder.lm_head = SpoiledHead(decoder.lm_head, value)
    found = first_step()
    assert found.failed == {1: NOT_A_NUMBER}
    del healthy.token_ids[1], healthy.logprobs[1]
    assert (found.token_ids, found.logprobs) == (healthy.token_ids, healthy.logprobs)
