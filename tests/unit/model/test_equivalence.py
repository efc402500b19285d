"""Every way of computing a sequence over pages gives the logits of the definition."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.dialects import MODELS, random_decoder
from tests.support.paged import PagedModel, whole

LENGTH = 83
TOKENS = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(7)).tolist()
PAGE = 16


def close(a: Tensor, b: Tensor) -> None:
    scale = b.abs().max()
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-5)


@pytest.fixture(params=MODELS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("chunk", [1, 7, 16, LENGTH])
def test_chunks_of_any_length_equal_the_definition(name: str, chunk: int) -> None:
    decoder = random_decoder(MODELS[name])
    close(PagedModel(decoder, PAGE).run(TOKENS, [chunk] * LENGTH), whole(decoder, TOKENS))


def test_a_batch_of_chunks_and_single_tokens_equals_each_alone(name: str) -> None:
    decoder = random_decoder(MODELS[name])
    model = PagedModel(decoder, PAGE)
    lengths = [5, 17, 33, 64, 80]
    sequences = [model.sequence(TOKENS[i : i + n]) for i, n in enumerate(lengths)]
    last: dict[int, Tensor] = {}
    counts = [1, 9, 1, 32, 3]
    while any(s.num_behind for s in sequences):
        work = [
            (s, min(s.num_behind, c))
            for s, c in zip(sequences, counts, strict=True)
            if s.num_behind
        ]
        for (sequence, _), logits in zip(work, model.step(work), strict=True):
            last[id(sequence)] = logits[-1]
    for i, (sequence, n) in enumerate(zip(sequences, lengths, strict=True)):
        close(last[id(sequence)], whole(decoder, TOKENS[i : i + n])[-1])


def test_a_prefix_hit_at_every_page_border_equals_the_definition(name: str) -> None:
    decoder = random_decoder(MODELS[name])
    expected = whole(decoder, TOKENS)
    for border in range(PAGE, LENGTH, PAGE):
        model = PagedModel(decoder, PAGE)
        first = model.sequence([*TOKENS[:border], 1, 2, 3, 4, 5])
        model.step([(first, first.num_tokens)])
        second = model.sequence(TOKENS, prefix_of=first)
        assert second.num_computed == border
        close(torch.cat(model.step([(second, second.num_behind)])), expected[border:])


def test_what_was_computed_in_any_chunks_can_be_recomputed(name: str) -> None:
    """Preemption: the pages are lost, the sequence starts again in other pages and chunks."""
    decoder = random_decoder(MODELS[name])
    expected = whole(decoder, TOKENS)
    model = PagedModel(decoder, PAGE)
    for lost_at in (1, 8, 15, 16, 17, 40):
        sequence = model.sequence(TOKENS)
        model.step([(sequence, lost_at)])
        model.free = sequence.pages + model.free
        sequence.pages, sequence.num_computed = [], 0
        close(torch.cat(model.step([(sequence, LENGTH)]))[-1], expected[-1])
        model.free += sequence.pages


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(sorted(MODELS)),
    chunks=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    seed=st.integers(0, 1000),
    page=st.sampled_from([16, 32, 48]),
)
def test_random_chunks_over_random_models(
    name: str, chunks: list[int], seed: int, page: int
) -> None:
    decoder = random_decoder(MODELS[name], seed)
    model = PagedModel(decoder, page)
    close(model.run(TOKENS, [*chunks, LENGTH]), whole(decoder, TOKENS))


def test_joined_projections_equal_separate_ones(name: str) -> None:
    separate = whole(random_decoder(MODELS[name]), TOKENS)
    close(whole(random_decoder(MODELS[name]).join(), TOKENS), separate)
