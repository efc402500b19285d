"""Every way of computing a sequence over pages gives the logits of the definition."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nsa_serve.model.decoder import Decoder
from tests.support.dialects import MODELS, random_decoder
from tests.support.paged import PagedModel, whole

LENGTH = 71
TOKENS = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(7)).tolist()
PAGE = 16


def close(a: Tensor, b: Tensor) -> None:
    scale = b.abs().max()
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-5)


@dataclass(frozen=True, slots=True)
class Case:
    """A model and the logits of TOKENS by the definition."""

    decoder: Decoder
    expected: Tensor


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    decoder = random_decoder(MODELS[request.param])
    return Case(decoder, whole(decoder, TOKENS))


@pytest.mark.parametrize("chunk", [1, 7, 16, LENGTH])
def test_chunks_of_any_length_equal_the_definition(case: Case, chunk: int) -> None:
    close(PagedModel(case.decoder, PAGE).run(TOKENS, [chunk] * LENGTH), case.expected)


def test_a_batch_of_chunks_and_single_tokens_equals_each_alone(case: Case) -> None:
    """All are prefixes of one sequence, at different places of their computation."""
    model = PagedModel(case.decoder, PAGE)
    counts = {5: 1, 17: 9, 36: 1, 64: 32, 70: 11}
    sequences = [model.sequence(TOKENS[:length]) for length in counts]
    model.step([(sequences[2], 28)])
    while any(s.num_behind for s in sequences):
        work = [
            (s, min(s.num_behind, count))
            for s, count in zip(sequences, counts.values(), strict=True)
            if s.num_behind
        ]
        starts = [s.num_computed for s, _ in work]
        for start, logits in zip(starts, model.step(work), strict=True):
            close(logits, case.expected[start : start + len(logits)])


@pytest.mark.parametrize("border", [PAGE, 3 * PAGE, LENGTH // PAGE * PAGE])
def test_a_prefix_hit_at_a_page_border_equals_the_definition(case: Case, border: int) -> None:
    model = PagedModel(case.decoder, PAGE)
    first = model.sequence([*TOKENS[:border], 1, 2, 3, 4, 5])
    model.step([(first, first.num_tokens)])
    second = model.sequence(TOKENS, prefix_of=first)
    assert second.num_computed == border
    close(torch.cat(model.step([(second, second.num_behind)])), case.expected[border:])


def test_what_was_computed_in_any_chunks_can_be_recomputed(case: Case) -> None:
    """Preemption: the pages are lost, the sequence starts again in other pages and chunks."""
    model = PagedModel(case.decoder, PAGE)
    for lost_at in (1, 15, 16, 41):
        sequence = model.sequence(TOKENS)
        model.step([(sequence, lost_at)])
        model.free = sequence.pages + model.free
        sequence.pages, sequence.num_computed = [], 0
        close(torch.cat(model.step([(sequence, LENGTH)])), case.expected)
        model.free += sequence.pages


@pytest.mark.parametrize("name", MODELS)
def test_joined_projections_equal_separate_ones(name: str) -> None:
    separate = whole(random_decoder(MODELS[name]), TOKENS)
    close(whole(random_decoder(MODELS[name]).join(), TOKENS), separate)


def random_chunks_equal(name: str, chunks: list[int], seed: int, page: int, length: int) -> None:
    decoder = random_decoder(MODELS[name], seed)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 97, (length,), generator=generator).tolist()
    found = PagedModel(decoder, page).run(tokens, [*chunks, length])
    close(found, whole(decoder, tokens))


ANY_MODEL = st.sampled_from(sorted(MODELS))
ANY_CHUNKS = st.lists(st.integers(1, 40), min_size=1, max_size=20)
SEEDS, PAGES = st.integers(0, 1000), st.sampled_from([16, 32, 48])


@settings(max_examples=40, deadline=None)
@given(name=ANY_MODEL, chunks=ANY_CHUNKS, seed=SEEDS, page=PAGES)
def test_random_chunks_over_random_models(
    name: str, chunks: list[int], seed: int, page: int
) -> None:
    random_chunks_equal(name, chunks, seed, page, LENGTH)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(name=ANY_MODEL, chunks=ANY_CHUNKS, seed=SEEDS, page=PAGES, length=st.integers(1, 300))
def test_random_chunks_of_random_lengths_over_random_models(
    name: str, chunks: list[int], seed: int, page: int, length: int
) -> None:
    random_chunks_equal(name, chunks, seed, page, length)


@pytest.mark.slow
def test_every_way_to_cut_a_sequence_in_two_equals_the_definition(case: Case) -> None:
    for border in range(1, LENGTH):
        close(PagedModel(case.decoder, PAGE).run(TOKENS, [border, LENGTH]), case.expected)
