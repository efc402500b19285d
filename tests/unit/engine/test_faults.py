"""A fault in a step ends only what causes it; everything else goes on, token for token."""

import logging
import random
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from nsa_scheduler import ScheduledBatch, Scheduler
from nsa_serve.engine.constraint import Constraint
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.faults import INTERNAL_ERROR, OUT_OF_MEMORY
from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.engine.runner import StepResult
from nsa_serve.engine.stand_in import (
    NAN_ERROR,
    StandInOptions,
    StandInRunner,
    expected_continuation,
)
from nsa_serve.params import SamplingParams
from tests.support.engine import (
    add_message,
    random_prompt,
    run_to_end,
    stand_in_config,
    stand_in_core,
    tokens_of,
)

POISON = 257  # the stand-in's only end-of-text token here, which it never says
BATCH = 64


@pytest.fixture(autouse=True)
def _no_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.CRITICAL):
        yield


def _core_with_poison(seed: int, **fault: int) -> tuple[EngineCore, dict[int, list[int]], int]:
    """64 sequences, one of which holds the poison somewhere in its prompt."""
    rng = random.Random(seed)
    config = stand_in_config(num_pages=1024, max_num_batched_tokens=256)
    core = stand_in_core(config, StandInOptions(eos_token_ids=(POISON,), **fault))  # type: ignore[arg-type]
    prompts = {i: random_prompt(rng, 2, 30) for i in range(BATCH)}
    guilty = rng.randrange(BATCH)
    prompts[guilty][rng.randrange(len(prompts[guilty]))] = POISON
    for sequence_id, prompt in prompts.items():
        core.add(add_message(sequence_id, prompt))
    return core, prompts, guilty


def _assert_only(
    guilty: int,
    error: str,
    outputs: dict[int, list[SequenceOutput]],
    prompts: dict[int, list[int]],
) -> None:
    assert [o.error for o in outputs.pop(guilty)] == [error]
    assert len(outputs) == BATCH - 1
    for sequence_id, parts in outputs.items():
        expected = expected_continuation(prompts[sequence_id], 8, avoid=(POISON,))
        assert tokens_of(parts) == expected


SEEDS = [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 100))]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_poison_request_in_a_batch_of_64_fails_alone(seed: int) -> None:
    core, prompts, guilty = _core_with_poison(seed, raises_on=POISON)
    _assert_only(guilty, INTERNAL_ERROR, run_to_end(core), prompts)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_row_of_nan_fails_alone(seed: int) -> None:
    core, prompts, guilty = _core_with_poison(seed, nan_on=POISON)
    _assert_only(guilty, NAN_ERROR, run_to_end(core), prompts)


def test_what_a_failed_sequence_computed_is_not_reused() -> None:
    core, prompts, guilty = _core_with_poison(0, nan_on=POISON)
    run_to_end(core)
    core.add(add_message(BATCH, [*prompts[guilty], 1, 2, 3, 4]))
    assert run_to_end(core)[BATCH][0].error == NAN_ERROR


@pytest.mark.parametrize("max_step_tokens", [1, 7, 100])
def test_out_of_memory_makes_steps_smaller_and_fails_nobody(max_step_tokens: int) -> None:
    rng = random.Random(max_step_tokens)
    prompts = {i: random_prompt(rng) for i in range(16)}
    config = stand_in_config(max_num_batched_tokens=256)
    core = stand_in_core(config, StandInOptions(max_step_tokens=max_step_tokens))
    for sequence_id, prompt in prompts.items():
        core.add(add_message(sequence_id, prompt))
    outputs = run_to_end(core)
    for sequence_id, prompt in prompts.items():
        assert tokens_of(outputs[sequence_id]) == expected_continuation(prompt, 8)


def test_prompt_log_probabilities_survive_a_step_that_is_cut_up() -> None:
    core = stand_in_core(options=StandInOptions(max_step_tokens=5))
    core.add(add_message(0, bytes(range(50)), SamplingParams(max_tokens=1, prompt_logprobs=0)))
    places = [p for output in run_to_end(core)[0] for p in output.prompt_logprobs or []]
    assert [place.chosen.token_id for place in places] == list(range(1, 50))


class _CountingRunner(StandInRunner):
    """Runs out of memory above a size that can be changed, and counts attempts."""

    max_tokens = 8
    attempts = 0

    def execute(self, batch: ScheduledBatch) -> StepResult:
        self.attempts += 1
        if batch.num_tokens > self.max_tokens:
            raise MemoryError
        return super().execute(batch)


def test_steps_shrink_once_and_grow_again_when_memory_is_back() -> None:
    config = stand_in_config(num_pages=2048, max_model_len=4096)
    runner = _CountingRunner(config, StandInOptions())
    core = EngineCore(config, runner)
    params = SamplingParams(max_tokens=2000)
    for sequence_id in range(16):
        core.add(add_message(sequence_id, [sequence_id], params))
    for _ in range(10):
        core.step()
    assert runner.attempts == 1 + 10 * 2
    runner.max_tokens = 10_000
    for _ in range(300):
        core.step()
    runner.attempts = 0
    core.step()
    assert runner.attempts == 1


def test_memory_that_not_one_token_fits_in_fails_the_sequence() -> None:
    config = stand_in_config()
    runner = _CountingRunner(config, StandInOptions())
    runner.max_tokens = 0
    core = EngineCore(config, runner)
    core.add(add_message(0, b"no room"))
    assert run_to_end(core)[0][0].error == OUT_OF_MEMORY


class _RefusingRunner(StandInRunner):
    def add(
        self,
        sequence_id: int,
        params: SamplingParams,
        prompt_token_ids: list[int],
        constraint: Constraint | None = None,
    ) -> None:
        super().add(sequence_id, params, prompt_token_ids, constraint)
        if sequence_id == 1:
            raise KeyError(sequence_id)


def test_a_runner_that_cannot_take_a_sequence_fails_only_that() -> None:
    config = stand_in_config()
    runner = _RefusingRunner(config, StandInOptions())
    core = EngineCore(config, runner)
    for sequence_id in range(3):
        core.add(add_message(sequence_id, [sequence_id]))
    outputs = run_to_end(core)
    assert outputs[1][0].error == INTERNAL_ERROR
    assert tokens_of(outputs[2]) == expected_continuation([2], 8)
    assert runner.num_sequences == 0


class _LostDeviceError(RuntimeError):
    """Stands for torch's error after which the device's context is gone."""


def _raising_core(error: BaseException) -> tuple[EngineCore, StandInRunner]:
    """A core whose runner raises at its second step."""
    config = stand_in_config()
    runner = StandInRunner(config, StandInOptions())
    execute, steps = runner.execute, iter(range(1000))

    def execute_or_raise(batch: ScheduledBatch) -> StepResult:
        if next(steps) == 1:
            raise error
        return execute(batch)

    runner.execute = execute_or_raise  # type: ignore[method-assign]
    return EngineCore(config, runner), runner


def test_a_lost_device_ends_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = SimpleNamespace(OutOfMemoryError=MemoryError, AcceleratorError=_LostDeviceError)
    monkeypatch.setitem(sys.modules, "torch", torch)
    core, _ = _raising_core(_LostDeviceError())
    core.add(add_message(0, b"lost"))
    with pytest.raises(_LostDeviceError):
        run_to_end(core)


def test_an_interrupted_step_can_be_taken_again() -> None:
    core, _ = _raising_core(KeyboardInterrupt())
    core.add(add_message(0, b"stay"))
    first = core.step().outputs
    with pytest.raises(KeyboardInterrupt):
        core.step()
    assert core.check_integrity()
    assert tokens_of([*first, *run_to_end(core)[0]]) == expected_continuation(b"stay", 8)


def test_a_step_interrupted_for_good_leaks_nothing() -> None:
    core, runner = _raising_core(KeyboardInterrupt())
    core.add(add_message(0, b"gone"))
    core.step()
    with pytest.raises(KeyboardInterrupt):
        core.step()
    core.abort([0])
    assert core.check_integrity()
    assert core.step().stats.kv_cache_usage == 0.0
    assert runner.num_sequences == 0


def test_a_pool_found_inconsistent_is_logged_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Scheduler) -> None:
        raise AssertionError("a page is lost")

    monkeypatch.setattr(Scheduler, "check_integrity", broken)
    with caplog.at_level(logging.ERROR):
        assert not stand_in_core().check_integrity()
    assert "a page is lost" in caplog.text
