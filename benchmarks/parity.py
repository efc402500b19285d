"""Greedy answers of the built-in model on a GPU beside those on the CPU, for 200 prompts.

    python benchmarks/parity.py

Prompts are stretches of Moby-Dick of 8 to 2,000 tokens. Where an answer differs, what counts is how
near the CPU's two best candidates were at the first difference: a gap that rounding can bridge.
Writes benchmarks/results/parity.json.
"""

import json
import math
import random
import time
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from nsa_serve import LLM, SamplingParams
from nsa_serve.outputs import RequestOutput

HERE = Path(__file__).parent
NUM_PROMPTS = 200
NUM_TOKENS = 32
CANDIDATES = 20
SHORTEST, LONGEST = 8, 2000
MAX_MODEL_LEN = 4096
GPU_TYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")


def main() -> None:
    """Generate on both, compare, print and write."""
    expected = generate("cpu", "float32")
    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "num_prompts": NUM_PROMPTS,
        "num_tokens": NUM_TOKENS,
    }
    for dtype in GPU_TYPES:
        result[dtype] = compared(expected, generate("cuda", dtype))
        print(dtype, result[dtype], flush=True)
        (HERE / "results" / "parity.json").write_text(json.dumps(result, indent=1) + "\n")


def generate(device: str, dtype: str) -> list[RequestOutput]:
    """Continue all prompts, with the best candidates at each place."""
    start = time.perf_counter()
    llm = LLM(device=device, dtype=dtype, max_model_len=MAX_MODEL_LEN)
    params = SamplingParams(
        temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=CANDIDATES
    )
    outputs = llm.generate(prompts(llm), params)
    print(f"{device} {dtype}: {time.perf_counter() - start:.0f} s", flush=True)
    return outputs


def prompts(llm: LLM) -> list[str | list[int]]:
    """Stretches of the text, short ones more often than long ones."""
    text = llm.tokenizer.encode((HERE / "data" / "moby_dick.txt").read_text())
    source = random.Random(0)
    lengths = [
        round(SHORTEST * (LONGEST / SHORTEST) ** source.random()) for _ in range(NUM_PROMPTS)
    ]
    starts = [source.randrange(len(text) - length) for length in lengths]
    return [text[start : start + n] for start, n in zip(starts, lengths, strict=True)]


def compared(expected: list[RequestOutput], got: list[RequestOutput]) -> dict[str, Any]:
    """How many answers are equal, and the gaps where the others part."""
    gaps = [
        gap
        for ours, theirs in zip(got, expected, strict=True)
        if (gap := gap_at_first_difference(ours, theirs)) is not None
    ]
    return {
        "equal": NUM_PROMPTS - len(gaps),
        "median_gap": median(gaps) if gaps else None,
        "largest_gap": max(gaps, default=None),
    }


def gap_at_first_difference(got: RequestOutput, expected: RequestOutput) -> float | None:
    """Difference of log-probability that `expected` saw between its token and the other's (infinite
    if that was not among the candidates); None where all are equal."""
    answer = expected.outputs[0]
    assert answer.logprobs is not None
    for place, (a, b) in enumerate(zip(got.outputs[0].token_ids, answer.token_ids, strict=True)):
        if a != b:
            best = {c.token_id: c.logprob for c in answer.logprobs[place].top}
            return best[b] - best.get(a, -math.inf)
    return None


if __name__ == "__main__":
    main()
