"""Aborts in every state leave nothing behind."""

import random

from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.stand_in import StandInOptions, StandInRunner, expected_continuation
from nsa_serve.params import SamplingParams
from tests.support.engine import (
    add_message,
    random_prompt,
    run_to_end,
    stand_in_config,
    tokens_of,
)


def _abort_at_random(seed: int, num_aborts: int) -> None:
    """Add, step and abort (live, finished, unknown and repeated ids) on a pool that is too small.

    Sequences that are left alone must still give the expected tokens.
    """
    rng = random.Random(seed)
    config = stand_in_config(num_pages=48, max_num_seqs=12, max_num_batched_tokens=24)
    runner = StandInRunner(config, StandInOptions())
    core = EngineCore(config, runner)
    prompts: dict[int, list[int]] = {}
    outputs: dict[int, list[int]] = {}
    aborted: set[int] = set()
    ended: set[int] = set()
    while len(aborted) < num_aborts:
        num_live = len(prompts) - len(aborted | ended)
        for _ in range(rng.randint(0, 5) if num_live < 30 else 0):
            sequence_id = len(prompts)
            prompts[sequence_id] = random_prompt(rng, 1, 40)
            outputs[sequence_id] = []
            params = SamplingParams(max_tokens=rng.randint(1, 30))
            core.add(add_message(sequence_id, prompts[sequence_id], params))
        recent = range(max(0, len(prompts) - 40), len(prompts) + 2)
        chosen = rng.choices(recent, k=rng.randint(0, 3))
        core.abort(chosen)
        aborted.update(i for i in chosen if i in prompts)
        for output in core.step().outputs:
            assert output.sequence_id not in aborted
            assert output.error is None
            outputs[output.sequence_id] += output.new_token_ids
            if output.finish_reason is not None:
                ended.add(output.sequence_id)
        assert core.check_integrity()
    for sequence_id, parts in run_to_end(core).items():
        outputs[sequence_id] += tokens_of(parts)
    for sequence_id in outputs.keys() - aborted:
        tokens = outputs[sequence_id]
        assert tokens == expected_continuation(prompts[sequence_id], len(tokens))
    assert core.step().stats.kv_cache_usage == 0.0
    assert runner.num_sequences == 0


def test_10000_aborts_leak_no_page() -> None:
    _abort_at_random(1, 10_000)
