"""The stand-in notices what it is there to notice: pages that are wrong."""

import pytest

from nsa_scheduler import ScheduledBatch, ScheduledSequence, Sequence
from nsa_serve.config import EngineConfig
from nsa_serve.engine.stand_in import (
    OPTIONS_VARIABLE,
    StandInOptions,
    StandInRunner,
    expected_continuation,
)
from nsa_serve.params import SamplingParams
from tests.support.engine import stand_in_config


def _computed(runner: StandInRunner, sequence_id: int, pages: list[int]) -> Sequence:
    """A sequence of ten tokens, nine of them computed."""
    prompt = [sequence_id * 10 + i for i in range(10)]
    sequence = Sequence(
        sequence_id=sequence_id,
        token_ids=prompt,
        num_prompt_tokens=10,
        max_output_tokens=4,
        pages=pages,
    )
    runner.add(sequence_id, SamplingParams(), prompt)
    runner.execute(ScheduledBatch([ScheduledSequence(sequence, 0, 9)]))
    sequence.num_computed = 9
    return sequence


def _last_token(runner: StandInRunner, sequence: Sequence) -> int:
    batch = ScheduledBatch([ScheduledSequence(sequence, 9, 1)])
    return runner.execute(batch).token_ids[sequence.sequence_id]


@pytest.fixture
def runner() -> StandInRunner:
    return StandInRunner(stand_in_config(), StandInOptions())


def test_right_pages_give_the_expected_token(runner: StandInRunner) -> None:
    sequence = _computed(runner, 1, [5, 3, 9])
    runner.check(sequence)
    assert [_last_token(runner, sequence)] == expected_continuation(sequence.token_ids, 1)


def test_a_shared_page_changes_the_token_and_is_found(runner: StandInRunner) -> None:
    first = _computed(runner, 1, [5, 3, 9])
    _computed(runner, 2, [6, 4, 9])
    with pytest.raises(AssertionError, match="wrong entry"):
        runner.check(first)
    assert [_last_token(runner, first)] != expected_continuation(first.token_ids, 1)


def test_a_wrong_page_table_changes_the_token(runner: StandInRunner) -> None:
    sequence = _computed(runner, 1, [5, 3, 9])
    sequence.pages = [5, 3, 8]
    assert [_last_token(runner, sequence)] != expected_continuation(sequence.token_ids, 1)


def test_a_page_never_written_is_no_right_answer(runner: StandInRunner) -> None:
    sequence = _computed(runner, 1, [5, 3, 9])
    sequence.pages = [7, 3, 9]
    with pytest.raises(AssertionError, match="token 0"):
        runner.check(sequence)


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, '{"vocab_size": 1000}')
    assert StandInRunner(EngineConfig()).info.vocab_size == 1000
