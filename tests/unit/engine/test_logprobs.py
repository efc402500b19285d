"""Log-probabilities and ranks of tokens under given logits."""

import pytest
import torch

from nsa_serve.engine.sampler import logprobs_of, sample, sampling_state
from nsa_serve.params import SamplingParams


def test_values_are_the_log_softmax_and_ranks_count_what_is_likelier() -> None:
    logits = torch.randn(20, 500, generator=torch.Generator().manual_seed(0)) * 3
    tokens = torch.randint(0, 500, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    truth = logits.double().log_softmax(-1)
    for row, token, found in zip(truth, tokens, logprobs_of(logits, tokens, 5), strict=True):
        assert found.chosen.token_id == token
        assert found.chosen.logprob == pytest.approx(float(row[token]), abs=1e-5)
        assert found.chosen.rank == 1 + int((row > row[token]).sum())
        order = row.argsort(descending=True)[:5].tolist()
        assert [(top.token_id, top.rank) for top in found.top] == list(
            zip(order, range(1, 6), strict=True)
        )
        assert [top.logprob for top in found.top] == pytest.approx(row[order].tolist(), abs=1e-5)


@pytest.mark.parametrize(("num_top", "expected"), [(0, 0), (3, 3), (20, 4)])
def test_as_many_candidates_as_asked_for_and_as_there_are(num_top: int, expected: int) -> None:
    (found,) = logprobs_of(torch.zeros(1, 4), [2], num_top)
    assert len(found.top) == expected
    assert found.chosen.rank == 1


def test_they_are_those_of_the_model_whatever_the_sampling_does() -> None:
    """Temperature, filters and biases change what is sampled, not what is reported."""
    logits = torch.tensor([[0.0, 3.0, 1.0, -1.0]])
    before = logits.clone()
    params = SamplingParams(temperature=0.1, top_k=1, logit_bias={3: 100.0}, seed=0)
    (token,) = sample(logits, [sampling_state(params, [0], ())], [[]])
    assert token == 3
    (found,) = logprobs_of(logits, [token], 1)
    assert found.chosen.rank == 4
    assert found.chosen.logprob == pytest.approx(float(before[0].log_softmax(-1)[3]))
