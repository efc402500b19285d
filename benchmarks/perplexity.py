"""Perplexity of the built-in model on 4,096 tokens of Moby-Dick: dense, NSA, and NSA in int8.

    make perplexity

Up to 1,024 tokens NSA selects everything and equals dense attention; what it costs shows after.
Writes benchmarks/results/perplexity.json.
"""

import json
import math
from pathlib import Path
from typing import Literal

from nsa_serve import LLM

HERE = Path(__file__).parent
NUM_TOKENS = 4096
RANGES = (1, 1024), (1024, 2048), (2048, 4096)
SIDES: tuple[tuple[Literal["dense", "nsa"], Literal["float32", "int8"]], ...] = (
    ("dense", "float32"),
    ("nsa", "float32"),
    ("dense", "int8"),
    ("nsa", "int8"),
)


def main() -> None:
    """Measure, print and write."""
    result: dict[str, dict[str, float]] = {}
    scores: dict[str, list[float]] = {}
    for attention, dtype in SIDES:
        llm = LLM(attention=attention, dtype=dtype, max_num_seqs=1, cpu_cache_gib=0.5)
        text = (HERE / "data" / "moby_dick.txt").read_text()
        tokens = llm.tokenizer.encode(text)[:NUM_TOKENS]
        assert len(tokens) == NUM_TOKENS
        side = f"{attention} {dtype}"
        scores[side] = llm.score(tokens)
        result[side] = {f"tokens {a}-{b - 1}": perplexity(scores[side], a, b) for a, b in RANGES}
        result[side]["all"] = perplexity(scores[side], 1, NUM_TOKENS)
        print(side, {k: round(v, 3) for k, v in result[side].items()}, flush=True)
    pairs = zip(scores["nsa float32"][:1023], scores["dense float32"][:1023], strict=True)
    gap = max(abs(a - b) for a, b in pairs)
    print(f"largest gap of log-probabilities, nsa to dense, first 1,024 tokens: {gap:.2e}")
    document = {"perplexity": result, "largest_gap_first_1024": gap}
    (HERE / "results" / "perplexity.json").write_text(json.dumps(document, indent=1) + "\n")


def perplexity(scores: list[float], start: int, stop: int) -> float:
    """Over tokens [start, stop); scores[i] is the log-probability of token i + 1."""
    part = scores[start - 1 : stop - 1]
    return math.exp(-sum(part) / len(part))


if __name__ == "__main__":
    main()
