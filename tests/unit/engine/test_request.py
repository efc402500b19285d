"""One prompt, n sequences: what crosses to the core and how its outputs come together."""

from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.engine.prompts import default_params
from nsa_serve.engine.request import Request
from nsa_serve.model.loading.generation import GenerationDefaults
from nsa_serve.outputs import Logprob, RequestTimes, TokenLogprobs
from nsa_serve.params import SamplingParams
from nsa_serve.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.byte_level()
PLACE = TokenLogprobs(Logprob(1, -1.0, 1), [])


def _request(params: SamplingParams) -> Request:
    ids = list(range(10, 10 + params.n))
    return Request("r", "abc", [97, 98, 99], params, TOKENIZER, sequence_ids=ids)


def test_continuations_of_a_seed_have_seeds_of_their_own_that_stay_the_same() -> None:
    request = _request(SamplingParams(n=4, seed=7))
    seeds = [m.params.seed for m in request.messages(priority=0, salt=b"", arrived=0.0)]
    again = [m.params.seed for m in request.messages(priority=0, salt=b"", arrived=0.0)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 4
    assert seeds == again


def test_without_a_seed_none_is_invented() -> None:
    messages = _request(SamplingParams(n=2)).messages(priority=0, salt=b"", arrived=0.0)
    assert [m.params.seed for m in messages] == [None, None]


def test_the_prompt_is_scored_once_for_all_continuations() -> None:
    request = _request(SamplingParams(n=3, prompt_logprobs=2))
    messages = request.messages(priority=0, salt=b"", arrived=0.0)
    assert [m.params.prompt_logprobs for m in messages] == [2, None, None]


def test_log_probabilities_of_the_prompt_wait_until_they_are_complete() -> None:
    request = _request(SamplingParams(n=2, prompt_logprobs=0))
    request.push(SequenceOutput(10, [], prompt_logprobs=[PLACE]))
    request.push(SequenceOutput(11, [1]))
    assert request.take().prompt_logprobs is None
    request.push(SequenceOutput(10, [1], prompt_logprobs=[PLACE]))
    assert request.take().prompt_logprobs == [None, PLACE, PLACE]
    assert request.take().prompt_logprobs is None


def test_times_of_a_request_span_its_continuations() -> None:
    request = _request(SamplingParams(n=2))
    for sequence_id, start in ((10, 5.0), (11, 3.0)):
        times = RequestTimes(
            arrived=1.0, first_scheduled=start, first_token=start + 1, last_token=start + 2
        )
        request.push(SequenceOutput(sequence_id, [1], "length", times=times))
    expected = RequestTimes(arrived=1.0, first_scheduled=3.0, first_token=4.0, last_token=7.0)
    assert request.take().times == expected
    assert request.finished


def test_a_model_s_own_defaults_fill_what_is_not_given() -> None:
    generation = GenerationDefaults(temperature=0.2, top_k=5)
    assert default_params(generation) == SamplingParams(temperature=0.2, top_k=5)
    params = default_params(generation, temperature=0.0, max_tokens=3)
    assert params == SamplingParams(temperature=0.0, top_k=5, max_tokens=3)
