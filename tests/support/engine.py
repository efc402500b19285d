"""Cores over the stand-in runner, small enough to be watched, and what they should say."""

import random
from collections import defaultdict
from collections.abc import Sequence

from nsa_serve.config import EngineConfig
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.messages import AddSequence, SequenceOutput
from nsa_serve.engine.stand_in import StandInOptions, StandInRunner
from nsa_serve.params import SamplingParams

PAGE_SIZE = 4


def stand_in_config(
    *,
    num_pages: int = 256,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 64,
    max_model_len: int = 256,
    enable_prefix_caching: bool = True,
) -> EngineConfig:
    """A configuration whose pages hold four tokens."""
    return EngineConfig(
        runner="stand-in",
        block_size=PAGE_SIZE,
        num_pages=num_pages,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len,
        enable_prefix_caching=enable_prefix_caching,
    )


def stand_in_core(
    config: EngineConfig | None = None, options: StandInOptions | None = None
) -> EngineCore:
    """A core over a stand-in."""
    config = config or stand_in_config()
    return EngineCore(config, StandInRunner(config, options or StandInOptions()))


def add_message(
    sequence_id: int, prompt: Sequence[int], params: SamplingParams | None = None
) -> AddSequence:
    """Ask for eight greedy tokens, unless told otherwise."""
    params = params or SamplingParams(max_tokens=8, temperature=0.0)
    return AddSequence(sequence_id, list(prompt), params)


def random_prompt(rng: random.Random, low: int = 1, high: int = 60) -> list[int]:
    """Between `low` and `high` bytes."""
    return [rng.randrange(256) for _ in range(rng.randint(low, high))]


def run_to_end(core: EngineCore, *, max_steps: int = 100_000) -> dict[int, list[SequenceOutput]]:
    """Step until there is no work, pages checked after every step; outputs by sequence."""
    outputs: dict[int, list[SequenceOutput]] = defaultdict(list)
    for _ in range(max_steps):
        if not core.has_work:
            return outputs
        for output in core.step().outputs:
            outputs[output.sequence_id].append(output)
        assert core.check_integrity()
    raise AssertionError(f"work left after {max_steps} steps")


def tokens_of(outputs: Sequence[SequenceOutput]) -> list[int]:
    """All new tokens of one sequence."""
    return [token_id for output in outputs for token_id in output.new_token_ids]
